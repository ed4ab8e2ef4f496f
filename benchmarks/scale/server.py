"""Run a real S3 server during a measurement."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from services.s3 import BUCKET, s3_server


@contextmanager
def local_s3(folder: Path) -> Iterator[str]:
    """Run SeaweedFS, set the environment for it, and yield the URI of a prefix."""
    folder.mkdir(parents=True, exist_ok=True)
    with s3_server(folder / "server") as server:
        before = dict(os.environ)
        os.environ.pop("AWS_PROFILE", None)
        os.environ.update(server.environment)
        try:
            yield f"s3://{BUCKET}/scale"
        finally:
            os.environ.clear()
            os.environ.update(before)

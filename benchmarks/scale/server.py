"""A real S3 server for the time of a measurement."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.services.s3 import BUCKET, s3_server


@contextmanager
def s3_here(folder: Path) -> Iterator[str]:
    """A place in a bucket of SeaweedFS, and the environment that reaches it."""
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

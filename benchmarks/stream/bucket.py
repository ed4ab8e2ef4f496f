"""Upload sets to S3, for tools that pack to a folder."""

from pathlib import Path

import boto3

from benchmarks.stream.setting import Setting


def upload(folder: Path, setting: Setting) -> None:
    """Upload all files below ``folder`` to the set's prefix."""
    client = boto3.session.Session().client("s3")
    for path in sorted(each for each in folder.rglob("*") if each.is_file()):
        key = f"{setting.prefix}/{path.relative_to(folder).as_posix()}"
        client.upload_file(str(path), setting.bucket, key)

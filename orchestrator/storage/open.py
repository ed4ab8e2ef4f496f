"""Open a storage by its URI.

open_storage("runs")                    a folder
open_storage("file:///mnt/runs")        the same
open_storage("s3://bucket/prefix")      endpoint and credentials the standard AWS way
"""

from pathlib import Path
from urllib.parse import unquote, urlsplit

from orchestrator.errors import UsageError
from orchestrator.storage.base import Storage
from orchestrator.storage.local import FolderStorage
from orchestrator.storage.s3 import S3Storage


def open_storage(uri: str) -> Storage:
    """Return the storage at ``uri``: a folder path, ``file:///...`` or ``s3://bucket/prefix``.

    Does not connect yet. Raises UsageError for any other kind of URI.
    """
    scheme, separator, _ = uri.partition("://")
    if not separator:
        return FolderStorage(Path(uri))
    parts = urlsplit(uri)
    if scheme == "file" and parts.netloc in ("", "localhost"):
        return FolderStorage(Path(unquote(parts.path)))
    if scheme == "s3" and parts.netloc:
        return S3Storage(parts.netloc, uri.removeprefix(f"s3://{parts.netloc}").strip("/"))
    raise UsageError(
        f"{uri!r} is not a storage URI; use a folder, file:///folder or s3://bucket/prefix"
    )

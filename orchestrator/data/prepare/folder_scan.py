"""Scan a folder before it is packed: what becomes of every file, and why packing would refuse."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal, Protocol

from orchestrator.data.format.derived_input import require_channels
from orchestrator.data.format.images import Channels, Fit
from orchestrator.data.format.shard_index import ProgressCallback
from orchestrator.data.prepare.caption_findings import find_captions, has_several_captions
from orchestrator.data.prepare.file_facts import FactsReader, FileFacts
from orchestrator.data.prepare.findings import FolderFinding, count, printable, printable_all
from orchestrator.data.prepare.folder_files import FolderFiles, list_files
from orchestrator.data.prepare.folder_roles import find_roles
from orchestrator.data.prepare.folders import (
    Candidate,
    FolderLayout,
    ImageSource,
    combine_sides,
    find_candidates,
    make_keys,
)
from orchestrator.data.prepare.image_findings import (
    PackedShape,
    find_changes,
    find_halves,
    find_misfits,
)
from orchestrator.data.prepare.parallel import ParallelMap, map_in_processes
from orchestrator.data.prepare.value_range import AskedRange, ChosenRange, choose_value_range
from orchestrator.derived_input_kinds import DERIVED_INPUTS
from orchestrator.errors import DataError

MAX_SERIAL = 64
"""Up to this many images are done before other processes would have started."""


class ImageContents(Protocol):
    """Encoded images that are not in files of their own; paths of their samples are made up."""

    @property
    def where(self) -> str:
        """Their place, for messages."""

    def digest(self) -> str:
        """Return a hash that changes with the images."""

    def read(self, sources: Sequence[ImageSource]) -> Iterator[tuple[bytes, ...]]:
        """Read the images of ``sources``, which are in their original order."""


@dataclass
class FolderScan:
    """Everything known about a folder before it is packed."""

    folder: Path
    layout: FolderLayout
    shape: PackedShape
    sources: list[ImageSource]
    facts: dict[PurePosixPath, FileFacts]
    """Of the files that are taken, or would be if they were not broken; by relative path."""
    files: FolderFiles
    findings: list[FolderFinding] = field(default_factory=list)
    chosen_range: ChosenRange = field(default_factory=lambda: ChosenRange(None))
    """Which values become black and white."""
    multiple_captions: bool = False
    """Whether a caption is several, one per line."""
    classes: tuple[str, ...] = ()
    """Class names by number; by default those of the samples in alphabetical order."""
    contents: "ImageContents | None" = None
    """Where the images are read from, if they are not in files of their own."""

    @property
    def where(self) -> str:
        """Its place, for messages."""
        return self.contents.where if self.contents else str(self.folder)

    @property
    def refusals(self) -> list[FolderFinding]:
        """Why packing would refuse."""
        return [finding for finding in self.findings if finding.kind == "refused"]

    @property
    def broken(self) -> list[PurePosixPath]:
        """The files that cannot be read."""
        return [path for path, facts in self.facts.items() if facts.error]

    @property
    def has_oblong(self) -> bool:
        """Whether an image that is taken, or a half of one, is not square."""
        widths = 2 if any(source.halves for source in self.sources) else 1
        whole = [facts for facts in self.facts.values() if not facts.error]
        return any(facts.width != widths * facts.height for facts in whole)

    def require_packable(self) -> None:
        """Raise DataError, with every reason, if packing would refuse."""
        if self.refusals:
            raise DataError("\n".join(each.refusal(self.where) for each in self.refusals))


def scan_folder(  # noqa: PLR0913 - the options of one command
    folder: Path,
    layout: FolderLayout | None = None,
    *,
    size: int | None = None,
    fit: Fit | None = None,
    channels: Channels = 3,
    value_range: AskedRange = None,
    max_corrupt_fraction: float = 0.0,
    workers: int | None = None,
    parallel_map: ParallelMap = map_in_processes,
    progress: ProgressCallback | None = None,
) -> FolderScan:
    """Read every file of ``folder`` once, in parallel, and decide what becomes of it.

    Args:
        size: height and width that the images will be resized to.
        fit: how images that are not square become so; with ``size``, by default crop.
        value_range: see ``choose_value_range``.
        max_corrupt_fraction: fraction of the samples that may be broken; they are left out.
        progress: called with the number of files.

    Raises UsageError for options that do not go together, DataError if there are no images;
    whatever else is wrong is among the findings.
    """
    layout = layout or FolderLayout()
    require_channels(layout.derived_input, channels)
    files = list_files(folder)
    found = find_candidates(find_roles(files.images, layout.role_options()), layout)
    share = layout.validation_share if layout.unpaired else None
    reader = FactsReader(channels, share, layout.captions)
    used = [path for sample in found.samples for path in sample.paths]
    facts = _read_all(reader, folder, used, workers, parallel_map, progress)
    scan = FolderScan(folder, layout, PackedShape(size, fit, channels), [], facts, files)
    scan.findings = [*found.findings, *files.findings(layout.captions)]
    whole = without_broken(scan, found.samples, max_corrupt_fraction)
    halves = decide_halves(scan, whole)
    choose_range(scan, whole, value_range)
    _find_captions(scan, whole)
    scan.sources = _to_sources(scan, whole, halves)
    describe_packing(scan)
    return scan


def _read_all(
    reader: FactsReader,
    folder: Path,
    paths: Sequence[PurePosixPath],
    workers: int | None,
    parallel_map: ParallelMap,
    progress: ProgressCallback | None,
) -> dict[PurePosixPath, FileFacts]:
    # Workers on other machines have another working directory.
    absolute = [(folder / path).absolute() for path in paths]
    if len(paths) <= MAX_SERIAL:
        read: Iterable[FileFacts] = map(reader, absolute)
    else:
        needs = next((path for path in absolute if path.is_file()), absolute[0])
        read = parallel_map(reader, absolute, workers, needs=needs)
    facts = {}
    for number, (path, each) in enumerate(zip(paths, read, strict=True)):
        facts[path] = each
        if progress is not None:
            progress(number + 1, len(paths))
    return facts


def without_broken(
    scan: FolderScan, samples: list[Candidate], max_fraction: float
) -> list[Candidate]:
    """Return the samples whose files can all be read; refuse if too many cannot."""
    whole = [s for s in samples if not any(scan.facts[path].error for path in s.paths)]
    num_broken = len(samples) - len(whole)
    if not num_broken:
        return whole
    reasons = [(printable(path), scan.facts[path].error) for path in scan.broken]
    of = f"{num_broken:,} of {count(len(samples), 'sample')}"
    if whole and num_broken <= max_fraction * len(samples):
        text = f"{of}, whose images cannot be decoded"
        advice = f"--max-corrupt-fraction {max_fraction:g}"
        examples = [f"{path} ({reason})" for path, reason in reasons]
        scan.findings.append(FolderFinding("left out", text, advice, tuple(examples)))
    else:
        # Rounded up, so that the advice works.
        least = -(-num_broken * 10_000 // len(samples)) / 10_000
        text = f"{of} {'has' if num_broken == 1 else 'have'} images that cannot be decoded"
        advice = "repair or remove them"
        if whole:
            advice += f", or give --max-corrupt-fraction {least:g} to pack without them"
        examples = [f"{path} cannot be decoded as an image ({reason})" for path, reason in reasons]
        scan.findings.append(FolderFinding("refused", text, advice, tuple(examples)))
    return whole


def decide_halves(scan: FolderScan, samples: list[Candidate]) -> bool:
    """Whether each file holds two images side by side."""
    layout = scan.layout
    single = [s.paths[0] for s in samples if len(s.paths) == 1]
    if layout.unpaired or layout.pairs or len(single) < len(samples) or not samples:
        return False
    is_split = any(s.for_validation is not None for s in samples)
    sizes = {path: scan.facts[path].size for path in single}
    halves, findings = find_halves(sizes, layout.side_by_side, is_split)
    scan.findings += findings
    return halves


def choose_range(scan: FolderScan, samples: list[Candidate], asked: AskedRange) -> None:
    """Choose the values of black and white; refuse if they are not known."""
    extents = {
        printable(path): scan.facts[path].extent for sample in samples for path in sample.paths
    }
    try:
        scan.chosen_range = choose_value_range(extents, asked)
    except DataError as error:
        scan.findings.append(FolderFinding("refused", str(error)))
        return
    kind: Literal["guessed", "changed"] = "guessed" if asked is None else "changed"
    scan.findings += [FolderFinding(kind, note) for note in scan.chosen_range.notes]


def _find_captions(scan: FolderScan, samples: list[Candidate]) -> None:
    if scan.layout.captions:
        facts = {s.paths[0]: scan.facts[s.paths[0]] for s in samples}
        scan.multiple_captions = scan.layout.caption_per_line and has_several_captions(facts)
        scan.findings += find_captions(facts, scan.layout.caption_per_line)
    elif beside := scan.files.captions_beside():
        text = count(len(beside), "text file") + " beside images, perhaps captions"
        scan.findings.append(FolderFinding("left out", text, "--captions", printable_all(beside)))


def _to_sources(scan: FolderScan, samples: list[Candidate], halves: bool) -> list[ImageSource]:
    sources: list[ImageSource] = []
    if scan.layout.unpaired:
        return _combine_unpaired(scan, samples)
    for part in (None, False, True):
        chosen = [s for s in samples if s.for_validation is part]
        for key, sample in zip(make_keys(s.name for s in chosen), chosen, strict=True):
            paths = tuple(scan.folder / path for path in sample.paths)
            caption = scan.facts[sample.paths[0]].caption
            if caption is not None and scan.multiple_captions:
                caption = "\n".join(filter(None, map(str.strip, caption.split("\n"))))
            sources.append(ImageSource(key, paths, halves, part, sample.label, caption))
    return sources


def _combine_unpaired(scan: FolderScan, samples: list[Candidate]) -> list[ImageSource]:
    sources = []
    for held_out in (False, True):
        sides: tuple[list[Path], ...] = ([], [])
        for sample in samples:
            (path,) = sample.paths
            # Split before combining: a repeated image must not be in both sets.
            part = sample.for_validation
            if held_out == (scan.facts[path].held_out if part is None else part):
                sides["ab".index(sample.side)].append(scan.folder / path)
        sources += combine_sides(sides, held_out)
        name = "validation" if held_out else "training"
        short, long = sorted((len(sides[n]), "AB"[n]) for n in (0, 1))
        if short[0] and short[0] < long[0]:
            text = f"the {short[0]:,} {name} images of {short[1]} are repeated to {long[0]:,}"
            scan.findings.append(FolderFinding("changed", text, "--unpaired"))
        elif long[0] and not short[0]:
            text = f"{long[0]:,} {name} images of {long[1]}, as {short[1]} has none"
            scan.findings.append(FolderFinding("left out", text))
    return sources


def describe_packing(scan: FolderScan) -> None:
    """Add how the samples of ``scan`` are split and changed; refuse if there are none."""
    if not scan.sources:
        if not scan.refusals:
            advice = "give more images"
            scan.findings.append(FolderFinding("refused", "there is no training sample", advice))
        return
    _describe_derived_input(scan)
    share, unpaired = scan.layout.validation_share, scan.layout.unpaired
    if share and any(source.for_validation is None for source in scan.sources):
        text = f"about {share:.0%} of the samples are held out for validation, by their pixels"
        scan.findings.append(FolderFinding("noted", text, "--validation-share"))
    by_path = {scan.folder / path: each for path, each in scan.facts.items()}
    scan.findings += find_misfits(scan.folder, scan.sources, by_path, scan.shape, unpaired)
    scan.findings += find_changes(scan.folder, scan.sources, by_path, scan.shape)


def _describe_derived_input(scan: FolderScan) -> None:
    """Say how inputs are made; refuse if the images are pairs."""
    kind = scan.layout.derived_input
    if kind is None:
        return
    if any(source.halves or len(source.paths) > 1 for source in scan.sources):
        advice = "leave --derive-input out, or choose single images"
        text = "the images are pairs, whose input is given"
        scan.findings.append(FolderFinding("refused", text, advice))
        return
    text = f"each image becomes a pair: b is the image, a is {DERIVED_INPUTS[kind]}"
    scan.findings.append(FolderFinding("changed", text, "--derive-input"))

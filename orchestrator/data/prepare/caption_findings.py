"""What is to be said about the captions of a folder before it is packed."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import TypeVar

from orchestrator.data.prepare.file_facts import FileFacts
from orchestrator.data.prepare.findings import FolderFinding, count, printable, printable_all

MODEL_CAPTION_BYTES = 256
"""Bytes of a caption, as UTF-8, that models read: models.parts.text.CAPTION_BYTES."""

Place = TypeVar("Place", PurePosixPath, str)


def split_captions(text: str) -> list[str]:
    """Return the captions of a file: its lines that are not empty."""
    return [line.strip() for line in text.split("\n") if line.strip()]


def has_several_captions(facts: Mapping[PurePosixPath, FileFacts]) -> bool:
    """Whether a file has more than one line of text."""
    return any(len(split_captions(each.caption or "")) > 1 for each in facts.values())


def is_cut(caption: str) -> bool:
    """Whether models read the start of ``caption`` only."""
    return len(caption.encode()) > MODEL_CAPTION_BYTES


def find_captions(
    facts: Mapping[PurePosixPath, FileFacts], per_line: bool
) -> Iterator[FolderFinding]:
    """Yield the findings on the captions of samples, by the path of their first image."""
    wrong = [_describe_missing(path, each) for path, each in facts.items() if each.caption is None]
    if wrong:
        text = count(len(wrong), "image has", "images have") + " no caption that can be read"
        yield FolderFinding(
            "refused", text, "write one for each image, or leave --captions out", tuple(wrong)
        )
    read = {path: each.caption for path, each in facts.items() if each.caption is not None}
    texts = {path.with_suffix(".txt"): text for path, text in read.items()}
    captions = {p: split_captions(t) if per_line else [t] for p, t in texts.items()}
    several = [path for path, text in texts.items() if len(split_captions(text)) > 1]
    if several and per_line:
        total = sum(map(len, captions.values()))
        text = f"each line of a caption file is one of its captions: {total:,} for {len(texts):,}"
        advice = "training draws one per visit; --no-caption-per-line"
        yield FolderFinding("guessed", f"{text} samples", advice, printable_all(several))
    elif several:
        text = count(len(several), "caption has", "captions have") + " several lines"
        yield FolderFinding("noted", text, "--caption-per-line", printable_all(several))
    yield from find_empty_and_cut(captions)


def find_empty_and_cut(captions: Mapping[Place, Sequence[str]]) -> Iterator[FolderFinding]:
    """Yield the findings on captions by their place: those that are empty, and the long ones."""
    empty = [place for place, lines in captions.items() if not any(lines)]
    if empty:
        text = count(len(empty), "caption is", "captions are") + " empty"
        yield FolderFinding("noted", text, "", printable_all(empty))
    cut = [place for place, lines in captions.items() if any(map(is_cut, lines))]
    if cut:
        number = sum(is_cut(line) for lines in captions.values() for line in lines)
        text = f"{count(number, 'caption is', 'captions are')} longer than the "
        text += f"{MODEL_CAPTION_BYTES} bytes that models read"
        yield FolderFinding("noted", text, "shorten them", printable_all(cut))


def _describe_missing(path: PurePosixPath, facts: FileFacts) -> str:
    text = path.with_suffix(".txt")
    if facts.caption_error:
        return f"{printable(text)} {facts.caption_error}"
    return f"{printable(path)} has no caption: write one to {printable(text.name)}"

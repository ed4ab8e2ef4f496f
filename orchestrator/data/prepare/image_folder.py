"""Rows of Hugging Face's imagefolder: images with metadata.jsonl or metadata.csv, or class folders.

A metadata file describes images of its folder and those below: `file_name` is relative to it, and
`input_file_name`, `output_file_name`, ... make several images per row. Rows of one file that
differ in their caption are one sample with several captions.
"""

import csv
import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from orchestrator.data.format.image_files import FILE_ENDINGS
from orchestrator.data.prepare.columns import (
    CAPTION_NAMES,
    ChosenColumns,
    Column,
    ColumnKind,
)
from orchestrator.data.prepare.findings import FolderFinding, count, printable_all
from orchestrator.data.prepare.folder_files import list_files
from orchestrator.data.prepare.row_source import (
    IsDone,
    RowSource,
    SourceRow,
    SplitChoice,
    held_out_parts,
)
from orchestrator.data.prepare.split import SPLIT_WORDS
from orchestrator.data.prepare.text_files import read_text
from orchestrator.errors import DataError

METADATA_FILES = ("metadata.jsonl", "metadata.csv")
FILE_NAME = "file_name"
IMAGE, LABEL = "image", "label"
"""Columns of file_name, and of the class folders where there is no metadata."""


@dataclass
class _FolderRow:
    """One row of metadata, or one image where there is none."""

    place: str
    paths: dict[str, PurePosixPath]
    """Image files by column, relative to the source's folder."""
    values: dict[str, object] = field(default_factory=dict)
    for_validation: bool | None = None


class ImageFolderSource(RowSource):
    """Images of a folder, described by metadata files or by the folders they are in."""

    def __init__(self, folder: Path, split: SplitChoice) -> None:
        """List the files and read the metadata.

        Raises DataError if there are no images, or a metadata file cannot be read.
        """
        self.where = str(folder)
        self._folder = folder
        self.findings: list[FolderFinding] = []
        metadata = find_metadata(folder)
        entries = self._read_metadata(metadata) if metadata else self._list_images()
        self._entries = self._keep_split(entries, split)
        self.columns = _find_columns(self._entries)
        self.num_rows = len(self._entries)

    def digest(self) -> str:
        """Hash the rows, and the sizes and modification times of their files."""
        digest = hashlib.sha256()
        for entry in self._entries:
            files = []
            for path in entry.paths.values():
                file = self._folder / path
                stat = file.stat() if file.is_file() else None
                files.append([str(path), stat and stat.st_size, stat and stat.st_mtime_ns])
            values = {name: repr(value) for name, value in entry.values.items()}
            digest.update(json.dumps([files, values, entry.for_validation]).encode())
        return digest.hexdigest()

    def rows(self, chosen: ChosenColumns, is_done: IsDone) -> Iterator[SourceRow]:
        """Read the images of the rows that are not done."""
        for number, entry in enumerate(self._entries):
            if is_done(number):
                continue
            images, problem, name = [], None, ""
            for column in chosen.images:
                path = entry.paths.get(column.name)
                if path is None:
                    problem = problem or f"{column.name}: it has no file name"
                    continue
                name = name or path.with_suffix("").as_posix()
                try:
                    images.append((self._folder / path).read_bytes())
                except OSError as error:
                    problem = problem or self._describe_missing(path, error)
            yield SourceRow(
                number,
                name,
                str(entry.paths[chosen.images[0].name])
                if len(chosen.images) == 1 and images
                else entry.place,
                () if problem else tuple(images),
                problem,
                entry.values.get(chosen.label.name) if chosen.label else None,
                entry.values.get(chosen.caption.name) if chosen.caption else None,
                entry.for_validation,
            )

    def _describe_missing(self, path: PurePosixPath, error: OSError) -> str:
        if not isinstance(error, FileNotFoundError):
            return f"{path} cannot be read: {error.strerror}"
        near = [e for e in FILE_ENDINGS if (self._folder / f"{path}{e}").is_file()]
        hint = f", but {path.name}{near[0]} does: write the name with its ending" if near else ""
        return f"{path} does not exist{hint}"

    def _read_metadata(self, files: list[Path]) -> list[_FolderRow]:
        entries: list[_FolderRow] = []
        for file in files:
            below = PurePosixPath(file.parent.relative_to(self._folder))
            rows = _read_jsonl(file) if file.suffix == ".jsonl" else _read_csv(file)
            entries += [self._entry(file, below, line, values) for line, values in rows]
        if not entries:
            raise DataError(f"{files[0]} has no rows")
        listed = {path for entry in entries for path in entry.paths.values()}
        unlisted = [path for path in list_files(self._folder).images if path not in listed]
        if unlisted:
            names = " and ".join(sorted({file.name for file in files}))
            text = f"{count(len(unlisted), 'image')} that {names} does not list"
            self.findings.append(FolderFinding("left out", text, "", printable_all(unlisted)))
        return self._merge_captions(entries)

    def _entry(
        self, file: Path, below: PurePosixPath, line: int, values: dict[str, object]
    ) -> _FolderRow:
        where, paths = f"{file}:{line}", {}
        for name in [n for n in values if n == FILE_NAME or n.endswith(f"_{FILE_NAME}")]:
            value = values.pop(name)
            column = IMAGE if name == FILE_NAME else name.removesuffix(f"_{FILE_NAME}")
            if value in (None, ""):
                continue
            path = PurePosixPath(str(value).replace("\\", "/"))
            if not isinstance(value, str) or path.is_absolute() or ".." in path.parts:
                raise DataError(
                    f"{where}: {name} is {value!r}; expected the path of a file below {file.parent}"
                )
            paths[column] = below / path
        place = f"{below / file.name}:{line}" if str(below) != "." else f"{file.name}:{line}"
        return _FolderRow(place, paths, values)

    def _merge_captions(self, entries: list[_FolderRow]) -> list[_FolderRow]:
        """Make one sample of the rows of one file that differ in nothing but their captions."""
        groups: dict[tuple[object, ...], _FolderRow] = {}
        kept: list[_FolderRow] = []
        for entry in entries:
            texts = {n: v for n, v in entry.values.items() if n.lower() in CAPTION_NAMES}
            rest = sorted((n, repr(v)) for n, v in entry.values.items() if n not in texts)
            first = groups.setdefault((tuple(entry.paths.items()), tuple(rest)), entry)
            if first is entry or not entry.paths:
                kept.append(entry)
                continue
            for name, value in texts.items():
                first.values[name] = [*_as_list(first.values.get(name)), *_as_list(value)] or None
        merged = len(entries) - len(kept)
        if merged:
            text = f"{count(merged, 'row repeats', 'rows repeat')} the file of another one: their "
            self.findings.append(FolderFinding("noted", f"{text}captions are added to its own"))
        return kept

    def _list_images(self) -> list[_FolderRow]:
        """Return all images, with the name of the folder that each is in as its class."""
        files = list_files(self._folder)
        self.findings += files.findings(captions=False)
        paths = files.images
        names = {path: _without_split(path).parent.name for path in paths}
        with_class = [path for path in paths if names[path]]
        if with_class and len(with_class) < len(paths):
            example = next(path for path in paths if not names[path])
            raise DataError(
                f"{self._folder}: {example} is not in a class folder, while others are; sort all "
                "images into such folders, or pack them with `orchestrator data pack`"
            )
        is_labelled = len(set(names.values())) > 1
        return [
            _FolderRow(str(path), {IMAGE: path}, {LABEL: names[path]} if is_labelled else {})
            for path in paths
        ]

    def _keep_split(self, entries: list[_FolderRow], split: SplitChoice) -> list[_FolderRow]:
        """Mark what is held out, training images first, and leave other parts out."""
        folders = {id(entry): _split_folder(entry) for entry in entries}
        names = sorted({folder for folder in folders.values() if folder})
        if not names and split.held_out is None:
            return entries
        if len(folders) > sum(map(bool, folders.values())):
            names.append("")
        splits = [SPLIT_WORDS[name.lower()] if name else None for name in names]
        parts, findings = held_out_parts(splits, names, "folder", split)
        self.findings += findings
        kept = []
        for entry in entries:
            if folders[id(entry)] in parts:
                entry.for_validation = parts[folders[id(entry)]]
                kept.append(entry)
        return sorted(kept, key=lambda entry: bool(entry.for_validation))


def find_metadata(folder: Path) -> list[Path]:
    """Return the metadata files of a folder and those below, hidden folders excepted."""
    found = sorted(path for name in METADATA_FILES for path in folder.rglob(name))
    return [
        path
        for path in found
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]


def _read_jsonl(file: Path) -> Iterator[tuple[int, dict[str, object]]]:
    for number, line in enumerate(_text(file).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except ValueError as error:
            raise DataError(f"{file}:{number} is not JSON: {error}") from error
        if not isinstance(values, dict):
            raise DataError(f"{file}:{number} is not a JSON object, as each line must be")
        _require_file_name(values, f"{file}:{number}")
        yield number, values


def _read_csv(file: Path) -> Iterator[tuple[int, dict[str, object]]]:
    reader = csv.DictReader(io.StringIO(_text(file), newline=""), strict=True)
    try:
        _require_file_name(dict.fromkeys(reader.fieldnames or ()), str(file))
        for row in reader:
            if None in row or None in row.values():
                raise DataError(
                    f"{file}:{reader.line_num} has not as many values as the first line has names; "
                    "put quotes around values with commas"
                )
            yield reader.line_num, dict(row)
    except csv.Error as error:
        raise DataError(f"{file}:{reader.line_num} is not CSV: {error}") from error


def _require_file_name(values: dict[str, object], where: str) -> None:
    if not any(name == FILE_NAME or name.endswith(f"_{FILE_NAME}") for name in values):
        listed = ", ".join(map(repr, values)) or "none"
        raise DataError(
            f"{where} has no column {FILE_NAME} (or ..._{FILE_NAME}), but {listed}; columns are "
            "separated by commas"
        )


def _text(file: Path) -> str:
    try:
        return read_text(file)
    except ValueError as error:
        raise DataError(f"{file} {error}") from error
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}") from error


def _as_list(value: object) -> list[object]:
    if value is None:
        return []
    return list(value) if isinstance(value, list) else [value]


def _split_folder(entry: _FolderRow) -> str:
    """Return the first folder of an entry's path that is named as a split, or nothing."""
    for path in entry.paths.values():
        for part in path.parts[:-1]:
            if part.lower() in SPLIT_WORDS:
                return part
    return ""


def _without_split(path: PurePosixPath) -> PurePosixPath:
    parts = [p for p in path.parts[:-1] if p.lower() not in SPLIT_WORDS]
    return PurePosixPath(*parts, path.name)


def _find_columns(entries: list[_FolderRow]) -> tuple[Column, ...]:
    images = dict.fromkeys(name for entry in entries for name in entry.paths)
    names = dict.fromkeys(name for entry in entries for name in entry.values)
    columns = [Column(name, "image", "files") for name in images]
    for name in names:
        kinds = {_kind(entry.values.get(name)) for entry in entries} - {None}
        kind = kinds.pop() if len(kinds) == 1 else "other"
        text = {"text": "text", "integer": "whole numbers"}.get(str(kind), "values")
        columns.append(Column(name, kind or "other", text))
    return tuple(columns)


def _kind(value: object) -> ColumnKind | None:
    """Return the kind of a value; None if it has none, as null."""
    if value is None:
        return None
    if isinstance(value, str):
        return "text"
    if isinstance(value, int):
        return "integer"
    if isinstance(value, list) and all(isinstance(text, str) for text in value):
        return "text"
    return "other"

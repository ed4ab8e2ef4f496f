"""List the files of a folder: those that may be images, and all that are not taken."""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from orchestrator.addresses import system_folder_problem
from orchestrator.data.format.image_files import FILE_ENDINGS, SHORT_ENDINGS
from orchestrator.data.prepare.findings import FolderFinding, count, printable, printable_all
from orchestrator.errors import DataError
from orchestrator.system_folders import SYSTEM_FOLDERS, system_folder

MAX_ENDINGS = 6
"""Endings that the line of files left out names."""
_SYSTEM_NAMES = tuple(PurePosixPath(folder).name for folder in SYSTEM_FOLDERS)


@dataclass
class FolderFiles:
    """Files below a folder, by their paths relative to it."""

    folder: Path
    images: list[PurePosixPath] = field(default_factory=list)
    """Files that are images by their endings, ordered by path; links are followed."""
    texts: set[PurePosixPath] = field(default_factory=set)
    """Files that end in .txt, which may be captions."""
    others: list[PurePosixPath] = field(default_factory=list)
    """Files with other endings."""
    hidden: list[str] = field(default_factory=list)
    """Files whose names start with a dot, and such folders, which end in a slash."""
    loops: list[str] = field(default_factory=list)
    """Links to a folder that they are in."""
    special: list[str] = field(default_factory=list)
    """Sockets, pipes, devices, and folders such as /proc."""
    unreadable: list[str] = field(default_factory=list)
    """Folders that cannot be read, with the reason."""

    def findings(self, captions: bool) -> Iterator[FolderFinding]:
        """Yield what is left out; .txt files are not if they are read as ``captions``."""
        if self.hidden:
            what = count(len(self.hidden), "hidden file or folder", "hidden files and folders")
            advice = "rename what is to be packed"
            yield FolderFinding("left out", what, advice, printable_all(self.hidden))
        others = [*self.others, *([] if captions else self._texts_without_image())]
        if others:
            are = count(len(others), "file is not an image", "files are not images")
            text = f"{are} by {'its ending' if len(others) == 1 else 'their endings'}"
            advice = "convert or rename what is to be packed"
            text = f"{text} ({_count_endings(others)})"
            yield FolderFinding("left out", text, advice, printable_all(others))
        if self.loops:
            text = count(len(self.loops), "link leads", "links lead") + " back to a folder above"
            yield FolderFinding("left out", text, "", printable_all(self.loops))
        if self.special:
            text = count(len(self.special), "entry is", "entries are") + " neither file nor folder"
            yield FolderFinding("left out", text, "", printable_all(self.special))
        if self.unreadable:
            text = count(len(self.unreadable), "folder") + " cannot be read"
            yield FolderFinding("refused", text, "change the permissions", tuple(self.unreadable))

    def captions_beside(self) -> list[PurePosixPath]:
        """Return the text files that have the name of an image."""
        return [p for path in self.images if (p := path.with_suffix(".txt")) in self.texts]

    def _texts_without_image(self) -> list[PurePosixPath]:
        return sorted(self.texts - set(self.captions_beside()))


def list_files(folder: Path) -> FolderFiles:
    """List all files below ``folder``. Raises DataError if it is no folder or holds no images."""
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder; give the folder that holds the images")
    if problem := system_folder_problem(str(folder)):
        raise DataError(f"{folder} {problem} of images")
    found = FolderFiles(folder)
    _walk(found, PurePosixPath(), (_identity(folder),))
    found.images.sort()
    found.others.sort()
    if not found.images:
        lines = "".join(f"; {finding.line()}" for finding in found.findings(captions=False))
        raise DataError(f"{folder} holds no images ({SHORT_ENDINGS}){lines}")
    return found


def _walk(found: FolderFiles, below: PurePosixPath, ancestors: tuple[tuple[int, int], ...]) -> None:
    try:
        entries = sorted(os.scandir(found.folder / below), key=lambda entry: entry.name)
    except OSError as error:
        found.unreadable.append(f"{printable(below)} cannot be read ({error.strerror})")
        return
    for entry in entries:
        path = below / entry.name
        is_dir = entry.is_dir()
        if entry.name.startswith("."):
            found.hidden.append(f"{path}/" if is_dir else str(path))
        elif (
            is_dir
            and (entry.is_symlink() or entry.name in _SYSTEM_NAMES)
            and (system_folder(entry.path))
        ):
            found.special.append(f"{path}/")
        elif is_dir:
            identity = _identity(Path(entry.path))
            if identity in ancestors:
                found.loops.append(str(path))
            else:
                _walk(found, path, (*ancestors, identity))
        elif path.suffix.lower() in FILE_ENDINGS and (entry.is_file() or entry.is_symlink()):
            found.images.append(path)  # a link to nothing is a broken file
        elif not (entry.is_file() or entry.is_symlink()):
            found.special.append(str(path))
        elif path.suffix.lower() == ".txt":
            found.texts.add(path)
        else:
            found.others.append(path)


def _identity(folder: Path) -> tuple[int, int]:
    stat = folder.stat()
    return stat.st_dev, stat.st_ino


def _count_endings(paths: list[PurePosixPath]) -> str:
    """Return how many files have which ending: 2 .heic, 1 without an ending."""
    endings = Counter(path.suffix.lower() for path in paths).most_common()
    named = [
        f"{number:,} {printable(ending) if ending else 'without an ending'}"
        for ending, number in endings[:MAX_ENDINGS]
    ]
    rest = sum(number for _, number in endings[MAX_ENDINGS:])
    return ", ".join([*named, *([count(rest, "other")] if rest else [])])

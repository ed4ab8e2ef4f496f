"""What the scan of a folder tells the user, one line for each kind of thing."""

import os
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

NUM_EXAMPLES = 3
"""Examples in a line of the report."""
MAX_LISTED = 10
"""Examples that an error lists; the report file has all."""


@dataclass(frozen=True)
class FolderFinding:
    """One thing to know about a folder before it is packed."""

    kind: Literal["guessed", "left out", "changed", "noted", "refused"]
    text: str
    """How many files, and what is done with them, or what is wrong."""
    advice: str = ""
    """The option that changes it, or what to do."""
    examples: tuple[str, ...] = ()
    """All files concerned; those of a refusal start with the file and say what is wrong."""

    def line(self) -> str:
        """Return one line with the first examples."""
        text = f"{self.text} ({self.advice})" if self.advice else self.text
        more = ", ..." if len(self.examples) > NUM_EXAMPLES else ""
        examples = ", ".join(self.examples[:NUM_EXAMPLES]) + more
        return f"{text}: {examples}" if examples else text

    def refusal(self, folder: Path | str | None = None) -> str:
        """Return the message of a refusal, with ten examples on lines of their own."""
        where = f"{folder}: " if folder else ""
        if len(self.examples) == 1:
            found = f"{folder}/{self.examples[0]}" if folder else self.examples[0]
            return self._advised(found)
        text = self._advised(f"{where}{self.text}")
        listed = self.examples[:MAX_LISTED]
        rest = len(self.examples) - len(listed)
        lines = [*listed, *([f"and {rest:,} more"] if rest else [])]
        return "\n  ".join((f"{text}:", *lines)) if lines else text

    def _advised(self, text: str) -> str:
        return f"{text}; {self.advice}" if self.advice else text


def count(number: int, what: str, plural: str = "") -> str:
    """Return the number with its noun: 1 file, 2 files."""
    return f"{number:,} {what if number == 1 else plural or what + 's'}"


def printable(path: PurePosixPath | str) -> str:
    r"""Return a path as text that can be printed: bytes that are not UTF-8 as \xNN."""
    if (text := str(path)).isascii() and text.isprintable():
        return text
    text = os.fsencode(text).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def printable_all(paths: Iterable[PurePosixPath | str]) -> tuple[str, ...]:
    """Return paths as text, in their order."""
    return tuple(printable(path) for path in paths)


def wrap(text: str, indent: int, width: int = 80) -> str:
    """Wrap a line of the report; the lines after the first are indented."""
    return textwrap.fill(
        text,
        width,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def human_bytes(number: int) -> str:
    """Return a number of bytes with a unit: 1.5 MB."""
    value, units = float(number), ("bytes", "kB", "MB", "GB", "TB")
    for unit in units[:-1]:
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} {units[-1]}"

"""Read text files as editors write them: UTF-8 or UTF-16, with any line ends."""

import codecs
import re
from pathlib import Path

_BYTE_ORDER_MARKS = (  # UTF-32's first: its mark starts with UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def read_text(path: Path) -> str:
    r"""Read a text file: UTF-8, or UTF-16 or UTF-32 with a byte order mark; line ends become \n.

    Raises OSError, or ValueError if it is in another encoding; its message says what to do.
    """
    data = path.read_bytes()
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"is not {encoding.removesuffix('-sig').upper()} text ({error.reason} at byte "
            f"{error.start}); save it as UTF-8"
        ) from error
    if "\0" in text:
        raise ValueError("holds zero bytes, as UTF-16 without a mark does; save it as UTF-8")
    return re.sub(r"\r\n?", "\n", text)


def read_lines(path: Path) -> tuple[str, ...]:
    """Read the lines of a text file, without empty ones at its end. Raises as ``read_text``."""
    text = read_text(path).rstrip("\n")
    return tuple(text.split("\n")) if text else ()

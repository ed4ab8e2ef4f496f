"""Parse the class and the caption of a sample."""

from orchestrator.errors import CorruptSample

MAX_LABEL_BYTES = 32


def class_number(data: bytes | memoryview) -> int | None:
    """Parse a class number; white space around it does not matter. None if it is not a number."""
    text = bytes(data[:MAX_LABEL_BYTES]).strip()
    # int() refuses a number of thousands of digits.
    is_number = len(data) <= MAX_LABEL_BYTES and text.isdigit() and len(text) < 10
    return int(text) if is_number else None


def parse_label(data: bytes | memoryview, num_classes: int, where: str) -> int:
    """Parse a class number below ``num_classes``. Raises CorruptSample, prefixed by ``where``."""
    number = class_number(data)
    if number is None or number >= num_classes:
        raise CorruptSample(
            f"{where}: {bytes(data[:20])!r} is not a class number from 0 to {num_classes - 1}"
        )
    return number


def parse_caption(data: bytes | memoryview, where: str) -> str:
    """Decode a caption. Raises CorruptSample, prefixed by ``where``."""
    try:
        return bytes(data).decode()
    except UnicodeDecodeError as error:
        raise CorruptSample(f"{where}: the caption is not UTF-8: {error}") from error

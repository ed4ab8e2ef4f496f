"""Read stored records: JSON files of runs, checkpoints, sweeps and models, as typed values.

Whatever a file holds, the caller gets a value of the type that it asked for, or one error with the
place and what to do. The parser of pydantic bounds the depth.
"""

from functools import lru_cache
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from orchestrator.errors import DataError

T = TypeVar("T")
MAX_RECORD_BYTES = 64 << 20
"""No record is larger: a sweep's trial with a million results takes less."""
MAX_SHOWN = 200
"""Characters of a parser's message that are shown."""


class DamagedRecord(DataError):
    """A stored record is not what was written."""

    def __init__(self, where: str, problem: str, remedy: str) -> None:
        super().__init__(where, problem, remedy)  # as pickle makes it again
        self.where, self.remedy = where, remedy
        self.problem = " ".join(problem.split())[:MAX_SHOWN]

    def __str__(self) -> str:
        return f"{self.where} is damaged: {self.problem}; {self.remedy}"


def parse_record(kind: type[T], content: bytes, where: str, remedy: str) -> T:
    """Parse JSON into ``kind``, such as a dataclass, without converting types.

    Raises DamagedRecord, which names ``where`` and ends with ``remedy``, what to do.
    """
    try:
        parsed: T = _adapter(cast("Any", kind)).validate_json(content, strict=True)
        return parsed
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part)[:40] for part in first["loc"])
        problem = f"{place}: {first['msg']}" if place else str(first["msg"])
        raise DamagedRecord(where, problem, remedy) from error


def parse_format(content: bytes, where: str, remedy: str, default: int | None = None) -> int:
    """Return the format number of a record, or ``default``. Raises as ``parse_record`` does."""
    found = parse_record(dict[str, Any], content, where, remedy).get("format", default)
    if type(found) is not int or not 0 < found < 1_000_000:
        raise DamagedRecord(where, "format: it is not a format number", remedy)
    return found


@lru_cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)

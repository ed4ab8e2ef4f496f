"""Choose the values that become black and white, one range for all images of a set."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from orchestrator.data.format.pixel_values import ValueExtent, ValueRange
from orchestrator.errors import DataError, UsageError

AskedRange = ValueRange | Literal["auto"] | None
"""What the user asked for: a range, the lowest to the highest value of the set, or neither."""

DIM_FRACTION = 1 / 4
"""A set that uses less of its range than this is worth a note."""
FLAT_FRACTION = 8 / 256
"""A set that uses less than this would be packed as flat surfaces, and is refused."""
_8_BIT = "8-bit"
_USUAL_RANGES = {
    # The values of a set are taken for the first of these that holds them all.
    "32-bit float": (ValueRange(0, 1), ValueRange(-1, 1), ValueRange(0, 255)),
    "32-bit integer": (ValueRange(0, 255), ValueRange(0, 65535)),
}
_HOW = "--range LOW,HIGH gives the values of black and white, --range auto takes the set's"


@dataclass(frozen=True)
class ChosenRange:
    """Result of ``choose_value_range``."""

    value_range: ValueRange | None
    """For ``images.load_image``; None if every file says which value is white."""
    notes: tuple[str, ...] = ()
    """What the user should know: what was guessed, and what is packed dark or clipped."""


@dataclass
class _Kind:
    """The lowest and the highest value of the files of one kind, and where they are."""

    low: float
    low_file: str
    high: float
    high_file: str
    full_scale: int | None
    num_files: int = 1

    def add(self, other: "_Kind") -> None:
        if other.low < self.low:
            self.low, self.low_file = other.low, other.low_file
        if other.high > self.high:
            self.high, self.high_file = other.high, other.high_file
        self.num_files += other.num_files


@dataclass
class ValueExtents:
    """The extents of many files, of which it keeps the extremes for each kind of values."""

    kinds: dict[str, _Kind] = field(default_factory=dict)

    def add(self, file: str, extent: ValueExtent | None) -> None:
        """Count the extent of a file; None stands for 8 bits and the full range."""
        each = extent or ValueExtent(0, 255, _8_BIT, 255)
        self._add(each.kind, _Kind(each.low, file, each.high, file, each.full_scale))

    def merge(self, other: "ValueExtents") -> None:
        """Add the extents of other files."""
        for name, kind in other.kinds.items():
            self._add(name, kind)

    def _add(self, name: str, kind: _Kind) -> None:
        if name in self.kinds:
            self.kinds[name].add(kind)
        else:
            self.kinds[name] = _Kind(**vars(kind))


def parse_range(text: str | None) -> AskedRange:
    """Parse the value of --range: LOW,HIGH or auto.

    >>> parse_range("-1,1")
    ValueRange(low=-1.0, high=1.0, of_8_bit=False)

    Raises UsageError.
    """
    if text is None or text == "auto":
        return text  # type: ignore[return-value]
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        low = high = 0.0
    if not -float("inf") < low < high < float("inf"):
        raise UsageError(
            f"--range: {text!r} is not a range; give the values of black and white as LOW,HIGH, "
            "such as 0,1, or auto"
        )
    return ValueRange(low, high)


def choose_value_range(
    extents: ValueExtents | Mapping[str, ValueExtent | None], asked: AskedRange = None
) -> ChosenRange:
    """Choose one range for all files of a set, by their ``value_extent``.

    Integers of 8, 12 and 16 bits have a range of their own. Floats and 32-bit integers get the
    first usual range that holds them all, such as 0 to 1, if they are the only kind of values.
    ``asked`` changes it; in a set of several kinds it does not apply to 8-bit files.

    >>> choose_value_range({"a.tif": ValueExtent(0, 0.9, "32-bit float", None)}).value_range
    ValueRange(low=0.0, high=1.0, of_8_bit=False)

    Raises DataError, naming a file, its values and --range, if there is no such range, if several
    kinds of values are mixed, or if the set would be packed as flat surfaces.
    """
    found = extents if isinstance(extents, ValueExtents) else _collect(extents)
    deep = {name: kind for name, kind in found.kinds.items() if name != _8_BIT}
    ranged = deep or found.kinds
    if not ranged:
        return ChosenRange(None)
    if asked is not None:
        chosen = _spread(ranged.values()) if asked == "auto" else asked
        return _as_asked(ValueRange(chosen.low, chosen.high, of_8_bit=not deep), ranged, asked)
    unknown = {name: kind for name, kind in deep.items() if kind.full_scale is None}
    if not unknown:
        notes = (_check_use(ValueRange(0, k.full_scale or 0), n, k) for n, k in ranged.items())
        return ChosenRange(None, tuple(note for note in notes if note))
    if len(found.kinds) > 1:
        raise _mixed(found.kinds, unknown)
    ((name, kind),) = unknown.items()
    guess = _usual_range(name, kind)
    told = f"{_describe(name, kind)}; {guess} is taken for black and white ({_HOW})"
    note = _check_use(guess, name, kind)
    return ChosenRange(guess, (told, *([note] if note else [])))


def _collect(extents: Mapping[str, ValueExtent | None]) -> ValueExtents:
    found = ValueExtents()
    for file, extent in extents.items():
        found.add(file, extent)
    return found


def _spread(kinds: Iterable[_Kind]) -> ValueRange:
    """Return the range from the lowest to the highest value."""
    every = list(kinds)
    low, high = min(every, key=lambda k: k.low), max(every, key=lambda k: k.high)
    if low.low == high.high:
        raise DataError(
            f"{low.low_file} and all other images have the value {low.low:.7g} alone: --range auto "
            "finds no range"
        )
    return ValueRange(low.low, high.high)


def _as_asked(chosen: ValueRange, kinds: Mapping[str, _Kind], asked: AskedRange) -> ChosenRange:
    if asked == "auto":
        lowest = min(kinds.values(), key=lambda k: k.low).low_file
        highest = max(kinds.values(), key=lambda k: k.high).high_file
        where = lowest if lowest == highest else f"{lowest} and {highest}"
        return ChosenRange(chosen, (f"--range auto is {chosen}, the extremes of {where}",))
    notes = []
    for name, kind in kinds.items():
        if kind.high < chosen.low or kind.low > chosen.high:
            raise DataError(f"{_describe(name, kind)}, none of them within --range {chosen}")
        if kind.low < chosen.low or kind.high > chosen.high:
            notes.append(f"{_describe(name, kind)}; those outside --range {chosen} are clipped")
        elif _used(chosen, kind) < DIM_FRACTION:
            notes.append(f"{_describe(name, kind)}, less than a quarter of --range {chosen}")
    return ChosenRange(chosen, tuple(notes))


def _usual_range(name: str, kind: _Kind) -> ValueRange:
    for usual in _USUAL_RANGES[name]:
        inside = usual.low <= kind.low and kind.high <= usual.high
        # Depths in metres from 0 to 80 are within 0 to 255 too, but that is not their range.
        if inside and (usual.high <= 1 or kind.high > usual.high / 2):
            return usual
    file = kind.high_file if kind.low >= 0 else kind.low_file
    values = "" if kind.num_files == 1 else f" in {kind.num_files:,} files"
    raise DataError(
        f"{file}: its {name} values do not say which are black and white: they go from "
        f"{kind.low:.7g} to {kind.high:.7g}{values}; {_HOW}, {kind.low:.7g},{kind.high:.7g}"
    )


def _check_use(value_range: ValueRange, name: str, kind: _Kind) -> str:
    """Return a note if the values use less than a quarter of the range; DataError if almost none.

    8-bit images are what anyone sees who opens them: flat ones are no mistake of the format.
    """
    used = _used(value_range, kind)
    remedy = f"--range {kind.low:.7g},{kind.high:.7g}" if kind.high > kind.low else "--range"
    what = f"{_describe(name, kind)}, of {value_range.low:.7g} to {value_range.high:.7g}"
    if used < FLAT_FRACTION and name != _8_BIT:
        raise DataError(
            f"{what}: they would be packed as flat surfaces, of fewer than 8 levels; give the "
            f"values of black and white, such as {remedy}, or --range {value_range}"
        )
    if used < DIM_FRACTION:
        return f"{what}: less than a quarter is used; {remedy} spreads them from black to white"
    return ""


def _used(value_range: ValueRange, kind: _Kind) -> float:
    """Return the fraction of the range that the values use."""
    return (kind.high - kind.low) / (value_range.high - value_range.low)


def _describe(name: str, kind: _Kind) -> str:
    files = f"{kind.num_files:,} files have" if kind.num_files > 1 else f"{kind.low_file} has"
    where = f" ({kind.high_file})" if kind.num_files > 1 else ""
    return f"{files} {name} values from {kind.low:.7g} to {kind.high:.7g}{where}"


def _mixed(kinds: Mapping[str, _Kind], unknown: Mapping[str, _Kind]) -> DataError:
    listed = "; ".join(_describe(name, kind) for name, kind in kinds.items())
    some = next(iter(unknown.values()))
    kept = "; 8-bit files keep theirs" if _8_BIT in kinds else ""
    return DataError(
        f"the images have several kinds of values ({listed}); give one range for all with "
        f"--range LOW,HIGH, such as {some.low:.7g},{some.high:.7g}, or --range auto{kept}"
    )

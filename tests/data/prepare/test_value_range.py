"""The one range of a set: guessed where it is usual, asked for, or refused with the option."""

from collections.abc import Mapping

import pytest

from orchestrator.data.format.pixel_values import ValueExtent, ValueRange
from orchestrator.data.prepare.value_range import ValueExtents, choose_value_range, parse_range
from orchestrator.errors import DataError, UsageError

Extents = Mapping[str, ValueExtent | None]


def floats(low: float, high: float) -> ValueExtent:
    return ValueExtent(low, high, "32-bit float", None)


def integers(low: float, high: float) -> ValueExtent:
    return ValueExtent(low, high, "32-bit integer", None)


def deep(low: float, high: float) -> ValueExtent:
    return ValueExtent(low, high, "16-bit", 65535)


def bright(low: float, high: float) -> ValueExtent:
    return ValueExtent(low, high, "8-bit", 255)


@pytest.mark.parametrize(
    ("extents", "expected"),
    [
        ({"a": floats(0.1, 0.9), "b": floats(0, 1)}, ValueRange(0, 1)),
        ({"a": floats(-0.8, 0.9), "b": floats(0, 1)}, ValueRange(-1, 1)),
        ({"a": floats(0, 254.5)}, ValueRange(0, 255)),
        ({"a": integers(0, 200)}, ValueRange(0, 255)),
        ({"a": integers(0, 40000)}, ValueRange(0, 65535)),
        ({"a": deep(9, 60000), "b": deep(0, 100)}, None),
        ({"a": deep(0, 60000), "b": None, "c": bright(0, 255)}, None),
        ({"a": bright(0, 200), "b": None}, None),
    ],
)
def test_the_usual_range_that_holds_all_files_is_taken(
    extents: Extents, expected: ValueRange | None
) -> None:
    chosen = choose_value_range(extents)
    assert chosen.value_range == expected
    # What was guessed is said, with the option that changes it.
    assert (expected is not None) == any("--range" in note for note in chosen.notes)


@pytest.mark.parametrize(
    ("extents", "message"),
    [
        ({"a": floats(0, 0.5), "b": floats(0, 80)}, r"^b: .* from 0 to 80 in 2 files.* --range"),
        ({"a": floats(-2, 1)}, r"^a: .* from -2 to 1; --range LOW,HIGH.* -2,1$"),
        ({"a": integers(-1000, 3000)}, r"^a: .* from -1000 to 3000; --range"),
        ({"a": deep(0, 255)}, r"a has 16-bit .* fewer than 8 levels.*--range 0,255"),
        ({"a": floats(0, 0.001)}, r"a has 32-bit float .* flat surfaces.*--range 0,0\.001"),
        ({"a": None, "b": floats(0, 1)}, r"several kinds .*\(a has 8-bit.*b has 32-bit float"),
        ({"a": deep(0, 60000), "b": floats(0, 1)}, "several kinds .*--range LOW,HIGH"),
    ],
)
def test_other_sets_are_refused_with_a_file_its_values_and_the_option(
    extents: Extents, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        choose_value_range(extents)


@pytest.mark.parametrize(
    ("extents", "low", "high", "of_8_bit"),
    [
        ({"a": floats(-3, 5), "b": floats(0, 812.5)}, -3, 812.5, False),
        ({"a": deep(7, 4095), "b": deep(9, 80)}, 7, 4095, False),
        ({"a": bright(0, 255), "b": floats(0, 80)}, 0, 80, False),
        ({"a": bright(3, 12), "b": bright(0, 40)}, 0, 40, True),
    ],
)
def test_auto_takes_the_extremes_of_the_set_without_its_8_bit_files(
    extents: Extents, low: float, high: float, of_8_bit: bool
) -> None:
    chosen = choose_value_range(extents, "auto")
    assert chosen.value_range == ValueRange(low, high, of_8_bit)
    assert f"--range auto is {low:g},{high:g}" in chosen.notes[0]


def test_auto_of_a_single_value_is_refused() -> None:
    with pytest.raises(DataError, match="a and all other images have the value 3 alone"):
        choose_value_range({"a": floats(3, 3)}, "auto")


def test_values_outside_the_range_that_was_asked_for_are_told() -> None:
    asked = ValueRange(0, 10)
    assert choose_value_range({"a": floats(0, 10)}, asked).notes == ()
    (note,) = choose_value_range({"a": floats(0, 10), "b": floats(-4, 3)}, asked).notes
    assert "2 files have 32-bit float values from -4 to 10" in note
    assert "outside --range 0,10 are clipped" in note
    with pytest.raises(DataError, match=r"a has .* from 200 to 300, none of them within --range"):
        choose_value_range({"a": floats(200, 300)}, asked)


@pytest.mark.parametrize(
    ("extents", "range_that_spreads"),
    [({"a": deep(0, 4095)}, "0,4095"), ({"a": bright(0, 40), "b": bright(2, 9)}, "0,40")],
)
def test_a_set_that_uses_less_than_a_quarter_of_its_range_is_told(
    extents: Extents, range_that_spreads: str
) -> None:
    (note,) = choose_value_range(extents).notes
    assert "less than a quarter" in note
    assert f"--range {range_that_spreads} " in note
    spread = choose_value_range(extents, parse_range(range_that_spreads))
    assert spread.notes == ()


def test_extents_of_many_files_are_merged_to_the_same_choice() -> None:
    every = {f"{n}": floats(-n, n * n) for n in range(1, 9)} | {"x": floats(0, 3)}
    halves = [ValueExtents(), ValueExtents()]
    for number, (file, extent) in enumerate(every.items()):
        halves[number % 2].add(file, extent)
    halves[0].merge(halves[1])
    assert choose_value_range(halves[0], "auto") == choose_value_range(every, "auto")
    assert choose_value_range(every, "auto").value_range == ValueRange(-8, 64)


@pytest.mark.parametrize("text", ["", "1", "1,0", "0,0", "0,inf", "nan,1", "a,b", "0,1,2", "0;1"])
def test_a_range_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"--range: .* is not a range; .* such as 0,1, or auto"):
        parse_range(text)

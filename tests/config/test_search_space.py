"""Values that are drawn from a search space, and values that are clipped to it."""

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.config.search_space import clip, draw, grid_point, grid_size
from orchestrator.config.sweep import Distribution, Value


def numbers() -> st.SearchStrategy[Distribution]:
    bounds = st.tuples(st.floats(-1e6, 1e6), st.floats(1, 1e6)).map(lambda p: (p[0], sum(p)))
    whole = st.tuples(st.integers(-100, 100), st.integers(1, 100))

    def stepped(bounds: tuple[float, float], share: float) -> Distribution:
        low, high = bounds
        return Distribution(quniform=[low, high, (high - low) * share])

    return st.one_of(
        bounds.map(lambda p: Distribution(uniform=list(p))),
        bounds.filter(lambda p: p[0] > 0).map(lambda p: Distribution(loguniform=list(p))),
        whole.map(lambda p: Distribution(randint=[p[0], sum(p)])),
        st.builds(stepped, bounds, st.floats(0.01, 1)),
    )


@settings(deadline=None)
@given(distribution=numbers(), seed=st.integers(), value=st.floats(-1e9, 1e9))
def test_drawn_and_clipped_values_are_in_the_range_and_clipping_is_idempotent(
    distribution: Distribution, seed: int, value: float
) -> None:
    low, high = [float(bound) for bound in distribution.args[:2]]  # type: ignore[arg-type]
    for found in (draw(distribution, random.Random(seed)), clip(distribution, value)):
        assert isinstance(found, int | float)
        assert low <= found <= high
        assert clip(distribution, found) == found
        if distribution.randint:
            assert type(found) is int
        if distribution.quniform:
            steps = (found - low) / distribution.quniform[2]
            assert steps == pytest.approx(round(steps), abs=1e-6)


def test_clipping_returns_the_nearest_value() -> None:
    steps, tenths = Distribution(quniform=[16, 60, 8]), Distribution(quniform=[0.1, 0.5, 0.1])
    assert [clip(steps, v) for v in (0, 19, 21, 57, 99)] == [16, 16, 24, 56, 56]
    assert type(clip(steps, 19)) is int
    assert [clip(tenths, v) for v in (0.0, 0.31, 0.9)] == [0.1, 0.3, 0.5]
    assert [clip(Distribution(randint=[2, 5]), v) for v in (1.9, 3.6, 9)] == [2, 4, 5]
    assert clip(Distribution(choice=["a", 7]), 8) == 8
    assert clip(Distribution(grid=[1, 2]), "b") == "b"


def count_draws(distribution: Distribution, count: int = 4000) -> Counter[Value]:
    rng, found = random.Random("spread"), Counter[Value]()
    for _ in range(count):
        found[draw(distribution, rng)] += 1
    return found


@pytest.mark.parametrize(
    ("distribution", "expected"),
    [
        (Distribution(quniform=[0.1, 0.45, 0.1]), [0.1, 0.2, 0.3, 0.4]),
        (Distribution(quniform=[0.1, 0.3, 0.1]), [0.1, 0.2, 0.3]),
        (Distribution(quniform=[32, 128, 32]), [32, 64, 96, 128]),
        (Distribution(randint=[-1, 2]), [-1, 0, 1, 2]),
        (Distribution(choice=["a", None, True]), ["a", None, True]),
        (Distribution(grid=[3, 1]), [3, 1]),
    ],
)
def test_all_values_are_equally_likely(distribution: Distribution, expected: list[Value]) -> None:
    found = count_draws(distribution)
    assert set(found) == set(expected)
    assert all(n == pytest.approx(4000 / len(expected), rel=0.12) for n in found.values())


def test_uniform_draws_are_uniform_and_loguniform_ones_in_their_logarithm() -> None:
    rng = random.Random("evenly")
    plain = [draw(Distribution(uniform=[-1, 3]), rng) for _ in range(4000)]
    rates = [draw(Distribution(loguniform=[1e-4, 1]), rng) for _ in range(4000)]
    for quarter in range(4):
        low, high = 10.0 ** (quarter - 4), 10.0 ** (quarter - 3)
        assert sum(low <= r < high for r in rates) == pytest.approx(1000, rel=0.12)  # type: ignore[operator]
        low = quarter - 1.0
        assert sum(low <= p < low + 1 for p in plain) == pytest.approx(1000, rel=0.12)  # type: ignore[operator]


def test_the_grid_has_every_combination_and_its_first_field_changes_slowest() -> None:
    space = {
        "b": Distribution(grid=[2, 1]),
        "r": Distribution(uniform=[0, 1]),
        "a": Distribution(grid=["x", None]),
    }
    points = [grid_point(space, number) for number in range(grid_size(space))]
    assert points == [
        {"b": 2, "a": "x"}, {"b": 2, "a": None}, {"b": 1, "a": "x"}, {"b": 1, "a": None},
    ]  # fmt: skip
    assert [list(row) for row in points] == [["b", "a"]] * 4
    assert (grid_size({"r": space["r"]}), grid_point({"r": space["r"]}, 0)) == (1, {})


def test_a_point_of_a_huge_grid_is_found_at_once() -> None:
    space = {name: Distribution(grid=list(range(10_000))) for name in "abcdef"}
    assert grid_size(space) == 10**24
    assert grid_point(space, 123_456_789) == {"a": 0, "b": 0, "c": 0, "d": 1, "e": 2345, "f": 6789}

"""Every number and every text of a job has bounds, and what lies beyond is refused in one line."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.config.json_schema import job_schema
from orchestrator.config.load import load_job, load_text
from orchestrator.errors import JobFileError
from orchestrator.models.base import model_names
from services.fixtures_jobs import Load

REFERENCE = {"type": "string", "pattern": r"\$\{env:"}
VALID = "model: {name: pix2pix}\ndata: {train: x}\ntrain: {batch_size: 1, epochs: 1}\n"


def leaves(part: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema of a single value or a list within ``part``, with its path."""
    if part == REFERENCE or "$ref" in part or "const" in part or "enum" in part:
        return
    yield path, part
    for name, inner in part.get("properties", {}).items():
        yield from leaves(inner, f"{path}.{name}")
    for name, inner in part.get("$defs", {}).items():
        yield from leaves(inner, name)
    for inner in (*part.get("anyOf", ()), *part.get("oneOf", ())):
        yield from leaves(inner, path)
    for key in ("items", "additionalProperties"):
        if isinstance(part.get(key), dict):
            yield from leaves(part[key], f"{path}[]")


def test_every_number_text_and_list_of_every_section_and_model_has_bounds() -> None:
    unbounded, seen = [], set()
    for path, part in leaves(job_schema(), "job"):
        kind = part.get("type")
        seen.add(path.partition(".")[0])
        if kind in ("integer", "number"):
            low, high = {"minimum", "exclusiveMinimum"}, {"maximum", "exclusiveMaximum"}
            if not (part.keys() & low and part.keys() & high):
                unbounded.append(path)
        elif (kind == "string" and "maxLength" not in part) or (
            kind == "array" and "maxItems" not in part
        ):
            unbounded.append(path)
    assert unbounded == []
    assert seen >= {"job", "TrainSection", "SweepSection", *model_names()}


BEYOND = {
    "a batch size of 1e40": ("train.batch_size=1" + 40 * "0", "at most 1,048,576"),
    "a learning rate of 1e9": ("model.learning_rate=1e9", "above 0 and at most 10"),
    "filters beyond any memory": ("model.filters=1000000000", "at most 4,096"),
    "a huge image": ("model.image_size=1048576", "at most 8,192"),
    "a name of 5,000 characters": (f"name={'a' * 5000}", "has 5,000 characters; use at most 100"),
    "a path of 5,000 characters": (f"data.train={'a' * 5000}", "use at most 4,096"),
    "more workers than exist": ("cluster.workers=1000000000", "at most 1,000,000"),
    "a million million epochs": ("train.epochs=1e12", "at most 1,000,000"),
    "a negative time": ("data.retry_timeout_s=-1", "above 0"),
    "an exabyte of memory": ("data.prefetch_memory=1000000TiB", "is out of range"),
    "no memory": ("data.read_size=0", "is out of range"),
    "infinity": ("model.learning_rate=.inf", "is not a finite number"),
    "not a number": ("train.max_grad_norm=.nan", "is not a finite number"),
    "a number that overflows": ("model.l1_weight=1e400", "is too large for a number"),
    "a negative seed": ("train.seed=-1", "at least 0"),
    "an empty path": ("storage=''", "is not allowed here"),
}


@pytest.mark.parametrize("case", BEYOND)
def test_a_value_beyond_sense_is_refused_in_one_short_line(load: Load, case: str) -> None:
    override, expected = BEYOND[case]
    with pytest.raises(JobFileError) as caught:
        load("name: a\n" + VALID, override)
    message = str(caught.value)
    key = override.partition("=")[0]
    assert key in message
    assert expected in message
    assert "\n" not in message
    assert len(message.partition(f"{key}: ")[2]) < 200


def test_a_sweep_may_not_draw_values_beyond_sense(load: Load) -> None:
    sweep = "sweep: {metric: generator/l1, trials: 2, space: {model.learning_rate: %s}}\n"
    for drawn in ("{loguniform: [1.0e-5, 1.0e9]}", "{choice: [1.0e-3, 1.0e9]}"):
        with pytest.raises(JobFileError, match="at most 10"):
            load("name: a\n" + VALID + sweep % drawn)
    assert load("name: a\n" + VALID + sweep % "{loguniform: [1.0e-5, 1.0e-2]}").job.sweep


KEYS = [
    "train.batch_size",
    "train.epochs",
    "train.seed",
    "train.max_grad_norm",
    "model.filters",
    "model.learning_rate",
    "model.beta1",
    "model.image_size",
    "cluster.workers",
    "data.read_size",
    "data.retry_timeout_s",
    "guard.max_grad_norm_ratio",
    "guard.learning_rate_factor",
    "name",
    "storage",
]


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    key=st.sampled_from(KEYS),
    value=st.one_of(
        st.integers(),
        st.integers(min_value=10**6).map(lambda number: number**5),
        st.floats(),
        st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=9000),
    ),
)
def test_any_value_gives_a_job_with_sensible_numbers_or_one_refusal(key: str, value: Any) -> None:
    shown = json.dumps(value).replace("Infinity", ".inf").replace("NaN", ".nan")
    try:
        job = load_text("name: a\n" + VALID, Path("a.yaml"), [f"{key}={shown}"], {}).job
    except JobFileError as error:
        longest = max(map(len, str(error).splitlines()))
        assert longest < 500, error  # noqa: PT017 - a refusal is as good as a job
        return
    numbers = [
        item
        for section in job.model_dump().values()
        for item in (section.values() if isinstance(section, dict) else [section])
        if isinstance(item, int | float)
    ]
    assert all(math.isfinite(number) and abs(number) < 2**63 for number in numbers)


def test_the_bounds_leave_room_for_every_job_in_jobs() -> None:
    for path in (Path(__file__).parents[2] / "jobs").rglob("*.yaml"):
        assert load_job(path, environ={}).job.name


@pytest.mark.parametrize("classes", [21_841, 100_000], ids=["ImageNet-21k", "MS-Celeb-1M"])
def test_the_classes_of_the_largest_known_sets_are_allowed(classes: int) -> None:
    text = "name: x\n" + VALID.replace("pix2pix", f"dcgan, classes: {classes}")
    assert load_text(text, Path("x.yaml")).job.model.num_classes == classes

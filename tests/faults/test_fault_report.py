"""Differences are found, and belong to the fault after which they appeared."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from orchestrator.diagnostics.compare_runs import RunArtifacts
from orchestrator.faults.injection import Recovery, draw_faults
from orchestrator.faults.kinds import FAULTS
from orchestrator.faults.report import FaultReport, RunResult, compare_with_faults
from orchestrator.training.state import TrainState

INTERVAL = 40
RECOVERIES = [
    Recovery("worker killed", 200, 5.0, True, None),
    Recovery("driver killed", 400, 11.0, True, -9),
    Recovery("worker killed", 600, 7.0, True, None),
]


def result(**changes: Any) -> RunResult:
    """A run of 800 images with a point and a checkpoint every 40 images."""
    state = TrainState(
        images_seen=800,
        networks={},
        snapshot={},
        optimizers={},
        per_rank_buffers={},
        settings={},
        stateful={},
        eval_pending=False,
    )
    steps = range(INTERVAL, 801, INTERVAL)
    run = RunResult(
        RunArtifacts(state, {}, {}),
        {step: {"networks.safetensors": str(step), "job.yaml": "a"} for step in steps},
        {("loss", step): [step / 7] for step in steps},
        ["images/samples+step+400", "images/samples+step+800"],
    )
    return replace(run, **changes)


def report(faulty: RunResult) -> FaultReport:
    faults, checks = compare_with_faults(result(), faulty, RECOVERIES, INTERVAL)
    return FaultReport("job", "model", 2, 800, faults, checks)


def with_points(changes: Mapping[int, list[float]]) -> RunResult:
    points = dict(result().points)
    for step, values in changes.items():
        points["loss", step] = values
    return result(points={key: values for key, values in points.items() if values})


def test_equal_runs_are_equal_at_each_fault() -> None:
    other_job = {step: {**sums, "job.yaml": "b"} for step, sums in result().sums.items()}
    found = report(result(sums=other_job))
    assert found.equal
    assert [one.num_checkpoints for one in found.faults] == [5, 5, 8], "of 120 to 320, 520, 800"
    assert json.loads(found.json())["equal"] is True


def test_a_point_that_is_there_twice_belongs_to_the_fault_before_it() -> None:
    found = report(with_points({440: [440 / 7, 440 / 7]}))
    assert [one.points_once for one in found.faults] == [True, False, True]
    assert [one.difference for one in found.faults] == [None] * 3
    assert [c.difference for c in found.checks if c.compared == "points once"] == [
        "loss at 440 images is there twice"
    ]
    assert not found.equal


def test_a_point_that_is_missing_or_differs_belongs_to_its_fault() -> None:
    found = report(with_points({200: [], 720: [1.0]}))
    assert [one.difference for one in found.faults] == [
        "loss at 200 images is in the undisturbed run only",
        None,
        f"loss at 720 images: {720 / 7} and 1.0",
    ]
    assert [one.points_once for one in found.faults] == [False, True, True]


def test_a_point_that_is_not_a_number_equals_itself() -> None:
    nan = {**result().points, ("loss", 80): [float("nan")]}
    faults, checks = compare_with_faults(
        result(points=nan), result(points=dict(nan)), RECOVERIES, INTERVAL
    )
    assert [fault.difference for fault in faults] == [None] * 3
    assert [check.difference for check in checks] == [None] * len(checks)


def test_a_checkpoint_that_differs_belongs_to_its_fault() -> None:
    sums = {**result().sums, 360: {"networks.safetensors": "other"}}
    found = report(result(sums=sums))
    assert [one.difference for one in found.faults] == [
        None,
        "networks.safetensors at 360 images",
        None,
    ]


def test_faults_that_follow_each_other_at_once_are_compared_by_the_checkpoint_in_between() -> None:
    """A corrupt checkpoint is trained again, so that the next fault comes at the same image."""
    near = [
        Recovery("checkpoint: file deleted", 400, 9.0, True, None),
        Recovery("checkpoint: file deleted", 400, 9.0, True, None),
        Recovery("worker killed", 440, 9.0, True, None),
    ]
    faults, _ = compare_with_faults(result(), result(), near, INTERVAL)
    assert [(fault.num_checkpoints, fault.difference) for fault in faults] == [
        (3, None),  # of 320 to 400 images
        (4, None),  # of 320 to 440
        (12, None),  # of 360 to 800
    ]
    differs = result(sums={**result().sums, 400: {"networks.safetensors": "other"}})
    faults, _ = compare_with_faults(result(), differs, near, INTERVAL)
    assert [fault.difference for fault in faults] == ["networks.safetensors at 400 images"] * 3


def test_a_fault_after_which_nothing_was_compared_does_not_count_as_equal() -> None:
    few = result(
        sums={n: sums for n, sums in result().sums.items() if n > 400},
        points={key: values for key, values in result().points.items() if key[1] > 400},
    )
    faults, _ = compare_with_faults(few, few, RECOVERIES, INTERVAL)
    assert [fault.difference for fault in faults] == [
        "nothing was compared; give it more --steps",
        None,
        None,
    ]


@pytest.mark.parametrize(
    ("pictures", "difference"),
    [
        (["images/samples+step+800"], "images/samples+step+400 is in one run only"),
        (
            ["images/samples+step+400", "images/samples+step+400", "images/samples+step+800"],
            "one picture is there twice",
        ),
    ],
)
def test_each_picture_is_there_once(pictures: list[str], difference: str) -> None:
    checks = {
        check.compared: check.difference for check in report(result(pictures=pictures)).checks
    }
    assert checks["pictures"] == difference


def test_the_table_has_one_line_for_each_kind() -> None:
    found = report(with_points({440: [440 / 7, 440 / 7]}))
    assert found.tables()[0] == [
        ("fault", "tried", "equal", "points once", "s to checkpoint (max)"),
        ("driver killed", "1", "1", "0", "11.0 (11.0)"),
        ("worker killed", "2", "2", "2", "6.0 (7.0)"),
    ]


def test_all_kinds_are_drawn_before_one_is_repeated() -> None:
    assert len(FAULTS) >= 25
    names = draw_faults(2 * len(FAULTS) + 3, seed=4)
    assert sorted(names[: len(FAULTS)]) == sorted(FAULTS)
    assert sorted(names[len(FAULTS) : 2 * len(FAULTS)]) == sorted(FAULTS)
    assert draw_faults(9, seed=4) == names[:9] != draw_faults(9, seed=5)

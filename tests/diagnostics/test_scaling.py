"""Options of `orchestrator scaling`, and its results for known step times."""

import io
from pathlib import Path

import numpy
import pytest
from matplotlib.patches import Rectangle
from PIL import Image

from orchestrator.config.job import Job
from orchestrator.diagnostics.scaling import load_jobs, parse_workers
from orchestrator.diagnostics.scaling_figure import scaling_figure
from orchestrator.diagnostics.scaling_results import ScalingResult, efficiency, rows
from orchestrator.errors import JobFileError, UsageError
from orchestrator.report.drawing import to_png
from orchestrator.training.profiler import StepTimes

ROOT = Path(__file__).parents[2]


def make_result(workers: int, *steps: tuple[float, float, float]) -> ScalingResult:
    """Each rank has these steps: total seconds, seconds of data and of communication."""
    each = tuple(StepTimes(*step, 0.0) for step in steps)
    return ScalingResult(workers, 16, (each,) * workers)


@pytest.mark.parametrize("text", ["", "0", "1,,2", "two", "1;2", "-1", "1.5", "²"])
def test_an_invalid_list_of_workers_is_rejected(text: str) -> None:
    with pytest.raises(UsageError, match="use for example 1,2,4"):
        parse_workers(text)


def test_numbers_of_workers_are_sorted_and_unique() -> None:
    assert parse_workers("4, 1,2,1") == [1, 2, 4]


def test_a_number_that_does_not_divide_the_batch_is_rejected_with_a_remedy() -> None:
    with pytest.raises(JobFileError, match=r"16 cannot be split over 3 workers .* a multiple of 3"):
        load_jobs(ROOT / "jobs/quickstart.yaml", (), [1, 2, 3])


def test_a_sweep_and_a_range_of_workers_are_timed_as_runs_with_fixed_workers() -> None:
    loaded = load_jobs(ROOT / "jobs/began_sweep.yaml", (), [1, 2])
    ranged = load_jobs(ROOT / "jobs/quickstart.yaml", ("cluster.workers={min: 1, max: 2}",), [1, 2])
    jobs: list[Job] = [each.job for each in (*loaded, *ranged)]
    assert [job.cluster.workers for job in jobs] == [1, 2, 1, 2]
    assert [job.sweep for job in jobs] == [None] * 4


def test_efficiency_is_the_throughput_per_worker_relative_to_the_fewest_workers() -> None:
    two, four = make_result(2, (0.5, 0.1, 0.1), (1.5, 0.1, 0.3)), make_result(4, (0.8, 0.0, 0.4))
    assert two.images_per_s == pytest.approx(32 / 2.0)
    assert four.images_per_s == pytest.approx(20)
    assert efficiency(two, two) == 1
    assert efficiency(four, two) == pytest.approx(20 / 16 * 2 / 4)
    parts = two.mean.computation_s + two.mean.communication_s + two.mean.data_s
    assert parts == pytest.approx(two.mean.step_s)
    assert rows([two, four])[1:] == [
        ("2", "8", "16.0", "100 %", "1000.0", "700.0", "200.0", "100.0", "1000.0"),
        ("4", "4", "20.0", "62 %", "800.0", "400.0", "400.0", "0.0", "800.0"),
    ]


def test_a_long_wait_lowers_the_throughput_but_not_the_median() -> None:
    steps = [(0.1, 0.0, 0.0)] * 9 + [(1.1, 1.0, 0.0)]
    once = make_result(1, *steps)
    assert once.images_per_s == pytest.approx(160 / 2.0)
    assert once.median_step_s == pytest.approx(0.1)


def test_the_bars_of_the_figure_are_as_high_as_the_step_parts() -> None:
    results = [make_result(1, (0.4, 0.1, 0.0)), make_result(2, (0.3, 0.05, 0.1))]
    figure = scaling_figure("a$b$c", results)
    heights = [bar.get_height() for bar in figure.axes[1].patches if isinstance(bar, Rectangle)]
    assert heights == pytest.approx([300, 150, 0, 100, 100, 50])
    ideal, rates = (line.get_ydata() for line in figure.axes[0].lines)
    assert numpy.allclose(ideal, [40, 80])
    assert numpy.allclose(rates, [40, 16 / 0.3])
    with Image.open(io.BytesIO(to_png(figure))) as picture:
        assert picture.width > picture.height > 300

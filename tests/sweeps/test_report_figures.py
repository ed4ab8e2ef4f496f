"""Figures of a report: the data is read back from what is drawn."""

import math
import random
from collections.abc import Mapping
from pathlib import Path

import numpy
import pytest
from matplotlib.figure import Figure

from orchestrator.config.sweep import Value
from orchestrator.sweeps.records import Status, TrialSegment, rank_configs
from orchestrator.sweeps.report import write_report
from orchestrator.sweeps.report.curves import front_figure, learning_curves
from orchestrator.sweeps.report.facts import compare
from orchestrator.sweeps.report.importance import Importance, compute_importance
from orchestrator.sweeps.report.lineage import lineage_figure
from orchestrator.sweeps.report.page import ReportSections
from orchestrator.sweeps.report.scales import parameter_scales
from orchestrator.sweeps.report.space import map_figures, parallel_figure
from support.synthetic_sweeps import STEP, TOTAL, bowl, line_data, synthetic_sweep


def test_curves_show_the_results_and_mark_where_trials_ended() -> None:
    sweep = synthetic_sweep(5, ends={1: ("stopped", 300), 3: ("diverged", 200)})
    found = line_data(learning_curves(sweep))
    for trial in sweep.trials:
        images, values = found[f"trial {trial.number}"]
        assert images == [result.images_seen for result in trial.results]
        assert values == [result.values[0] for result in trial.results]
    ends = {name: data for name, data in found.items() if name.startswith("end")}
    assert ends == {
        f"end {number}": ([sweep.trials[number].images_seen], [sweep.trials[number].last_value()])
        for number in (1, 3)
    }


def test_the_best_curve_is_the_thickest_and_has_a_label() -> None:
    sweep = synthetic_sweep(5)
    best = rank_configs(sweep)[0].trials[0]
    figure = learning_curves(sweep)
    assert isinstance(figure, Figure)
    [axes] = figure.axes
    widest = max(axes.lines, key=lambda line: line.get_linewidth())
    assert widest.get_gid() == f"trial {best}"
    legend = axes.get_legend()
    assert legend is not None
    assert [words.get_text() for words in legend.get_texts()] == [f"trial {best}, the best"]


@pytest.mark.parametrize(("factor", "scale"), [(20, "linear"), (40, "log")])
def test_the_axis_is_logarithmic_if_the_metric_spans_orders_of_magnitude(
    factor: float, scale: str
) -> None:
    figure = learning_curves(
        synthetic_sweep(2, lambda _, images: 1 + (factor - 1) * (images == STEP))
    )
    assert isinstance(figure, Figure)
    assert figure.axes[0].get_yscale() == scale


def test_the_only_important_parameter_ranks_above_noise() -> None:
    space = {
        "noise": {"uniform": [0.0, 1.0]},
        "more.noise": {"choice": ["a", "b", "c"]},
        "matters": {"loguniform": [1e-6, 1.0]},
    }
    found = compute_importance(
        synthetic_sweep(
            24, lambda values, _: abs(math.log10(float(str(values["matters"]))) + 3), space=space
        )
    )
    assert isinstance(found, Importance)
    assert found.parameters[0].path == "matters"
    assert found.num_configurations == 24
    assert found.oob_r2 > 0.5
    assert found.drops[0] > 5 * max(abs(drop) for drop in found.drops[1:])


def test_the_importances_of_a_random_metric_are_reported_as_meaningless(tmp_path: Path) -> None:
    rng = random.Random(3)
    sweep = synthetic_sweep(27, lambda *_: rng.random())
    found = compute_importance(sweep)
    assert isinstance(found, Importance)
    assert found.oob_r2 <= 0
    section = ReportSections(sweep, tmp_path).importance([found])
    assert "it has learnt nothing, and the bars mean nothing" in section


def test_a_categorical_parameter_can_be_important() -> None:
    space = {"a": {"uniform": [0.0, 1.0]}, "model.kind": {"choice": ["x", "y", True]}}
    found = compute_importance(
        synthetic_sweep(
            20, lambda v, _: {"x": 0.0, "y": 1.0}.get(str(v["model.kind"]), 5.0), space=space
        )
    )
    assert isinstance(found, Importance)
    assert [scale.path for scale in found.parameters] == ["model.kind", "a"]


def test_configurations_are_compared_at_the_same_number_of_images() -> None:
    early: dict[int, tuple[Status, int]] = dict.fromkeys(range(12), ("stopped", 300))
    early[15] = ("stopped", 100)
    sweep = synthetic_sweep(16, ends=early)
    found = compare(sweep)
    assert (len(found.points), found.images_seen, found.num_finished) == (15, 300, 16)
    assert [p.metrics[0] for p in found.points] == [bowl(t.values, 300) for t in sweep.trials[:15]]
    whole = compare(synthetic_sweep(16, ends={15: ("stopped", 100)}))
    assert (len(whole.points), whole.images_seen) == (15, TOTAL)


def test_parallel_coordinates_pass_through_the_values() -> None:
    sweep = synthetic_sweep(6)
    figure = parallel_figure(sweep)
    assert isinstance(figure, Figure)
    found = [
        list(numpy.asarray(line.get_ydata()))
        for line in figure.axes[0].lines
        if line.get_gid() == "line"
    ]
    metrics = [trial.last_value() for trial in sweep.trials]
    expected = []
    for trial in sorted(sweep.trials, key=lambda t: -t.last_value()):
        lambda_k, gamma, rate = (float(str(v)) for v in trial.values.values())
        expected.append(
            [
                (math.log10(lambda_k) + 4) / 3,
                (gamma - 0.3) / 0.6,
                (math.log10(rate) + 5) / 3,
                (trial.last_value() - min(metrics)) / (max(metrics) - min(metrics)),
            ]
        )
    assert found == [pytest.approx(line) for line in expected]


def test_a_map_shows_each_configuration_at_its_values() -> None:
    sweep = synthetic_sweep(9)
    figures = map_figures(sweep, parameter_scales(sweep))
    assert len(figures) == 3
    axes = figures[0].axes[0]
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "linear")
    contours, dots = axes.collections
    assert [[float(x), float(y)] for x, y in numpy.asarray(dots.get_offsets())] == [
        [t.values["model.lambda_k"], t.values["model.gamma"]] for t in sweep.trials
    ]
    assert contours.get_array() is not None


def test_configurations_on_a_line_give_dots_without_contours() -> None:
    space = {"a": {"uniform": [0.0, 1.0]}, "b": {"uniform": [0.0, 1.0]}}
    sweep = synthetic_sweep(6, lambda v, _: float(str(v["a"])), space=space)
    for trial in sweep.trials:
        trial.segments[0] = TrialSegment("run", {"a": trial.number / 5, "b": 1 - trial.number / 5})
    [figure] = map_figures(sweep, parameter_scales(sweep))
    assert len(figure.axes[0].collections) == 1


def test_the_pareto_front_is_a_staircase(tmp_path: Path) -> None:
    points = [(1.0, 5.0), (2.0, 3.0), (3.0, 4.0), (4.0, 1.0), (5.0, 2.0)]
    source = iter(points * 2)
    space = {"a": {"uniform": [0.0, 1.0]}}

    def both(_: Mapping[str, Value], images: int) -> tuple[float, ...]:
        return next(source) if images == TOTAL else (9.0, 9.0)

    sweep = synthetic_sweep(5, both, space=space, metric=["x", "y"])
    stairs = line_data(front_figure(sweep))["front"]
    assert stairs == ([1.0, 2.0, 4.0], [5.0, 3.0, 1.0])
    page = write_report(sweep, tmp_path, {}).read_text(encoding="utf-8")
    assert "Pareto front" in page
    assert (tmp_path / "front.png").exists()


def test_lineage_shows_copies_as_arrows_and_segments_as_coloured_lines(tmp_path: Path) -> None:
    sweep = synthetic_sweep(4, scheduler="pbt")
    copied = {**sweep.trials[0].values, "model.gamma": 0.8}
    sweep.trials[3].segments.append(
        TrialSegment("run-3-2", copied, "somewhere", parent=0, start_images=400)
    )
    figure = lineage_figure(sweep, parameter_scales(sweep))
    assert isinstance(figure, Figure)
    axes = figure.axes[0]
    rows = [[[list(p) for p in s] for s in c.get_segments()] for c in axes.collections]  # type: ignore[attr-defined]
    assert rows[0] == [[[0, 0], [TOTAL, 0]]]
    assert rows[3] == [[[0, 3], [400, 3]], [[400, 3], [TOTAL, 3]]]
    [arrow] = axes.texts
    assert (arrow.xy, arrow.get_position()) == ((400, 3), (400, 0))  # type: ignore[attr-defined]
    page = write_report(sweep, tmp_path, {}).read_text(encoding="utf-8")
    assert "run-3-2" in page
    assert "Lineage of copies" in page

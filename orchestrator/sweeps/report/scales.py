"""Scales of the parameters of a sweep."""

from orchestrator.config.sweep import Distribution, Value
from orchestrator.report.axis_scale import Scale, short_names
from orchestrator.report.formats import format_value_short, spans_magnitudes
from orchestrator.sweeps.records import Sweep


def parameter_scales(sweep: Sweep) -> list[Scale]:
    """Make the scales of all parameters, in the order of the search space."""
    used = [segment.values for trial in sweep.trials for segment in trial.segments]
    labels = short_names(sweep.section.space)
    return [
        _parameter_scale(path, labels[path], drawn, [v[path] for v in used if path in v])
        for path, drawn in sweep.section.space.items()
    ]


def _parameter_scale(path: str, label: str, drawn: Distribution, used: list[Value]) -> Scale:
    """Make a scale of the search space's range and the values used, which pbt may move outside."""
    listed = drawn.kind in ("choice", "grid")
    values = [*(drawn.args if listed else drawn.args[:2]), *used]
    numbers = [float(v) for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    if len(numbers) < len(values):
        names = tuple(dict.fromkeys(format_value_short(value) for value in values))
        return Scale(path, label, 0.0, max(1.0, len(names) - 1.0), categories=names)
    log = drawn.kind == "loguniform" or (listed and spans_magnitudes(numbers))
    integer = drawn.kind != "uniform" and all(map(float.is_integer, numbers))
    options = tuple(sorted(set(numbers))) if listed else ()
    return Scale(path, label, min(numbers), max(numbers), log, (), integer, options)

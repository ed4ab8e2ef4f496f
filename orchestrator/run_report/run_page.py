"""The page of a report on runs."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from orchestrator.errors import DataError
from orchestrator.report import document, line_plot
from orchestrator.report.line_plot import swatch
from orchestrator.report.markup import paragraph
from orchestrator.run_report import run_tables
from orchestrator.run_report.film_strip import PictureCache, film_strips
from orchestrator.run_report.metric_plots import (
    describe_points,
    draw_group,
    embed_points,
    group_metrics,
    thin_metrics,
)
from orchestrator.run_report.run_data import RunData

MAX_BYTES = 5_000_000
"""Largest page."""
MAX_PICTURE_BYTES = 4_000_000
"""Most bytes of the pictures in it, as base64."""
_HERE = Path(__file__).parent
_STYLE = Path(line_plot.__file__).with_suffix(".css").read_text(encoding="utf-8") + (
    _HERE / "run.css"
).read_text(encoding="utf-8")
_SCRIPT, _LIVE = ((_HERE / name).read_text(encoding="utf-8") for name in ("run.js", "live.js"))


def render_page(
    runs: Sequence[RunData], *, cache: PictureCache | None = None, live: str = ""
) -> str:
    """Return the page as HTML, of at most MAX_BYTES.

    Args:
        cache: pictures of an earlier page of the same runs.
        live: a sentence on top of a page that asks its server for newer ones; "" for a file.

    Raises:
        EnvironmentProblem: the pictures are out of reach.
        DataError: there are so many metrics that even a page without pictures is too large.
    """
    points = thin_metrics(runs)
    plots = {group.anchor: draw_group(group, runs, points) for group in group_metrics(runs)}
    titles = {group.anchor: group.title for group in group_metrics(runs)}
    evaluated = run_tables.evaluation_table(runs)
    bodies = {
        "losses": f"{paragraph(describe_points(runs, points), mark='quiet')}\n{plots['losses']}",
        "pictures": "",
        "validation": plots["validation"] or _none("There has been no validation."),
        "evaluation": "\n".join(filter(None, (evaluated, plots["evaluation"])))
        or _none("There has been no evaluation."),
        "speed": plots["speed"],
        "faults": f"{run_tables.faults_table(runs)}\n{plots['faults']}",
        "cost": f"{run_tables.cost_table(runs)}\n{plots['cost']}",
        "job": _jobs(runs),
        "metrics": f'<details id="all-metrics"><summary>Show the table</summary>\n'
        f"{run_tables.metrics_table(runs)}\n</details>",
    }
    data = embed_points(runs, points)
    room = MAX_BYTES - 100_000 - len(data.encode()) - sum(len(b.encode()) for b in bodies.values())
    cache = cache or PictureCache()
    bodies["pictures"] = film_strips(runs, max(0, min(MAX_PICTURE_BYTES, room)), cache)
    titles |= {"pictures": "Pictures", "job": "Job and data", "metrics": "All metrics"}
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs side by side"
    page = document.render_document(
        title,
        header=_header(runs, live),
        sections=[(name, titles[name], body) for name, body in bodies.items() if body],
        style=_STYLE,
        script=document.SORT + _SCRIPT + (_LIVE if live else ""),
        data=data,
        may_refresh=bool(live),
    )
    if (size := len(page.encode())) > MAX_BYTES:
        num_metrics = sum(len(run.metrics) for run in runs)
        raise DataError(
            f"{num_metrics:,} metrics of {len(runs)} runs are too many for one page: it would have "
            f"{size:,} bytes, and the most is {MAX_BYTES:,}; report fewer runs at once"
        )
    return page


def _header(runs: Sequence[RunData], live: str) -> str:
    parts = [f'<p id="live" class="quiet">{escape(live)}</p>'] if live else []
    prefix = "" if len(runs) == 1 else "{name}: "
    parts += [
        paragraph(prefix.format(name=run.name) + note, mark="caution")
        for run in runs
        for note in run.notes
    ]
    parts.append(run_tables.overview(runs))
    if len(runs) > 1:
        items = "".join(
            f"<li>{swatch(number)} {escape(run.name)}</li>" for number, run in enumerate(runs)
        )
        parts.append(f'<ul class="legend" aria-label="Lines of the plots">{items}</ul>')
    return "\n".join(parts)


def _jobs(runs: Sequence[RunData]) -> str:
    parts = ["<h3>Data</h3>", run_tables.data_table(runs)]
    if len(runs) > 1:
        parts += ["<h3>What differs between the jobs</h3>", run_tables.differences_table(runs)]
    parts.append("<h3>Job</h3>")
    for number, run in enumerate(runs):
        parts.append(
            f'<details id="job-{number}"><summary>Job of {escape(run.name)}, with all defaults'
            f'</summary>\n<pre tabindex="0">{escape(run.job.masked)}</pre></details>'
        )
    return "\n".join(parts)


def _none(sentence: str) -> str:
    return paragraph(sentence, mark="none")

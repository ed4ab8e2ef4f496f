"""HTML page of a sweep's report."""

from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from orchestrator.report import document, markup
from orchestrator.report.axis_scale import Scale
from orchestrator.report.drawing import to_png
from orchestrator.report.pictures import to_palette_png
from orchestrator.sweeps.records import Sweep
from orchestrator.sweeps.report import tables
from orchestrator.sweeps.report.curves import MAX_NAMED, front_figure, learning_curves
from orchestrator.sweeps.report.facts import Comparison, compare
from orchestrator.sweeps.report.importance import Importance, compute_importance, importance_figure
from orchestrator.sweeps.report.lineage import lineage_figure
from orchestrator.sweeps.report.scales import parameter_scales
from orchestrator.sweeps.report.space import map_figures, parallel_figure
from orchestrator.sweeps.report.wall import Row, Wall, build_wall, draw_wall

STYLE = Path(__file__).with_name("page.css").read_text(encoding="utf-8")


def write_report(sweep: Sweep, destination: Path, grids: Mapping[int, Mapping[int, Path]]) -> Path:
    """Write destination/report.html and its figures as PNG files; return the page's path.

    Equal sweeps give equal files.

    Args:
        grids: trial number -> images seen -> its sample grid, all from the same noise.
    """
    destination.mkdir(parents=True, exist_ok=True)
    sections = ReportSections(sweep, destination).build(grids)
    text = document.render_document(
        sweep.name, header=tables.summary_list(sweep), sections=sections, style=STYLE
    )
    page = destination / "report.html"
    page.write_text(text, encoding="utf-8")
    return page


class ReportSections:
    """Sections of the page; their figures are also written to files."""

    def __init__(self, sweep: Sweep, destination: Path) -> None:
        self.sweep, self.destination = sweep, destination

    def build(self, grids: Mapping[int, Mapping[int, Path]]) -> list[tuple[str, str, str]]:
        """Build anchor, title and HTML of each section."""
        sweep = self.sweep
        has_two_metrics = len(sweep.section.metrics) > 1
        importances = [compute_importance(sweep, k) for k in range(len(sweep.section.metrics))]
        by_importance = parameter_scales(sweep)
        if isinstance(importances[0], Importance):
            by_importance = list(importances[0].parameters)
        best_title = "Pareto front" if has_two_metrics else "Best configuration"
        parts = [("best", best_title, tables.best_table(sweep))]
        if has_two_metrics:
            figure = self.figure("front", front_figure(sweep), "The two metrics of all trials")
            parts.append(("front", "The two metrics", figure))
        parts += [
            ("curves", "Learning curves", self.curves()),
            ("samples", "Samples", self.wall(grids)),
            ("importance", "Parameter importance", self.importance(importances)),
            ("values", "Metric over the parameters", self.values(by_importance)),
        ]
        if sweep.section.scheduler == "pbt":
            alt = "A line for each trial, arrows for copies"
            figure = self.figure("lineage", lineage_figure(sweep, by_importance), alt)
            body = f"{figure}\n{tables.segments_table(sweep)}"
            parts.append(("lineage", "Lineage of copies", body))
        order = markup.paragraph(
            "Best first: by images seen, since metrics after different numbers of images do not "
            f"compare, then by {sweep.section.metrics[0]}. Tooltips show all digits.",
        )
        return [*parts, ("trials", "All trials", f"{order}\n{tables.trials_table(sweep)}")]

    def figure(self, name: str, drawn: Figure | str, alt: str) -> str:
        """Embed a figure and write it to a file; text in place of a figure becomes a paragraph."""
        if isinstance(drawn, str):
            return markup.paragraph(drawn, mark="none")
        png = to_png(drawn)
        (self.destination / f"{name}.png").write_bytes(png)
        return markup.picture(png, alt)

    def curves(self) -> str:
        """Build the section of learning curves."""
        drawn = learning_curves(self.sweep)
        figure = self.figure("curves", drawn, "Metric over images seen, a line for each trial")
        if isinstance(drawn, str):
            return figure
        caption = f"A line for each trial; the best ones, at most {MAX_NAMED}, are coloured."
        return f"{markup.paragraph(caption)}\n{figure}"

    def importance(self, found: list[Importance | str]) -> str:
        """Build the section of parameter importances, one for each metric."""
        computed = [one for one in found if isinstance(one, Importance)]
        missing = [markup.paragraph(one, mark="none") for one in found if isinstance(one, str)]
        if not computed:
            return missing[0]
        reliability = [
            f"For {one.metric} the forest explains {max(0.0, one.oob_r2):.0%} of the variance of "
            f"configurations that it was not fit on (out-of-bag R²){_comment_on_r2(one.oob_r2)}."
            for one in computed
        ]
        basis, is_pbt = computed[0].basis, self.sweep.section.scheduler == "pbt"
        changed = "For a trial with copies the last values count, although it trained with others."
        caption = markup.paragraph(
            f"A random forest was fit on {basis}. Bars: the loss of its R² when the values of one "
            "parameter are shuffled, with the standard deviation over shuffles.",
            *reliability,
            self.warn_if_early(basis),
            changed if is_pbt else "",
        )
        figure = self.figure("importance", importance_figure(computed), "Importance of parameters")
        return "\n".join([caption, figure, *missing])

    def warn_if_early(self, compared: Comparison) -> str:
        """Warn if trials are compared before the end of a complete trial."""
        total = self.sweep.total_images
        warning = f"A complete trial sees {total:,} images; the order may still change until then."
        return warning if compared.images_seen < total else ""

    def values(self, by_importance: list[Scale]) -> str:
        """Build the section of parallel coordinates and maps."""
        drawn = parallel_figure(self.sweep)
        if isinstance(drawn, str):
            return markup.paragraph(drawn, mark="none")
        metric, mode = self.sweep.section.metrics[0], self.sweep.section.modes[0]
        compared = compare(self.sweep)
        caption = markup.paragraph(
            f"Shown are {compared}. Dark is good: a {'low' if mode == 'min' else 'high'} {metric}. "
            "The thick line is the best configuration.",
            self.warn_if_early(compared),
        )
        parts = [caption, self.figure("parallel", drawn, "A line for each configuration")]
        maps = [
            self.figure(f"map-{number}", figure, "The metric over two parameters")
            for number, figure in enumerate(map_figures(self.sweep, by_importance), start=1)
        ]
        if maps:
            caption = "Dots are configurations; colours between them are interpolated."
            parts += [markup.paragraph(caption), f'<div class="maps">{"".join(maps)}</div>']
        return "\n".join(parts)

    def wall(self, grids: Mapping[int, Mapping[int, Path]]) -> str:
        """Build the section of sample grids."""
        wall = build_wall(self.sweep, grids)
        if wall is None:
            return markup.paragraph("There are no sample grids.", mark="none")
        draw_wall(wall).save(self.destination / "wall.png")
        caption = "Samples of the best trials, all from the same noise."
        if wall.num_omitted:
            caption += f" {wall.num_omitted} more trials have sample grids."
        heads = "".join(f'<th scope="col">{images:,} images</th>' for images in wall.images_seen)
        rows = "\n".join(_wall_row(wall, row) for row in wall.rows)
        table = markup.wide(
            f'<table class="wall"><thead><tr><td></td>{heads}</tr></thead>\n'
            f"<tbody>\n{rows}\n</tbody></table>"
        )
        return f"{markup.paragraph(caption)}\n{table}"


def _wall_row(wall: Wall, row: Row) -> str:
    first, *rest = map(markup.text, row.label)
    cells = []
    for images, cell in zip(wall.images_seen, row.cells, strict=True):
        if cell is None:
            cells.append(f'<td class="none">{row.placeholder(images)}</td>')
        else:
            alt = f"trial {row.trial.number} at {images:,} images"
            cells.append(f"<td>{markup.picture(to_palette_png(cell), alt)}</td>")
    return f'<tr><th scope="row"><b>{first}</b>{"<br>".join(rest)}</th>{"".join(cells)}</tr>'


def _comment_on_r2(oob_r2: float) -> str:
    if oob_r2 <= 0:
        return ": it has learnt nothing, and the bars mean nothing"
    return ", which is little: take the bars as a hint" if oob_r2 < 0.4 else ""

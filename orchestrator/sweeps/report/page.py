"""The page of a sweep."""

from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from orchestrator.sweeps.records import Sweep
from orchestrator.sweeps.report import markup, tables
from orchestrator.sweeps.report.curves import front_figure, learning_curves
from orchestrator.sweeps.report.drawing import packed, to_png
from orchestrator.sweeps.report.facts import Comparison, compare
from orchestrator.sweeps.report.importance import Importance, importance, importance_figure
from orchestrator.sweeps.report.lineage import lineage_figure
from orchestrator.sweeps.report.scales import Scale, parameter_scales
from orchestrator.sweeps.report.space import map_figures, parallel_figure
from orchestrator.sweeps.report.wall import Row, Wall, hang, paint

HERE = Path(__file__).parent


def write_report(sweep: Sweep, destination: Path, grids: Mapping[int, Mapping[int, Path]]) -> Path:
    """Write destination/report.html and its pictures as PNG files beside it.

    ``grids`` gives for the number of a trial, and the images it had seen, the picture of its
    samples; all of the same noise. Gives the path of the page. The same sweep makes the same files.
    """
    destination.mkdir(parents=True, exist_ok=True)
    report = _Report(sweep, destination)
    sections = report.sections(grids)
    links = " ".join(f'<a href="#{name}">{markup.text(title)}</a>' for name, title, _ in sections)
    parts = [markup.section(name, title, body) for name, title, body in sections]
    page = destination / "report.html"
    page.write_text(
        "\n".join(
            [
                '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
                '<meta name="viewport" content="width=device-width, initial-scale=1">',
                f"<title>{markup.text(sweep.name)}</title>",
                f"<style>\n{(HERE / 'page.css').read_text()}</style>\n</head>\n<body>",
                f"<header>\n<h1>{markup.text(sweep.name)}</h1>",
                f"{tables.facts(sweep)}\n<nav>{links}</nav>\n</header>",
                *parts,
                f"<script>\n{(HERE / 'page.js').read_text()}</script>\n</body>\n</html>\n",
            ]
        ),
        encoding="utf-8",
    )
    return page


class _Report:
    """The parts of a page; their figures become files on the way."""

    def __init__(self, sweep: Sweep, destination: Path) -> None:
        self.sweep = sweep
        self.destination = destination

    def sections(self, grids: Mapping[int, Mapping[int, Path]]) -> list[tuple[str, str, str]]:
        """Name, title and HTML of each part of the page."""
        sweep = self.sweep
        two = len(sweep.section.metrics) > 1
        found = [importance(sweep, k) for k in range(len(sweep.section.metrics))]
        known = found[0]
        important = (
            list(known.parameters) if isinstance(known, Importance) else parameter_scales(sweep)
        )
        parts = [("best", "Pareto front" if two else "Best configuration", tables.best(sweep))]
        if two:
            drawn = self.figure("front", front_figure(sweep), "The two metrics of all trials")
            parts.append(("front", "The two metrics", drawn))
        parts += [
            ("curves", "Learning curves", self.curves()),
            ("samples", "Samples", self.wall(grids)),
            ("importance", "What matters", self.importance(found)),
            ("values", "What is good where", self.values(important)),
        ]
        if sweep.section.scheduler == "pbt":
            words = "A line for each trial, arrows for copies"
            drawn = self.figure("lineage", lineage_figure(sweep, important), words)
            parts.append(("lineage", "Who was copied from whom", drawn + "\n" + tables.legs(sweep)))
        order = markup.paragraph(
            "The best first: those that saw more images before those that saw fewer, then by",
            f"{sweep.section.metrics[0]}. All digits of a number are in its tooltip.",
        )
        return [*parts, ("trials", "All trials", order + "\n" + tables.trials(sweep))]

    def figure(self, name: str, drawn: Figure | str, words: str) -> str:
        """A figure in the page and in a file; or the sentence in its place."""
        if isinstance(drawn, str):
            return markup.paragraph(drawn, mark="none")
        png = to_png(drawn)
        (self.destination / f"{name}.png").write_bytes(png)
        return markup.picture(png, words)

    def curves(self) -> str:
        """The metrics while the trainings went on."""
        drawn = learning_curves(self.sweep)
        words = "Metric over images seen, a line for each trial"
        told = "A line for each trial; coloured are the best, or six of them."
        return "\n".join(
            [
                markup.paragraph(told) if isinstance(drawn, Figure) else "",
                self.figure("curves", drawn, words),
            ]
        )

    def importance(self, found: list[Importance | str]) -> str:
        """What the metrics depend on."""
        told = [one for one in found if isinstance(one, Importance)]
        missing = [markup.paragraph(one, mark="none") for one in found if isinstance(one, str)]
        if not told:
            return missing[0]
        trust = [
            f"For {one.metric} the forest explains {max(0.0, one.explained):.0%} of the variance "
            f"of configurations that it was not fit on{_verdict(one.explained)}."
            for one in told
        ]
        changed = "Of a training with copies the last values count, though others came before."
        return "\n".join(
            [
                markup.paragraph(
                    f"A random forest was fit on {told[0].basis}. Bars: how much of its R² is lost "
                    "when the values of one parameter are shuffled, with the standard deviation "
                    "over shuffles.",
                    *trust,
                    self.early(told[0].basis),
                    changed if self.sweep.section.scheduler == "pbt" else "",
                ),
                self.figure("importance", importance_figure(told), "Importance of parameters"),
                *missing,
            ]
        )

    def early(self, compared: Comparison) -> str:
        """A warning, unless whole trainings were compared."""
        if compared.images_seen >= self.sweep.total_images:
            return ""
        return (
            f"A whole training sees {self.sweep.total_images:,}: what is good early need not be so "
            "at the end."
        )

    def values(self, important: list[Scale]) -> str:
        """All parameters beside each other, and pairs of them as maps."""
        drawn = parallel_figure(self.sweep)
        if isinstance(drawn, str):
            return markup.paragraph(drawn, mark="none")
        metric, mode = self.sweep.section.metrics[0], self.sweep.section.modes[0]
        words = markup.paragraph(
            f"Shown are {compare(self.sweep)}. Dark is good: a {'low' if mode == 'min' else 'high'}"
            f" {metric}. The thick line is the best.",
            self.early(compare(self.sweep)),
        )
        parts = [words, self.figure("parallel", drawn, "A line for each configuration")]
        maps = [
            self.figure(f"map-{number}", figure, "The metric over two parameters")
            for number, figure in enumerate(map_figures(self.sweep, important), start=1)
        ]
        if maps:
            told = "Between the dots, which are configurations, the colours are interpolated."
            parts += [markup.paragraph(told), f'<div class="maps">{"".join(maps)}</div>']
        return "\n".join(parts)

    def wall(self, grids: Mapping[int, Mapping[int, Path]]) -> str:
        """Sample grids of the best trials."""
        wall = hang(self.sweep, grids)
        if wall is None:
            return markup.paragraph("There are no pictures.", mark="none")
        paint(wall).save(self.destination / "wall.png")
        more = f" {wall.left_out} more trials have pictures." if wall.left_out else ""
        told = "The best trials, all pictures from the same noise." + more
        heads = "".join(f'<th scope="col">{images:,} images</th>' for images in wall.images_seen)
        rows = "\n".join(_wall_row(wall, row) for row in wall.rows)
        return "\n".join(
            [
                markup.paragraph(told),
                f'<div class="wide"><table class="wall"><thead><tr><td></td>{heads}</tr></thead>',
                f"<tbody>\n{rows}\n</tbody></table></div>",
            ]
        )


def _wall_row(wall: Wall, row: Row) -> str:
    first, *rest = map(markup.text, row.words)
    cells = []
    for images, cell in zip(wall.images_seen, row.cells, strict=True):
        if cell is None:
            cells.append(f'<td class="none">{row.missing(images)}</td>')
            continue
        words = f"trial {row.trial.number} at {images:,} images"
        cells.append(f"<td>{markup.picture(packed(cell), words)}</td>")
    return f'<tr><th scope="row"><b>{first}</b>{"<br>".join(rest)}</th>{"".join(cells)}</tr>'


def _verdict(explained: float) -> str:
    """What to think of that share."""
    if explained <= 0:
        return ": it knows nothing, and the bars say nothing"
    return ", which is little: take the bars as a hint" if explained < 0.4 else ""

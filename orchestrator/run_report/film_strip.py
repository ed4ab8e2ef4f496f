"""Film strips: the logged pictures of runs over time, with a slider for each series.

Pictures are thinned out and encoded anew, so that the page keeps its size. The strips of several
runs are one below the other, and one slider sets their number of images.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

from PIL import Image

from orchestrator.errors import EnvironmentProblem
from orchestrator.report.line_plot import swatch
from orchestrator.report.markup import paragraph, picture
from orchestrator.report.pictures import select_evenly, to_webp
from orchestrator.run_report.run_data import LoggedPicture, RunData, load_pictures

MAX_FRAMES, MAX_FRAMES_OF_PAGE = 48, 240
"""Most pictures of one strip, and of all strips of a page together."""
ENCODINGS = (
    # share of the frames, longest side in pixels, quality
    (1.0, 720, 80), (1.0, 600, 76), (1.0, 512, 70), (0.6, 512, 70), (0.6, 416, 62), (0.4, 416, 62),
    (0.4, 320, 52), (0.25, 320, 52), (0.25, 240, 42), (0.1, 160, 30), (0.0, 128, 20),
)  # fmt: skip
"""The first one that fits is used; the last one leaves one picture of each strip."""
SMALL = 400
"""Pixels below which a picture is shown enlarged, with hard edges."""


@dataclass(frozen=True)
class Strip:
    """Pictures of one series of one run."""

    key: str
    run: int
    """Number of the run."""
    frames: Mapping[int, LoggedPicture]
    """Those to show at most, by images seen."""
    num_logged: int


@dataclass
class PictureCache:
    """Pictures that a page served again and again need not load and encode again."""

    images: dict[LoggedPicture, Image.Image] = field(default_factory=dict)
    encoded: dict[tuple[LoggedPicture, int, int], bytes] = field(default_factory=dict)

    def load(self, run: RunData, wanted: Sequence[LoggedPicture]) -> None:
        """Load what is missing.

        Raises as ``load_pictures`` does, unless MLflow is known to be out of reach.
        """
        missing = [picture for picture in wanted if picture not in self.images]
        try:
            loaded = load_pictures(run, missing)
        except EnvironmentProblem:
            if run.is_current:
                raise
            loaded = load_pictures(run, [each for each in missing if not each.artifact])
        for found, image in loaded.items():
            longest = ENCODINGS[0][1]
            image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
            self.images[found] = image

    def keep(self, wanted: set[LoggedPicture]) -> None:
        """Forget all others."""
        self.images = {k: image for k, image in self.images.items() if k in wanted}
        self.encoded = {k: content for k, content in self.encoded.items() if k[0] in wanted}

    def encode(self, picture: LoggedPicture, side: int, quality: int) -> bytes:
        """Return a loaded picture as WebP."""
        name = (picture, side, quality)
        if name not in self.encoded:
            self.encoded[name] = to_webp(self.images[picture], side, quality)
        return self.encoded[name]


def film_strips(runs: Sequence[RunData], max_bytes: int, cache: PictureCache) -> str:
    """Return the HTML of all strips, in at most ``max_bytes`` for the pictures.

    Raises EnvironmentProblem if MLflow or a storage is out of reach.
    """
    strips = _choose(runs)
    for number, run in enumerate(runs):
        wanted = [p for strip in strips if strip.run == number for p in strip.frames.values()]
        cache.load(run, wanted)
    cache.keep({picture for strip in strips for picture in strip.frames.values()})
    readable = [_readable(strip, cache) for strip in strips]
    if not any(strip.frames for strip in readable):
        return paragraph("No pictures have been logged.", mark="none")
    shown, encoding = _fit(readable, max_bytes, cache)
    by_key: dict[str, list[Strip]] = {}
    for strip in shown:
        by_key.setdefault(strip.key, []).append(strip)
    films = [
        _film(number, key, found, runs, encoding, cache)
        for number, (key, found) in enumerate(by_key.items())
    ]
    num_broken = sum(len(s.frames) for s in strips) - sum(len(s.frames) for s in readable)
    parts = [paragraph(f"Left out: {num_broken} damaged or deleted.")] if num_broken else []
    return "\n".join([*parts, *films])


def _choose(runs: Sequence[RunData]) -> list[Strip]:
    """Choose the pictures of each series, at the same numbers of images in all runs."""
    keys = sorted({key for run in runs for key in run.pictures}, key=lambda k: (k != "samples", k))
    num_strips = sum(key in run.pictures for key in keys for run in runs)
    most = max(1, min(MAX_FRAMES, MAX_FRAMES_OF_PAGE // max(1, num_strips)))
    strips = []
    for key in keys:
        logged = sorted({step for run in runs for step in run.pictures.get(key, {})})
        chosen = set(select_evenly(logged, most))
        for number, run in enumerate(runs):
            series = run.pictures.get(key, {})
            if series:
                steps = [step for step in series if step in chosen] or [max(series)]
                strips.append(Strip(key, number, {s: series[s] for s in steps}, len(series)))
    return strips


def _readable(strip: Strip, cache: PictureCache) -> Strip:
    frames = {step: found for step, found in strip.frames.items() if found in cache.images}
    return Strip(strip.key, strip.run, frames, strip.num_logged)


def _fit(
    strips: Sequence[Strip], max_bytes: int, cache: PictureCache
) -> tuple[list[Strip], tuple[int, int]]:
    """Thin out and choose an encoding so that all pictures have at most ``max_bytes`` as base64."""
    for share, side, quality in ENCODINGS:
        thinned = [_thin(strip, share) for strip in strips]
        expected = sum(
            len(strip.frames) * len(cache.encode(list(strip.frames.values())[-1], side, quality))
            for strip in thinned
            if strip.frames
        )
        if expected * 4 / 3 > 1.5 * max_bytes:  # the last ones are mostly the largest
            continue
        contents = (
            cache.encode(picture, side, quality)
            for strip in thinned
            for picture in strip.frames.values()
        )
        if sum(4 * (len(content) // 3 + 1) for content in contents) <= max_bytes:
            return thinned, (side, quality)
    return [Strip(s.key, s.run, {}, s.num_logged) for s in strips], ENCODINGS[-1][1:]


def _thin(strip: Strip, share: float) -> Strip:
    most = max(1, round(share * len(strip.frames)))
    steps = select_evenly(list(strip.frames), most)
    return Strip(strip.key, strip.run, {s: strip.frames[s] for s in steps}, strip.num_logged)


def _film(
    number: int,
    key: str,
    strips: Sequence[Strip],
    runs: Sequence[RunData],
    encoding: tuple[int, int],
    cache: PictureCache,
) -> str:
    steps = sorted({step for strip in strips for step in strip.frames})
    num_shown, num_logged = sum(len(s.frames) for s in strips), sum(s.num_logged for s in strips)
    caption = paragraph(
        f"{num_shown} of {num_logged} pictures are shown, encoded anew with at most {encoding[0]} "
        "pixels a side.",
        mark="quiet",
    )
    if not steps:
        return f'<div class="film"><h3>{escape(key)}</h3>\n{caption}</div>'
    reels = "\n".join(_reel(strip, runs[strip.run], encoding, cache) for strip in strips)
    last, name = len(steps) - 1, f"film-{number}"
    return (
        f'<div class="film" data-steps="{",".join(map(str, steps))}"><h3>{escape(key)}</h3>\n'
        f'{caption}\n<div class="slider" hidden><label for="{name}">Images seen</label>'
        f'<input id="{name}" type="range" min="0" max="{last}" value="{last}" step="1">'
        f'<output for="{name}">{steps[-1]:,}</output>'
        f'<button type="button" class="play">Play</button></div>\n{reels}\n</div>'
    )


def _reel(strip: Strip, run: RunData, encoding: tuple[int, int], cache: PictureCache) -> str:
    side = encoding[0]
    frames = []
    for step, found in strip.frames.items():
        image = cache.images[found]
        scale = min(1.0, side / max(image.size))
        width, height = (max(1, round(length * scale)) for length in image.size)
        extra = f' width="{width}" height="{height}" data-at="{step}"'
        alt = f"{strip.key} of {run.name} after {step:,} images"
        frames.append(picture(cache.encode(found, *encoding), alt, "webp", extra))
    small = (
        " small"
        if frames and max(cache.images[next(iter(strip.frames.values()))].size) < SMALL
        else ""
    )
    label = escape(f"All shown pictures of {strip.key} of {run.name}, oldest first")
    return (
        f'<figure class="reel{small}"><figcaption>{swatch(strip.run)} {escape(run.name)}'
        f'<span class="at"></span></figcaption>\n'
        f'<div class="frames" tabindex="0" role="group" aria-label="{label}">{"".join(frames)}'
        "</div></figure>"
    )

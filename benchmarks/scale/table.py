"""What the measured figures come to on 8, 256 and 4,096 GPUs: a pure function of them.

One worker is on each GPU. docs/scale.md says what the lines mean.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from orchestrator.cluster.ray_worker import HEARTBEAT_S, MAX_HEARTBEATS_PER_S, SEND_TIMEOUT_S
from orchestrator.cluster.supervisor import POLL_S
from orchestrator.cluster.tune_runner import POLL_S as CONDUCTOR_POLL_S
from orchestrator.cluster.worker_state import HEARTBEAT_TIMEOUT_S
from orchestrator.runs.checkpoints import KEEP
from orchestrator.tracking.tracker import SEND_EVERY_S
from orchestrator.training.data_monitor import MAX_RANKS
from orchestrator.training.loop import POINTS_PER_EPOCH

WORKERS = (8, 256, 4096)
POOL_IMAGES = 50
"""Of each of CycleGAN's two pools, as jobs/cyclegan.yaml has them."""
LOOKS = 20
"""A sweep's looks at one training, by default."""


@dataclass(frozen=True)
class Assumed:
    """What was not measured: replace it by what is true where you are."""

    images_per_s: float = 1000
    """Of each GPU."""
    set_images: float = 1e8
    sample_bytes: float = 37 * 512
    gets_per_s: float = 5500
    """AWS: GET and HEAD requests a second for each partitioned prefix, at least."""
    usd_per_1000_gets: float = 0.0004
    usd_per_1000_puts: float = 0.005
    usd_per_gb_month: float = 0.023
    own_metrics: float = 12
    """Metrics of one moment, without those of the readers."""
    hours: float = 24
    """Of the training whose cost is told."""
    job: str = "pix2pix"
    """Whose checkpoint and gradients they are."""


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    part: str
    what: str
    unit: str
    values: tuple[float, ...]
    """On each number of WORKERS."""


Figures = Mapping[str, float]
Lines = Iterator[tuple[str, str, Callable[[int], float]]]
"""What it is, its unit, and its value on so many GPUs."""


def rows(figures: Figures, assumed: Assumed) -> list[Row]:
    """The whole table. Raises KeyError for a figure that is missing."""
    return [
        Row(part, what, unit, tuple(value(n) for n in WORKERS))
        for part, lines in PARTS.items()
        for what, unit, value in lines(figures, assumed)
    ]


def _order(f: Figures, a: Assumed) -> Lines:
    windows_per_s = a.images_per_s / ((4 << 20) // a.sample_bytes)

    def share(n: int) -> float:
        return 100 * windows_per_s * f[f"order_window_us_{n}"] / 1e6

    yield "CPU of a worker for the order", "% of a core", share
    yield "a new epoch, for each worker", "CPU ms", lambda n: f[f"order_epoch_ms_{n}"]
    yield "memory of each worker", "MB", lambda n: f[f"order_bytes_{n}"] / 1e6


def _index(f: Figures, a: Assumed) -> Lines:
    tables = f["table_bytes_per_image"] * a.set_images
    whole = "index.json, read by all at the start"
    yield whole, "GB", lambda n: n * f["index_bytes_1e8"] / 1e9
    yield "tables of an epoch, 8 bytes an image", "GB", lambda n: tables / 1e9
    yield "parsing it, each worker", "CPU s", lambda n: f["index_load_ms_1e8"] / 1e3
    yield "memory of it, each worker", "MB", lambda n: f["index_memory_bytes_1e8"] / 1e6


def _start(f: Figures, a: Assumed) -> Lines:
    each = f["start_requests_data"] + f["start_requests_restoring"]
    size = f[f"checkpoint_bytes_{a.job}"]
    yield "requests of all workers", "", lambda n: n * each
    yield "that is, at the rate of one prefix", "s", lambda n: n * each / a.gets_per_s
    yield "bytes of a restart: the checkpoint for each", "GB", lambda n: n * size / 1e9


def _training(f: Figures, a: Assumed) -> Lines:
    for streams, told in (
        ("own", "a shuffle stream or more for each worker"),
        ("default", "96 shuffle streams"),
    ):

        def gets(n: int, streams: str = streams) -> float:
            return n * a.images_per_s * f[f"gets_per_image_{streams}_{n}"]

        def share(n: int, gets: Callable[[int], float] = gets) -> float:
            return 100 * gets(n) / a.gets_per_s

        def price(n: int, gets: Callable[[int], float] = gets) -> float:
            return 3600 * a.hours * gets(n) * a.usd_per_1000_gets / 1000

        yield f"GETs, {told}", "/s", gets
        yield f"share of one prefix's rate, {told}", "%", share
        yield f"GETs in {a.hours:g} h, {told}", "USD", price

    def gb_per_s(n: int) -> float:
        return n * a.images_per_s * f[f"bytes_per_image_own_{n}"] / 1e9

    yield "bytes, a shuffle stream or more for each worker", "GB/s", gb_per_s


def _mlflow(f: Figures, a: Assumed) -> Lines:
    def points(n: int) -> float:
        return a.own_metrics + (5 * n if n <= MAX_RANKS else 10)

    def moments(n: int) -> float:
        return POINTS_PER_EPOCH / _epoch_s(n, a)

    def requests(n: int) -> float:
        return min(1 / SEND_EVERY_S, moments(n))

    def share(n: int) -> float:
        return 100 * n / SEND_EVERY_S * f["mlflow_small_cpu_ms"] / 1e3

    yield "points of one moment, one training", "", points
    yield "moments, one training, log_every by default", "/s", moments
    yield "requests, one training: one a second at most", "/s", requests
    a_point_a_second = "requests, a sweep of one GPU each, a point a second"
    yield a_point_a_second, "/s", lambda n: n / SEND_EVERY_S
    yield "what they cost the server", "% of a core", share


def _driver(f: Figures, a: Assumed) -> Lines:
    del a
    each_ms = (f["poll_cpu_ms_32"] - f["poll_cpu_ms_8"]) / 24

    def beat_s(n: int) -> float:
        return max(HEARTBEAT_S, n / MAX_HEARTBEATS_PER_S)

    def beats(n: int) -> float:
        return 100 * n / beat_s(n) * f["mailbox_beat_cpu_ms"] / 1e3

    def looks(n: int) -> float:
        return 100 / POLL_S * f[f"mailbox_look_cpu_ms_{n}"] / 1e3

    missed = "signs of life that may be missed before it is ended"
    polled = "Ray Train: one look at all workers, extrapolated"
    yield "seconds between two signs of life of a worker", "s", beat_s
    yield missed, "", lambda n: (HEARTBEAT_TIMEOUT_S - SEND_TIMEOUT_S) / beat_s(n)
    yield "mailbox: signs of life", "% of a core", beats
    yield "mailbox: the driver's looks", "% of a core", looks
    yield polled, "CPU ms", lambda n: f["poll_cpu_ms_8"] + (n - 8) * each_ms
    yield "gloo: connections of a worker", "", lambda n: n - 1
    yield "gloo: connections in all", "", lambda n: n * (n - 1) / 2


def _sweep(f: Figures, a: Assumed) -> Lines:
    del a
    for scheduler in ("asha", "median"):

        def look_ms(n: int, scheduler: str = scheduler) -> float:
            return f[f"look_{scheduler}_cpu_ms_{n}"] + f["record_write_ms"]

        # At each of two rungs three more records: that it waits, may go on, and runs.
        more_ms = 2 * 3 * f["record_write_ms"] if scheduler == "asha" else 0

        def shortest_s(
            n: int, look_ms: Callable[[int], float] = look_ms, more_ms: float = more_ms
        ) -> float:
            return n * (LOOKS * look_ms(n) + more_ms) / 1e3

        yield f"conductor: one look, {scheduler}", "ms", look_ms
        yield f"shortest training that it keeps up with, {scheduler}", "s", shortest_s

    def told(n: int) -> float:
        return 100 / CONDUCTOR_POLL_S * f[f"sweep_told_cpu_ms_{n}"] / 1e3

    yield "conductor: the driver's looks", "% of a core", told


def _checkpoint(f: Figures, a: Assumed) -> Lines:
    size = f[f"checkpoint_bytes_{a.job}"]
    kept, copied = (KEEP + 1) * size / 1e9, size / 1e6 / f["copy_mb_per_cpu_s"]
    pools = 2 * POOL_IMAGES * 3 * 256**2 * 4

    def puts(n: int) -> float:
        return 86400 / _epoch_s(n, a) * f["checkpoint_files"] * a.usd_per_1000_puts / 1000

    def with_pools(n: int) -> float:
        return (f["checkpoint_bytes_cyclegan"] + (n - 1) * pools) / 1e9

    written_s = size / 1e6 / f["save_mb_per_cpu_s"]
    yield f"of {a.job}, written by rank 0 alone", "GB", lambda n: size / 1e9
    yield "in the storage: those kept and the one being written", "GB", lambda n: kept
    yield "training waits for the copy to the host", "s", lambda n: copied
    yield "written and read back, in a thread", "CPU s", lambda n: written_s
    yield "checkpoint_every by default: an epoch", "s", lambda n: _epoch_s(n, a)
    yield "PUTs in that time", "USD/day", puts
    yield "cyclegan, 256 px: with every rank's pools", "GB", with_pools


def _gradients(f: Figures, a: Assumed) -> Lines:
    num_bytes = 4 * f[f"parameters_{a.job}"]
    each = "sent and received by each worker, for each step"
    yield each, "MB", lambda n: 2 * (n - 1) / n * num_bytes / 1e6


def _epoch_s(n: int, a: Assumed) -> float:
    return a.set_images / (n * a.images_per_s)


PARTS: Mapping[str, Callable[[Figures, Assumed], Lines]] = {
    "order": _order,
    "index": _index,
    "S3, a start": _start,
    "S3, training": _training,
    "MLflow": _mlflow,
    "driver": _driver,
    "sweep": _sweep,
    "checkpoint": _checkpoint,
    "gradients": _gradients,
}


def markdown(table: list[Row]) -> str:
    """The table for docs/scale.md."""
    lines = ["| | what | 8 | 256 | 4,096 | |", "|---|---|--:|--:|--:|---|"]
    before = ""
    for row in table:
        values = " | ".join(map(shown, row.values))
        name = "" if row.part == before else row.part
        lines.append(f"| {name} | {row.what} | {values} | {row.unit} |")
        before = row.part
    return "\n".join(lines) + "\n"


def sizes(figures: Figures) -> str:
    """The second table: what each job's checkpoint comes to, the largest first."""
    jobs = [n.removeprefix("parameters_") for n in figures if n.startswith("parameters_")]
    lines = [
        "| job | million parameters | a checkpoint, MB | in the storage, GB "
        "| read by 256 workers at a restart, GB |",
        "|---|--:|--:|--:|--:|",
    ]
    for job in sorted(jobs, key=lambda job: -figures[f"checkpoint_bytes_{job}"]):
        size = figures[f"checkpoint_bytes_{job}"]
        values = figures[f"parameters_{job}"] / 1e6, size / 1e6, (KEEP + 1) * size / 1e9
        cells = " | ".join(map(shown, (*values, 256 * size / 1e9)))
        lines.append(f"| {job} | {cells} |")
    return "\n".join(lines) + "\n"


def shown(value: float) -> str:
    """A number in two or three digits."""
    if value >= 100:
        digits = len(f"{value:.0f}")
        return f"{round(value, 3 - digits):,.0f}"
    return f"{value:.2g}" if value < 10 else f"{value:.0f}"

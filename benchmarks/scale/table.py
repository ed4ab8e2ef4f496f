"""Extrapolate the measured figures to 8, 256 and 4,096 GPUs with one worker each.

docs/scale.md explains the rows.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from orchestrator.cluster.ray_worker import HEARTBEAT_S, MAX_HEARTBEATS_PER_S, SEND_TIMEOUT_S
from orchestrator.cluster.supervisor import POLL_S
from orchestrator.cluster.tune_runner import POLL_S as SWEEP_POLL_S
from orchestrator.cluster.worker_state import HEARTBEAT_TIMEOUT_S
from orchestrator.config.logged_metrics import MAX_RANKS
from orchestrator.runs.checkpoints import KEEP
from orchestrator.tracking.tracker import SEND_EVERY_S
from orchestrator.training.loop import POINTS_PER_EPOCH

WORKERS = (8, 256, 4096)
POOL_IMAGES = 50
"""Images in each of CycleGAN's two pools, as in jobs/cyclegan.yaml."""
RESULTS_PER_TRIAL = 20
"""Intermediate results of a complete trial, by default."""


@dataclass(frozen=True)
class Assumptions:
    """Values that were not measured; replace them by your own."""

    images_per_s: float = 1000
    """Per GPU."""
    set_images: float = 1e8
    sample_bytes: float = 37 * 512
    gets_per_s: float = 5500
    """Minimum rate that AWS guarantees per partitioned prefix for GET and HEAD."""
    usd_per_1000_gets: float = 0.0004
    usd_per_1000_puts: float = 0.005
    usd_per_gb_month: float = 0.023
    own_metrics: float = 12
    """Metrics per log, without those of the data pipeline."""
    hours: float = 24
    """Length of the run for which costs are given."""
    job: str = "pix2pix"
    """Job for the sizes of checkpoints and gradients."""


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    part: str
    what: str
    unit: str
    values: tuple[float, ...]
    """One value for each number in WORKERS."""


Figures = Mapping[str, float]
Lines = Iterator[tuple[str, str, Callable[[int], float]]]
"""Text, unit, and value as a function of the number of GPUs."""


def build_rows(figures: Figures, assumed: Assumptions) -> list[Row]:
    """Compute the whole table. Raises KeyError if a figure is missing."""
    return [
        Row(part, what, unit, tuple(value(n) for n in WORKERS))
        for part, lines in PARTS.items()
        for what, unit, value in lines(figures, assumed)
    ]


def _order(f: Figures, a: Assumptions) -> Lines:
    windows_per_s = a.images_per_s / ((4 << 20) // a.sample_bytes)

    def share(n: int) -> float:
        return 100 * windows_per_s * f[f"order_window_us_{n}"] / 1e6

    yield "CPU of a worker for the sample order", "% of a core", share
    yield "starting an epoch, per worker", "CPU ms", lambda n: f[f"order_epoch_ms_{n}"]
    yield "memory per worker", "MB", lambda n: f[f"order_bytes_{n}"] / 1e6


def _index(f: Figures, a: Assumptions) -> Lines:
    tables = f["table_bytes_per_image"] * a.set_images
    index = "index.json, read by all workers at the start"
    yield index, "GB", lambda n: n * f["index_bytes_1e8"] / 1e9
    yield "sample tables of an epoch, 8 bytes per image", "GB", lambda n: tables / 1e9
    yield "parsing the index, per worker", "CPU s", lambda n: f["index_load_ms_1e8"] / 1e3
    yield "memory of the index, per worker", "MB", lambda n: f["index_memory_bytes_1e8"] / 1e6


def _start(f: Figures, a: Assumptions) -> Lines:
    each = f["start_requests_data"] + f["start_requests_restore"]
    size = f[f"checkpoint_bytes_{a.job}"]
    yield "requests of all workers", "", lambda n: n * each
    yield "time at the rate limit of one prefix", "s", lambda n: n * each / a.gets_per_s
    yield "bytes of a restart, one checkpoint per worker", "GB", lambda n: n * size / 1e9


def _training(f: Figures, a: Assumptions) -> Lines:
    for streams, case in (
        ("own", "at least one shuffle stream per worker"),
        ("default", "96 shuffle streams"),
    ):

        def gets(n: int, streams: str = streams) -> float:
            return n * a.images_per_s * f[f"gets_per_image_{streams}_{n}"]

        def share(n: int, gets: Callable[[int], float] = gets) -> float:
            return 100 * gets(n) / a.gets_per_s

        def price(n: int, gets: Callable[[int], float] = gets) -> float:
            return 3600 * a.hours * gets(n) * a.usd_per_1000_gets / 1000

        yield f"GETs, {case}", "/s", gets
        yield f"fraction of the rate limit of one prefix, {case}", "%", share
        yield f"cost of the GETs in {a.hours:g} h, {case}", "USD", price

    def gb_per_s(n: int) -> float:
        return n * a.images_per_s * f[f"bytes_per_image_own_{n}"] / 1e9

    yield "bytes, at least one shuffle stream per worker", "GB/s", gb_per_s


def _mlflow(f: Figures, a: Assumptions) -> Lines:
    def points(n: int) -> float:
        return a.own_metrics + (5 * n if n <= MAX_RANKS else 10)

    def logs(n: int) -> float:
        return POINTS_PER_EPOCH / _epoch_s(n, a)

    def requests(n: int) -> float:
        return min(1 / SEND_EVERY_S, logs(n))

    def share(n: int) -> float:
        return 100 * n / SEND_EVERY_S * f["mlflow_small_cpu_ms"] / 1e3

    yield "points per log, one run", "", points
    yield "logs, one run, default log_every", "/s", logs
    yield "requests, one run, at most one per second", "/s", requests
    sweep = "requests, a sweep of one-GPU trials, one log per second"
    yield sweep, "/s", lambda n: n / SEND_EVERY_S
    yield "CPU of the server for these requests", "% of a core", share


def _driver(f: Figures, a: Assumptions) -> Lines:
    del a
    each_ms = (f["poll_cpu_ms_32"] - f["poll_cpu_ms_8"]) / 24

    def interval_s(n: int) -> float:
        return max(HEARTBEAT_S, n / MAX_HEARTBEATS_PER_S)

    def heartbeats(n: int) -> float:
        return 100 * n / interval_s(n) * f["heartbeat_cpu_ms"] / 1e3

    def reads(n: int) -> float:
        return 100 / POLL_S * f[f"worker_state_read_cpu_ms_{n}"] / 1e3

    missed = "heartbeats that may be missed before the timeout"
    poll = "Ray Train: one poll of all workers, extrapolated"
    yield "heartbeat interval of a worker", "s", interval_s
    yield missed, "", lambda n: (HEARTBEAT_TIMEOUT_S - SEND_TIMEOUT_S) / interval_s(n)
    yield "worker-group state: heartbeats", "% of a core", heartbeats
    yield "worker-group state: reads by the driver", "% of a core", reads
    yield poll, "CPU ms", lambda n: f["poll_cpu_ms_8"] + (n - 8) * each_ms
    yield "gloo: connections per worker", "", lambda n: n - 1
    yield "gloo: connections in total", "", lambda n: n * (n - 1) / 2


def _sweep(f: Figures, a: Assumptions) -> Lines:
    del a
    for scheduler in ("asha", "median"):

        def result_ms(n: int, scheduler: str = scheduler) -> float:
            return f[f"result_{scheduler}_cpu_ms_{n}"] + f["record_write_ms"]

        # Three more records at each of two rungs: paused, promoted, running.
        more_ms = 2 * 3 * f["record_write_ms"] if scheduler == "asha" else 0

        def shortest_s(
            n: int, result_ms: Callable[[int], float] = result_ms, more_ms: float = more_ms
        ) -> float:
            return n * (RESULTS_PER_TRIAL * result_ms(n) + more_ms) / 1e3

        yield f"controller: one intermediate result, {scheduler}", "ms", result_ms
        yield f"shortest trial that it keeps up with, {scheduler}", "s", shortest_s

    def reads(n: int) -> float:
        return 100 / SWEEP_POLL_S * f[f"sweep_status_cpu_ms_{n}"] / 1e3

    yield "controller: status reads by the driver", "% of a core", reads


def _checkpoint(f: Figures, a: Assumptions) -> Lines:
    size = f[f"checkpoint_bytes_{a.job}"]
    stored_gb, copy_s = (KEEP + 1) * size / 1e9, size / 1e6 / f["copy_mb_per_cpu_s"]
    pools = 2 * POOL_IMAGES * 3 * 256**2 * 4

    def puts(n: int) -> float:
        return 86400 / _epoch_s(n, a) * f["checkpoint_files"] * a.usd_per_1000_puts / 1000

    def with_pools(n: int) -> float:
        return (f["checkpoint_bytes_cyclegan"] + (n - 1) * pools) / 1e9

    save_s = size / 1e6 / f["save_mb_per_cpu_s"]
    yield f"size for {a.job}, written by rank 0 only", "GB", lambda n: size / 1e9
    yield "in the storage, including the one being written", "GB", lambda n: stored_gb
    yield "training waits for the copy to the host", "s", lambda n: copy_s
    yield "writing and reading back, in a thread", "CPU s", lambda n: save_s
    yield "default checkpoint_every, one epoch", "s", lambda n: _epoch_s(n, a)
    yield "PUTs at this interval", "USD/day", puts
    yield "cyclegan at 256 px, with the pools of all ranks", "GB", with_pools


def _gradients(f: Figures, a: Assumptions) -> Lines:
    num_bytes = 4 * f[f"parameters_{a.job}"]
    text = "sent and received per worker and step"
    yield text, "MB", lambda n: 2 * (n - 1) / n * num_bytes / 1e6


def _epoch_s(n: int, a: Assumptions) -> float:
    return a.set_images / (n * a.images_per_s)


PARTS: Mapping[str, Callable[[Figures, Assumptions], Lines]] = {
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


def render_table(table: list[Row]) -> str:
    """Render the table for docs/scale.md."""
    lines = ["| | what | 8 | 256 | 4,096 | |", "|---|---|--:|--:|--:|---|"]
    before = ""
    for row in table:
        values = " | ".join(map(format_number, row.values))
        name = "" if row.part == before else row.part
        lines.append(f"| {name} | {row.what} | {values} | {row.unit} |")
        before = row.part
    return "\n".join(lines) + "\n"


def render_checkpoint_sizes(figures: Figures) -> str:
    """Render the second table, the size of each job's checkpoint, largest first."""
    jobs = [n.removeprefix("parameters_") for n in figures if n.startswith("parameters_")]
    lines = [
        "| job | million parameters | checkpoint, MB | in the storage, GB "
        "| read by 256 workers at a restart, GB |",
        "|---|--:|--:|--:|--:|",
    ]
    for job in sorted(jobs, key=lambda job: -figures[f"checkpoint_bytes_{job}"]):
        size = figures[f"checkpoint_bytes_{job}"]
        values = figures[f"parameters_{job}"] / 1e6, size / 1e6, (KEEP + 1) * size / 1e9
        cells = " | ".join(map(format_number, (*values, 256 * size / 1e9)))
        lines.append(f"| {job} | {cells} |")
    return "\n".join(lines) + "\n"


def format_number(value: float) -> str:
    """Format a number with two or three significant digits."""
    if value >= 100:
        digits = len(f"{value:.0f}")
        return f"{round(value, 3 - digits):,.0f}"
    return f"{value:.2g}" if value < 10 else f"{value:.0f}"

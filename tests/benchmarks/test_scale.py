"""Check the scale table against one column by hand, and the counts against a real S3 server."""

import io
import json
from collections import defaultdict
from pathlib import Path

import numpy
import pytest
from PIL import Image

from benchmarks.scale import reading
from benchmarks.scale.figures import FILE, GROUPS, load_figures
from benchmarks.scale.table import (
    Assumptions,
    build_rows,
    format_number,
    render_checkpoint_sizes,
    render_table,
)
from orchestrator.data.format.writer import ShardWriter
from orchestrator.data.loading.sampler import SampleOrder
from orchestrator.data.loading.window_reader import MAX_GAP_BYTES
from orchestrator.seeding import seed_of
from orchestrator.storage.open import open_storage
from services.faulty_s3 import faulty_s3
from services.s3 import BUCKET, S3Server

ROOT = Path(__file__).parents[2]
FIGURES: dict[str, float] = defaultdict(
    lambda: 7.0,
    order_window_us_256=40,
    order_epoch_ms_256=3,
    order_bytes_256=500_000,
    index_bytes_1e8=4_000_000,
    index_load_ms_1e8=300,
    index_memory_bytes_1e8=35_000_000,
    table_bytes_per_image=8,
    start_requests_data=17,
    start_requests_restore=9,
    gets_per_image_own_256=0.005,
    gets_per_image_default_256=0.6,
    bytes_per_image_own_256=19_000,
    mlflow_small_cpu_ms=12,
    heartbeat_cpu_ms=0.25,
    worker_state_read_cpu_ms_256=4,
    poll_cpu_ms_8=2,
    poll_cpu_ms_32=8,
    record_write_ms=10,
    result_asha_cpu_ms_256=1,
    result_median_cpu_ms_256=6,
    sweep_status_cpu_ms_256=5,
    checkpoint_bytes_pix2pix=900_000_000,
    checkpoint_bytes_cyclegan=460_000_000,
    checkpoint_files=7,
    parameters_pix2pix=50_000_000,
    copy_mb_per_cpu_s=1000,
    save_mb_per_cpu_s=100,
)
BY_HAND = {
    # A worker takes 1,000 images a second from windows of 4 MiB / 18,944 = 221 images.
    "CPU of a worker for the sample order": 100 * (1000 / 221) * 40e-6,
    "starting an epoch, per worker": 3,
    "memory per worker": 0.5,
    "index.json, read by all workers at the start": 1.024,
    "sample tables of an epoch, 8 bytes per image": 0.8,
    "parsing the index, per worker": 0.3,
    "memory of the index, per worker": 35,
    "requests of all workers": 6656,
    "time at the rate limit of one prefix": 6656 / 5500,
    "bytes of a restart, one checkpoint per worker": 230.4,
    # 256,000 images a second.
    "GETs, at least one shuffle stream per worker": 1280,
    "fraction of the rate limit of one prefix, at least one shuffle stream per worker": 128_000
    / 5500,
    "cost of the GETs in 24 h, at least one shuffle stream per worker": 1280 * 86_400 * 0.0000004,
    "GETs, 96 shuffle streams": 153_600,
    "fraction of the rate limit of one prefix, 96 shuffle streams": 15_360_000 / 5500,
    "cost of the GETs in 24 h, 96 shuffle streams": 153_600 * 86_400 * 0.0000004,
    "bytes, at least one shuffle stream per worker": 4.864,
    "points per log, one run": 22,
    # An epoch takes 100 million / 256,000 = 390.625 s.
    "logs, one run, default log_every": 0.256,
    "requests, one run, at most one per second": 0.256,
    "requests, a sweep of one-GPU trials, one log per second": 256,
    "CPU of the server for these requests": 307.2,
    "heartbeat interval of a worker": 0.64,
    "heartbeats that may be missed before the timeout": 15 / 0.64,
    "worker-group state: heartbeats": 10,
    "worker-group state: reads by the driver": 0.8,
    # 2 ms for 8 workers, and 6 ms for 24 more.
    "Ray Train: one poll of all workers, extrapolated": 64,
    "gloo: connections per worker": 255,
    "gloo: connections in total": 32_640,
    "controller: one intermediate result, asha": 11,
    "shortest trial that it keeps up with, asha": 256 * (20 * 0.011 + 6 * 0.010),
    "controller: one intermediate result, median": 16,
    "shortest trial that it keeps up with, median": 256 * 20 * 0.016,
    "controller: status reads by the driver": 0.5,
    "size for pix2pix, written by rank 0 only": 0.9,
    "in the storage, including the one being written": 3.6,
    "training waits for the copy to the host": 0.9,
    "writing and reading back, in a thread": 9,
    "default checkpoint_every, one epoch": 390.625,
    "PUTs at this interval": (86_400 / 390.625) * 7 * 0.000005,
    # 100 images of 3 x 256 x 256 floats are 78,643,200 bytes; 460 MB have one worker's.
    "cyclegan at 256 px, with the pools of all ranks": 0.46 + 255 * 0.0786432,
    # 200 MB; each worker sends and gets 255 / 256 of that twice.
    "sent and received per worker and step": 398.4375,
}


def test_the_column_of_256_gpus_equals_the_one_computed_by_hand() -> None:
    table = build_rows(FIGURES, Assumptions())
    assert {row.what: row.values[1] for row in table} == pytest.approx(BY_HAND)


def test_the_page_has_the_tables_of_the_saved_figures() -> None:
    page = (ROOT / "docs/scale.md").read_text()
    assert render_table(build_rows(load_figures(), Assumptions())) in page
    assert render_checkpoint_sizes(load_figures()) in page
    saved = json.loads(FILE.read_text())
    assert list(saved) == list(GROUPS)
    assert all(f"python -m benchmarks.scale measure {group}" in page for group in GROUPS)


def test_checkpoint_sizes_are_listed_largest_first() -> None:
    few = {
        "parameters_a": 2_000_000,
        "checkpoint_bytes_a": 32_000_000,
        "parameters_b": 5_000_000,
        "checkpoint_bytes_b": 60_000_000,
    }
    assert render_checkpoint_sizes(few).splitlines()[2:] == [
        "| b | 5 | 60 | 0.24 | 15 |",
        "| a | 2 | 32 | 0.13 | 8.2 |",
    ]


def test_numbers_are_formatted_with_few_digits() -> None:
    numbers = (0.00412, 0.6, 9.96, 23.4, 99.7, 123.4, 4096, 153_600, 8_386_560)
    assert list(map(format_number, numbers)) == [
        "0.0041", "0.6", "10", "23", "100", "123", "4,100", "154,000", "8,390,000",
    ]  # fmt: skip


SIDE = 64
COUNT = 400
BLOCKS = 26
WORKERS = 4


@pytest.fixture(scope="module")
def packed(running_s3: S3Server) -> str:
    """Pack 400 noise images of 26 tar blocks each into shards of 40."""
    uri = f"s3://{BUCKET}/scale"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in running_s3.environment.items():
            patch.setenv(name, value)
        noise = numpy.random.default_rng(0)
        writer = ShardWriter(
            uri, ("image",), image_size=SIDE, channels=3, shard_bytes=40 * BLOCKS * 512 + 1024
        )
        for n in range(COUNT):
            pixels, buffer = noise.integers(0, 256, (SIDE, SIDE, 3), numpy.uint8), io.BytesIO()
            Image.fromarray(pixels).save(buffer, "PNG")
            writer.add(f"s{n:04d}", {"image": buffer.getvalue()})
        writer.finish()
    return uri


@pytest.mark.parametrize("num_streams", [4, 3])
@pytest.mark.server
def test_counted_requests_equal_those_at_a_real_server(
    packed: str, running_s3: S3Server, monkeypatch: pytest.MonkeyPatch, num_streams: int
) -> None:
    with faulty_s3(running_s3) as proxy:
        for name, value in proxy.environment.items():
            monkeypatch.setenv(name, value)
        job = reading.make_job(packed, WORKERS, num_streams, SIDE)
        window = job.data.model_copy(update={"read_size": 20 * BLOCKS * 512 + 5000})
        job = job.model_copy(update={"data": window})
        reads = reading.count_reads(job, open_storage(packed), 1, WORKERS)
        assert reads.samples == COUNT // WORKERS
        assert proxy.counts["objects"] == 1 + reads.requests  # 1 for the index
    assert (reads.requests, reads.tables, reads.bytes_read) == by_hand(num_streams, rank=1)


def by_hand(num_streams: int, rank: int) -> tuple[int, int, int]:
    """Compute requests, requests for tables, and bytes from the sample order."""
    order = SampleOrder([40] * 10, seed_of("order", 0), num_streams=num_streams, window_size=20)
    windows: dict[tuple[int, int], set[tuple[int, int]]] = {}
    for n in range(rank, COUNT, WORKERS):
        place, window = order.locate(n), order.window_at(n)
        windows.setdefault((window.stream, window.start), set()).add((place.shard, place.index))
    requests, num_bytes, shards = 0, 0, set()
    for places in windows.values():
        last: tuple[int, int] | None = None
        for shard, index in sorted(places):
            shards.add(shard)
            between = 0 if last is None else (index - last[1] - 1) * BLOCKS * 512
            if last is None or last[0] != shard or between > MAX_GAP_BYTES:
                requests, between = requests + 1, 0
            num_bytes += between + BLOCKS * 512
            last = shard, index
    return requests + len(shards), len(shards), num_bytes + 40 * 8 * len(shards)


def test_a_synthetic_set_is_read_like_a_real_one_of_its_size(tmp_path: Path) -> None:
    made = reading.make_set(tmp_path, 10_000)
    reads = reading.count_reads(reading.make_job(str(tmp_path), 8, 8), made.storage, 3, 8)
    assert reads.samples == 1250
    # One shuffle stream in windows of 221 images, some of which span two shards.
    assert 1250 // 221 <= reads.requests - reads.tables <= 1250 // 221 + 2 + reads.tables
    assert reads.bytes_read - 8 * 3542 * reads.tables == pytest.approx(1250 * 18_944, rel=0.2)

"""Compare streaming of two sets mixed by weight with streaming of one set with the same images.

    python -m benchmarks.mixing --rounds 7 --kind photos --count 1024

Both are read from a folder by one worker, with the job's defaults and two decoding threads, in turn
and each round with another seed. Images per CPU second do not depend on what else the machine does.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import torch

from benchmarks.stream.kinds import KINDS, Kind, read_source, write_source
from orchestrator.config.job import Job
from orchestrator.data.format.writer import ShardWriter
from orchestrator.data.loading.stream import ShardStream

BATCH = 32
WEIGHTS = (3, 1)


def pack(kind: Kind, source: Path, uri: Path, numbers: range) -> str:
    """Pack the samples with these numbers of ``source``."""
    writer = ShardWriter(
        str(uri), kind.fields, image_size=kind.size, channels=kind.channels, extension=kind.suffix
    )
    for key, images in islice(read_source(source), numbers.start, numbers.stop):
        writer.add(key, images)
    writer.finish()
    return str(uri)


def read(kind: Kind, train: object, seed: int, count: int) -> tuple[float, float]:
    """Read ``count`` images; return images per second and per second of CPU."""
    job = Job.model_validate(
        {
            "name": "benchmark",
            "model": {"name": "autoencoder", "image_size": kind.size, "channels": kind.channels},
            "data": {"train": train, "threads": 2},
            "train": {"epochs": 1, "batch_size": BATCH, "seed": seed},
        }
    )
    start, cpu = time.perf_counter(), time.process_time()
    batches = ShardStream(job, 0, 1).training(0)
    for _ in islice(batches, count // BATCH):
        pass
    wall_s, cpu_s = time.perf_counter() - start, time.process_time() - cpu
    batches.close()
    return count / wall_s, count / cpu_s


def show(name: str, values: Sequence[float], base: Sequence[float]) -> str:
    """Format the median with lowest and highest, and the median ratio to ``base``."""
    ratio = statistics.median(v / b for v, b in zip(values, base, strict=True))
    middle = statistics.median(values)
    return f"{name}: {middle:,.0f} ({min(values):,.0f} to {max(values):,.0f}), ratio {ratio:.3f}"


def main() -> None:
    """Measure and print; see the module docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kind", choices=("digits", "photos"), default="photos")
    parser.add_argument("--count", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    kind, count = KINDS[options.kind], options.count
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="mixing-") as name:
        folder = Path(name)
        source, part = folder / "source.tar", count * WEIGHTS[0] // sum(WEIGHTS)
        write_source(kind, count, source)
        whole = pack(kind, source, folder / "whole", range(count))
        sets = [
            pack(kind, source, folder / "first", range(part)),
            pack(kind, source, folder / "second", range(part, count)),
        ]
        mixed = [{"path": p, "weight": w} for p, w in zip(sets, WEIGHTS, strict=True)]
        found: dict[str, list[tuple[float, float]]] = {"one set": [], "two sets": []}
        for number in range(options.rounds + 1):
            for label, train in (("one set", whole), ("two sets", mixed)):
                result = read(kind, train, number, count)
                print(f"{label}, round {number}: {result}", file=sys.stderr, flush=True)
                if number:  # the first round imports and fills the page cache
                    found[label].append(result)
    for column, unit in enumerate(("images/s", "images per CPU second")):
        base = [each[column] for each in found["one set"]]
        for label, results in found.items():
            print(show(f"{options.kind}, {label}, {unit}", [r[column] for r in results], base))


if __name__ == "__main__":
    main()

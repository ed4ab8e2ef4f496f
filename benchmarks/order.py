"""Measure the order of samples at scale: memory, time per position, time per sample.

    python benchmarks/order.py --samples 100_000_000 --shards 100_000 --ranks 4096

Simulates the ranks one after another, without data.
"""

import argparse
import resource
import statistics
import time
import tracemalloc

import numpy

from orchestrator.data.loading.sampler import SampleOrder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=100_000_000)
    parser.add_argument("--shards", type=int, default=100_000)
    parser.add_argument("--ranks", type=int, default=4096)
    parser.add_argument("--window", type=int, default=40, help="samples per window")
    options = parser.parse_args()
    sizes = numpy.full(options.shards, options.samples // options.shards)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tracemalloc.start()
    start = time.perf_counter()
    order = SampleOrder(sizes, seed=1, num_streams=options.ranks, window_size=options.window)
    order.locate(0)
    first_s = time.perf_counter() - start
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    total = order.num_samples
    print(
        f"{total:,} samples, {options.shards:,} shards, {options.ranks:,} ranks and shuffle streams"
    )
    print(
        f"construction and first position: {1e3 * first_s:.1f} ms; {held / 1e6:.1f} MB held, "
        f"{peak / 1e6:.1f} MB at peak"
    )
    random = numpy.random.default_rng(0)
    times = []
    for n in random.integers(0, total, 2000).tolist():
        start = time.perf_counter()
        order.locate(n)
        times.append(time.perf_counter() - start)
    print(f"a position in the current epoch: {1e6 * statistics.median(times):.0f} us")
    times = []
    for epoch in range(2, 12):
        start = time.perf_counter()
        order.locate(epoch * total + 12345)
        times.append(time.perf_counter() - start)
    print(f"a position in another epoch: {1e3 * statistics.median(times):.1f} ms")
    start = time.perf_counter()
    for rank in range(options.ranks):
        order.window_at(total // 2 // options.ranks * options.ranks + rank)
    each = (time.perf_counter() - start) / options.ranks
    print(
        f"a window of a rank in the middle of the epoch: {1e6 * each:.0f} us, "
        f"{1e6 * each / options.window:.2f} us per sample"
    )
    growth = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(f"the process grew by {growth / 1e3:.1f} MB in total")


if __name__ == "__main__":
    main()

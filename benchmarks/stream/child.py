"""Run in a tool's own environment: make the source, pack a set, or read it once.

The last line on standard output is the result, as JSON.
"""

import argparse
import importlib
import json
import os
import time
from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from benchmarks.stream import pixels, processes
from benchmarks.stream.kinds import KINDS, read_source, write_source
from benchmarks.stream.setting import Setting


def make(setting: Setting) -> dict[str, Any]:
    """Write the source and a file with the fingerprints of its samples."""
    write_source(setting.kind, setting.count, setting.source)

    def batch(images: dict[str, bytes]) -> torch.Tensor:
        decoded = pixels.collate([pixels.decode_sample(images, setting.kind)])
        return pixels.subsample(pixels.to_float(decoded), setting.kind)

    expected = pixels.fingerprints(batch(images) for _, images in read_source(setting.source))
    fingerprints_path(setting).write_text(json.dumps(sorted(expected.elements())))
    return {"count": expected.total(), "bytes": setting.source.stat().st_size}


def fingerprints_path(setting: Setting) -> Path:
    """Return the path of the fingerprints of the source."""
    return setting.source.with_suffix(".json")


def read(tool: Any, setting: Setting) -> dict[str, Any]:
    """Read and time one epoch."""
    processes.adopt_orphans()
    expected = Counter(json.loads(fingerprints_path(setting).read_text()))
    before_start = time.perf_counter()
    tool.start(setting)
    startup_s = time.perf_counter() - before_start

    base = processes.pss_bytes(os.getpid())
    cpu, start = processes.cpu_seconds(os.getpid()), time.perf_counter()
    batches = tool.batches(setting)
    first = next(batches)
    first_s = time.perf_counter() - start
    values = [pixels.subsample(images, setting.kind) for images in chain([first], batches)]
    seconds = time.perf_counter() - start
    cpu = processes.cpu_seconds(os.getpid()) - cpu

    found = pixels.compare(expected, pixels.fingerprints(values))
    if hasattr(tool, "stop"):
        tool.stop()
    return {
        "samples_per_s": found["delivered"] / seconds,
        "seconds": seconds,
        "first_batch_s": first_s,
        "cpu_s_per_1000": 1000 * cpu / max(1, found["delivered"]),
        "startup_s": startup_s,
        "pss_before_mib": base / 2**20,
        "disk_mib": processes.disk_bytes(setting.scratch) / 2**20,
        **found,
    }


def main() -> None:
    """Run one action and print its result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("do", choices=("make", "pack", "read"))
    parser.add_argument("--tool", help="a module in benchmarks.stream.tools")
    parser.add_argument("--kind", choices=KINDS, required=True)
    parser.add_argument("--uri", default="")
    for name in ("count", "shards", "seed"):
        parser.add_argument(f"--{name}", type=int, required=True)
    for name in ("source", "scratch"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    given = vars(parser.parse_args())
    do, name = given.pop("do"), given.pop("tool")
    setting = Setting(**{**given, "kind": KINDS[given["kind"]]})
    # All tools convert to float in one thread; more would compete with the decoders.
    torch.set_num_threads(1)
    if do == "make":
        result = make(setting)
    else:
        tool = importlib.import_module(f"benchmarks.stream.tools.{name}")
        result = read(tool, setting) if do == "read" else {"packed": tool.pack(setting)}
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()

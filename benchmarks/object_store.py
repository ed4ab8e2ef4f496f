"""Compare boto3, behind our S3Storage, with obstore for reads from one S3 server.

    nice python benchmarks/object_store.py --rounds 7

SeaweedFS, the server of the tests, runs on this machine and shares its cores. Both clients read
the same ranges, in turn and in random order within a round. A ratio is obstore's time divided by
boto3's in the same round; the median and the range over the rounds are printed, for the wall clock
and for the CPU time of this process, which depends less on what else runs here.
"""

import argparse
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from orchestrator.storage.open import open_storage
from services.s3 import BUCKET, s3_server

OBJECT_BYTES = 32 << 20
NUM_OBJECTS = 4
KINDS = {"4 KiB ranges": (4 << 10, 400), "1 MiB ranges": (1 << 20, 96), "32 MiB objects": (0, 8)}
"""Bytes of a read, 0 for whole objects, and the number of reads in a round."""

Read = Callable[[str, int, int], int]
"""Read ``length`` bytes of a key from ``start``, or all if it is 0; return how many."""


def read_with_boto3(uri: str) -> Read:
    storage = open_storage(uri)
    return lambda key, start, length: len(
        storage.get_range(key, start, length) if length else storage.get(key)
    )


def read_with_obstore(uri: str) -> Read:
    from obstore.store import S3Store

    store = S3Store(
        BUCKET,
        prefix=uri.removeprefix(f"s3://{BUCKET}/"),
        endpoint=os.environ["AWS_ENDPOINT_URL_S3"],
        client_options={"allow_http": True},
    )

    def read(key: str, start: int, length: int) -> int:
        found = store.get_range(key, start=start, length=length) if length else None
        return len((store.get(key).bytes() if found is None else found).to_bytes())

    return read


def measure(read: Read, kind: str, threads: int, seed: int) -> tuple[float, float]:
    """Return the wall-clock and the CPU seconds of all reads of a round."""
    length, count = KINDS[kind]
    draw = random.Random(seed)
    reads = [
        (f"{n % NUM_OBJECTS}.bin", draw.randrange(OBJECT_BYTES - (length or 1)) if length else 0)
        for n in range(count)
    ]
    with ThreadPoolExecutor(threads) as pool:
        wall, cpu = time.perf_counter(), time.process_time()
        got = sum(pool.map(lambda at: read(at[0], at[1], length), reads))
        spent = time.perf_counter() - wall, time.process_time() - cpu
    assert got == count * (length or OBJECT_BYTES)
    return spent


def describe(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder, s3_server(Path(folder) / "server") as server:
        os.environ |= server.environment
        uri = f"s3://{BUCKET}/benchmark"
        for n in range(NUM_OBJECTS):
            open_storage(uri).put(f"{n}.bin", random.Random(n).randbytes(OBJECT_BYTES))
        clients = {"boto3": read_with_boto3(uri), "obstore": read_with_obstore(uri)}
        print("| reads | threads | boto3 | obstore | wall clock, ratio | CPU, ratio |")
        print("|---|---|---|---|---|---|")
        for kind in KINDS:
            for threads in (1, 8):
                compare(clients, kind, threads, rounds)


def compare(clients: dict[str, Read], kind: str, threads: int, rounds: int) -> None:
    """Print a row of the table."""
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in clients}
    for number in range(-1, rounds):  # the first round only connects
        for name in random.Random(number).sample(sorted(clients), len(clients)):
            result = measure(clients[name], kind, threads, number)
            if number >= 0:
                spent[name].append(result)
    pairs = list(zip(spent["obstore"], spent["boto3"], strict=True))
    wall, cpu = ([a[i] / b[i] for a, b in pairs] for i in (0, 1))
    count = KINDS[kind][1]
    each = {
        name: f"{1000 * statistics.median(s for s, _ in found) / count:.2f} ms"
        for name, found in spent.items()
    }
    print(
        f"| {kind} | {threads} | {each['boto3']} | {each['obstore']} | {describe(wall)} | "
        f"{describe(cpu)} |",
        flush=True,
    )


if __name__ == "__main__":
    main()

"""Measure the throughput of one MLflow server with SQLite and one worker process."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import count
from pathlib import Path

from benchmarks.scale.timing import wall_s
from services.mlflow_server import MlflowServer, mlflow_server

SMALL = 22
"""Points per log of a GAN on many workers: 12 of its own and 10 of the data pipeline."""
LARGE = 1000
"""MLflow's limit for one request."""
CLIENTS = 4


def measure_mlflow(folder: Path) -> dict[str, float]:
    """Send small and full requests from four runs; measure requests/s and the server's CPU."""
    from mlflow import MlflowClient
    from mlflow.entities import Metric

    found = {}
    with mlflow_server(folder / "mlflow") as server:
        client = MlflowClient(server.uri)
        runs = [client.create_run("0").info.run_id for _ in range(CLIENTS)]

        def send(run: str, size: int, step: int) -> None:
            client.log_batch(run, metrics=[Metric(f"m{k}", 0.5, 0, step) for k in range(size)])

        for name, size, turns in (("small", SMALL, 24), ("large", LARGE, 4)):
            steps = count(1)

            def all_send(
                size: int = size, turns: int = turns, steps: Iterator[int] = steps
            ) -> None:
                work = [(runs[k % CLIENTS], size, next(steps)) for k in range(turns)]
                with ThreadPoolExecutor(CLIENTS) as pool:
                    list(pool.map(lambda given: send(*given), work))

            all_send()  # opens connections and creates the metrics
            before = _cpu_s_of_group(server)
            found[f"mlflow_{name}_requests_per_s"] = turns / wall_s(all_send, 3)
            cpu = (_cpu_s_of_group(server) - before) / (3 * turns)
            found[f"mlflow_{name}_cpu_ms"] = 1e3 * cpu
    return found


def _cpu_s_of_group(server: MlflowServer) -> float:
    """Return the CPU seconds of all processes of the server."""
    assert server._process is not None
    ticks = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # the process has ended
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[2]) == server._process.pid:
                ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")

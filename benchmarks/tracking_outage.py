"""Measure the effect of an MLflow outage on training steps, and count lost points.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/tracking_outage.py --down-s 10 --rounds 20
    OMP_WAIT_POLICY=PASSIVE python benchmarks/tracking_outage.py --kill --down-s 60 --rounds 5

A real server on this machine is reachable and unreachable in turn, while a small pix2pix trains in
this process and logs metrics through a real Tracker every tenth step (--log-every). A ratio is the
step time in a period without a server, divided by the mean of the periods before and after it; the
control is a period with a server divided by the previous one. Ratios are given for the median and
the tenth percentile of the steps in a period; the latter is less affected by other load.

Without ``--kill`` a proxy refuses connections, so that periods can be short. With it the server is
killed, and no step is measured while it restarts on the same cores. At the end the points in MLflow
are compared with those that were logged.
"""

import argparse
import contextlib
import itertools
import multiprocessing
import os
import socket
import statistics
import sys
import tempfile
import threading
import time
from multiprocessing.synchronize import Event
from pathlib import Path

import torch
from mlflow import MlflowClient

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from orchestrator.config.job import TrainSection
from orchestrator.models.base import Batch, ModelConfig, build_model
from orchestrator.tracking import RunRef, Tracker
from orchestrator.training.step import TrainingStep
from services.mlflow_server import MlflowServer, mlflow_server
from services.ports import free_port
from services.proxy import Proxy

SETTLE_S = 6.0
"""Unmeasured start of a period, in which the tracker waits for a retry or sends its backlog."""
Logged = dict[str, dict[int, float]]


class Training:
    """A small training loop with timed steps, including the logging of metrics."""

    def __init__(self, tracker: Tracker, size: int, filters: int, log_every: int) -> None:
        config = ModelConfig.model_validate(
            {"name": "pix2pix", "image_size": size, "filters": filters}
            | {"discriminator_filters": filters, "receptive_field": 34, "norm": "instance"}
        )
        self.model = build_model(config)
        settings = TrainSection.model_validate({"images": 1, "batch_size": 4})
        self.training_step = TrainingStep(self.model, self.model.phases(), settings)
        images, condition = (torch.rand(4, 3, size, size) * 2 - 1 for _ in range(2))
        self.batch = Batch(images, torch.arange(4), condition)
        self.tracker, self.log_every = tracker, log_every
        self.logged: Logged = {}
        self.images_seen = 0
        self.slowest_call_s = 0.0

    def step(self) -> float:
        """Run one step and return its duration in seconds."""
        start = time.perf_counter()
        metrics = self.training_step(self.batch, step=self.images_seen // 4, progress=0.5)
        self.images_seen += 4
        if self.images_seen // 4 % self.log_every:
            return time.perf_counter() - start
        values = {name: float(value) for name, value in metrics.items()}
        before = time.perf_counter()
        self.tracker.log_metrics(values, self.images_seen)
        end = time.perf_counter()
        self.slowest_call_s = max(self.slowest_call_s, end - before)
        for name, value in values.items():
            self.logged.setdefault(name, {})[self.images_seen] = value
        return end - start

    def measure(self, seconds: float) -> list[float]:
        """Run steps for a period; return the durations of those after ``SETTLE_S``."""
        start, steps = time.monotonic(), []
        while (elapsed := time.monotonic() - start) < seconds + SETTLE_S:
            step_s = self.step()
            if elapsed > SETTLE_S:
                steps.append(step_s)
        return steps


def count_lost(client: MlflowClient, run_id: str, logged: Logged) -> tuple[int, int]:
    """Count points missing in MLflow, and points stored twice or with another value."""
    missing = wrong = 0
    for name, expected in logged.items():
        history = client.get_metric_history(run_id, name)
        stored = {metric.step: metric.value for metric in history}
        missing += len(expected.keys() - stored.keys())
        wrong += len(history) - len(stored)
        wrong += sum(expected.get(step) != value for step, value in stored.items())
    return missing, wrong


class Link:
    """A proxy process in front of the server that can refuse all connections."""

    def __init__(self, port: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._works = context.Event()
        self._works.set()
        self.port = free_port()
        arguments = (self.port, port, self._works)
        self._process = context.Process(target=_pass_on, args=arguments, daemon=True)
        self._process.start()
        deadline = time.monotonic() + 30
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
                return
            assert time.monotonic() < deadline
            time.sleep(0.1)

    def disconnect(self) -> None:
        self._works.clear()

    def reconnect(self) -> None:
        self._works.set()


def _pass_on(port: int, target: int, works: Event) -> None:
    while True:
        works.wait()
        with socket.create_server(("127.0.0.1", port)) as listener:
            proxy = Proxy(port, ("127.0.0.1", target))
            threading.Thread(target=proxy.serve, args=(listener,), daemon=True).start()
            while works.is_set():
                time.sleep(0.05)
            listener.shutdown(socket.SHUT_RDWR)
            proxy.cut()


def restart(server: MlflowServer, training: Training) -> None:
    """Restart the server and train, unmeasured, until the backlog has been sent."""
    starting = threading.Thread(target=server.start)
    starting.start()
    while starting.is_alive():
        training.step()
    training.measure(15)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--down-s", type=float, default=10, help="measured seconds of each outage")
    parser.add_argument("--rounds", type=int, default=20, help="number of outages")
    parser.add_argument(
        "--kill", action="store_true", help="kill the server instead of the connection"
    )
    parser.add_argument("--log-every", type=int, default=10, help="steps between logs")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--filters", type=int, default=16)
    options = parser.parse_args()
    torch.set_num_threads(1)
    up: list[list[float]] = []
    down: list[list[float]] = []
    down_s = 0.0
    with tempfile.TemporaryDirectory() as folder, mlflow_server(Path(folder, "server")) as server:
        client, link = MlflowClient(server.uri), Link(server.port)
        experiment = client.create_experiment("outage")
        run_id = client.create_run(experiment).info.run_id
        tracker = Tracker(
            RunRef(f"http://127.0.0.1:{link.port}", experiment, run_id), Path(folder, "spool")
        )
        training = Training(tracker, options.image_size, options.filters, options.log_every)
        training.measure(10)
        up.append(training.measure(options.down_s))
        for number in range(options.rounds):
            began = time.monotonic()
            (server.kill if options.kill else link.disconnect)()
            down.append(training.measure(options.down_s))
            down_s += time.monotonic() - began
            if options.kill:
                restart(server, training)
            else:
                link.reconnect()
            up.append(training.measure(options.down_s))
            periods = (up[-2], down[-1], up[-1])
            medians = ", ".join(f"{1000 * statistics.median(each):.2f}" for each in periods)
            print(f"round {number + 1}: up, down, up: {medians} ms", flush=True)
        tracker.close()
        missing, wrong = count_lost(client, run_id, training.logged)
    for name, statistic in (("median", statistics.median), ("tenth percentile", tenth_percentile)):
        ups, downs = [statistic(each) for each in up], [statistic(each) for each in down]
        ratios = [2 * b / (a + c) for a, b, c in zip(ups, downs, ups[1:], strict=False)]
        controls = [after / before for before, after in itertools.pairwise(ups)]
        print(
            f"{name}: down / up {format_spread(ratios)}; control, up / up {format_spread(controls)}"
        )
    print(f"slowest call of the tracker: {training.slowest_call_s * 1000:.1f} ms")
    points = sum(map(len, training.logged.values()))
    print(
        f"{points} points in {training.images_seen // 4} steps, {missing} lost, {wrong} twice or "
        f"wrong, after {options.rounds} outages of {down_s:.0f} s in total; "
        f"{os.cpu_count()} cores, torch {torch.__version__}"
    )


def tenth_percentile(steps: list[float]) -> float:
    return statistics.quantiles(steps, n=10)[0]


def format_spread(ratios: list[float]) -> str:
    low, _, high = statistics.quantiles(ratios, n=4)
    return f"{statistics.median(ratios):.4f} (middle half {low:.4f} to {high:.4f})"


if __name__ == "__main__":
    main()

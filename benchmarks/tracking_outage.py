"""What an MLflow server that is gone costs a training step, and what is lost: in turn in one run.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/tracking_outage.py --down-s 60 --rounds 5

A real server on this machine is up and down in turn, while a small pix2pix trains in this process
and gives a real Tracker its metrics after every step. A ratio is the median step time of a period
without a server to the mean of those of the periods before and after it; as a control, that of a
period with a server to the one before. Steps within some seconds of a change, and while the server
starts, are left out: they would measure the server, which is on the same cores. Afterwards the
points that MLflow has are compared with those that were logged.
"""

import argparse
import itertools
import os
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch
from mlflow import MlflowClient

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from services.mlflow_server import mlflow_server

from models.base import Batch, ModelConfig, build_model
from orchestrator.job import TrainSection
from orchestrator.tracking import RunRef, Tracker
from orchestrator.training.step import TrainingStep

SETTLE_S = 5.0


class Training:
    """A small training whose every step is timed, with the logging of its metrics in it."""

    def __init__(self, tracker: Tracker, size: int, filters: int) -> None:
        config = ModelConfig.model_validate(
            {"name": "pix2pix", "image_size": size, "filters": filters}
            | {"discriminator_filters": filters, "receptive_field": 34, "norm": "instance"}
        )
        self.model = build_model(config)
        settings = TrainSection.model_validate({"images": 1, "batch_size": 4})
        self.training_step = TrainingStep(self.model, self.model.phases(), settings)
        images, condition = (torch.rand(4, 3, size, size) * 2 - 1 for _ in range(2))
        self.batch = Batch(images, torch.arange(4), condition)
        self.tracker = tracker
        self.logged: dict[str, dict[int, float]] = {}
        self.images_seen = 0
        self.slowest_call_s = 0.0

    def step(self) -> float:
        """One step; gives its seconds."""
        start = time.perf_counter()
        metrics = self.training_step(self.batch, step=self.images_seen // 4, progress=0.5)
        values = {name: float(value) for name, value in metrics.items()}
        self.images_seen += 4
        before = time.perf_counter()
        self.tracker.metrics(values, self.images_seen)
        end = time.perf_counter()
        self.slowest_call_s = max(self.slowest_call_s, end - before)
        for name, value in values.items():
            self.logged.setdefault(name, {})[self.images_seen] = value
        return end - start

    def measure(self, seconds: float) -> list[float]:
        """The seconds of all steps of a period, but for those at its begin."""
        start, steps = time.monotonic(), []
        while (elapsed := time.monotonic() - start) < seconds + SETTLE_S:
            taken = self.step()
            if elapsed > SETTLE_S:
                steps.append(taken)
        return steps


def lost(client: MlflowClient, run: RunRef, logged: dict[str, dict[int, float]]) -> tuple[int, int]:
    """Points that MLflow has not, and those that it has twice or with another value."""
    missing = wrong = 0
    for name, expected in logged.items():
        history = client.get_metric_history(run.run_id, name)
        stored = {metric.step: metric.value for metric in history}
        missing += len(expected.keys() - stored.keys())
        wrong += len(history) - len(stored)
        wrong += sum(expected.get(step) != value for step, value in stored.items())
    return missing, wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--down-s", type=float, default=60, help="of each of the outages")
    parser.add_argument("--rounds", type=int, default=5, help="outages")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--filters", type=int, default=16)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, mlflow_server(Path(folder, "server")) as server:
        client = MlflowClient(server.uri)
        experiment = client.create_experiment("outage")
        run = RunRef(server.uri, experiment, client.create_run(experiment).info.run_id)
        tracker = Tracker(run, Path(folder, "spool"))
        training = Training(tracker, options.image_size, options.filters)
        training.measure(10)
        up, down = [statistics.median(training.measure(options.down_s))], []
        for number in range(options.rounds):
            server.kill()
            down.append(statistics.median(training.measure(options.down_s)))
            starting = threading.Thread(target=server.start)
            starting.start()
            while starting.is_alive():
                training.step()
            # What has waited is sent first: that is no part of the next period.
            training.measure(15)
            up.append(statistics.median(training.measure(options.down_s)))
            ratio = 2 * down[-1] / (up[-2] + up[-1])
            print(
                f"round {number + 1}: {up[-2] * 1000:.2f} ms up, {down[-1] * 1000:.2f} ms down, "
                f"{up[-1] * 1000:.2f} ms up, ratio {ratio:.4f}",
                flush=True,
            )
        tracker.close()
        missing, wrong = lost(client, run, training.logged)
    ratios = [2 * b / (a + c) for a, b, c in zip(up, down, up[1:], strict=False)]
    controls = [after / before for before, after in itertools.pairwise(up)]
    points = sum(map(len, training.logged.values()))
    print(
        f"down / up: {statistics.median(ratios):.4f} [{min(ratios):.4f}, {max(ratios):.4f}]; "
        f"control, up / up: {statistics.median(controls):.4f} [{min(controls):.4f}, {max(controls):.4f}]"
    )
    print(f"slowest call of the tracker: {training.slowest_call_s * 1000:.1f} ms")
    print(
        f"{points} points in {training.images_seen // 4} steps, {missing} lost, {wrong} twice or "
        f"wrong, after {options.rounds * options.down_s:.0f} s of outage; "
        f"{os.cpu_count()} cores, torch {torch.__version__}"
    )


if __name__ == "__main__":
    main()

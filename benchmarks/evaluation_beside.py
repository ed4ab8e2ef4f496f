"""Compare the speed of a training with evaluations on another core with that of one without.

    python -m benchmarks.evaluation_beside --rounds 5

A small pix2pix trains on core 0 alone, in turn with and without `evaluate`. Its evaluations run on
core 1, one after the other: each measures the KID on features of lite0. Speed is counted from the
first report to the last step, so without the wait for the last evaluation. The third speed is that
of a training beside a process on core 1 that has nothing to do with it: what two cores share.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from orchestrator.config.load import load_job
from orchestrator.console import ProgressReport
from orchestrator.data.prepare.pack import pack_folder
from orchestrator.runs.driver import run_job, train_in_process
from orchestrator.runs.evaluation_process import EvaluationProcess
from orchestrator.runs.run_context import ReportCallback, RunContext
from orchestrator.runs.signals import StopRequest
from orchestrator.training.loop import Outcome
from support.drawings import draw_pairs

JOB = """\
name: beside
model: {{name: pix2pix, image_size: 64, filters: 16, discriminator_filters: 16,
  receptive_field: 16, norm: instance}}
data: {{train: {data}/train, validation: {data}/validation, threads: 1}}
train: {{images: {images}, batch_size: 8, log_every: 80, checkpoint_every: 400,
  sample_every: 1000000, validate_every: 1000000}}
cluster: {{gpus_per_worker: 0}}
tracking: {{uri: "sqlite:///{folder}/mlflow.db"}}
storage: {folder}/runs
"""
EVALUATE = "evaluate={metrics: [kid], num_images: 100}"
BUSY = """\
import torch
torch.set_num_threads(1)
images, weights = torch.rand(32, 64, 56, 56), torch.rand(64, 64, 3, 3)
while True:
    torch.conv2d(images, weights)
"""


def launch_on_core_1(context: RunContext, checkpoint: str) -> EvaluationProcess:
    """Start an evaluation, and let it run on the second core."""
    started = EvaluationProcess(context, checkpoint)
    os.sched_setaffinity(started.pid, {1})
    return started


@contextmanager
def busy_core_1() -> Iterator[None]:
    """Compute on the second core until the block ends."""
    with subprocess.Popen([sys.executable, "-c", BUSY]) as process:
        os.sched_setaffinity(process.pid, {1})
        time.sleep(8)  # until it has imported torch
        try:
            yield
        finally:
            process.kill()


def images_per_s(job: Path, *settings: str) -> float:
    """Train; return images per second."""
    seen: dict[int, float] = {}

    def train(context: RunContext, show: ReportCallback, stop: StopRequest) -> Outcome:
        def note(report: ProgressReport) -> None:
            seen.setdefault(report.images_seen, time.perf_counter())
            show(report)

        launch = launch_on_core_1
        return partial(train_in_process, launch_evaluation=launch)(context, note, stop)

    run_job(load_job(job, settings), train, resume=False)
    first, last = min(seen), max(seen)
    return (last - first) / (seen[last] - seen[first])


def main() -> None:
    """Print the speeds and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=4000)
    options = parser.parse_args()
    os.sched_setaffinity(0, {0})
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        pairs = draw_pairs(folder / "pairs", count=200, size=64)
        pack_folder(pairs, str(folder / "data"), size=64, validation_share=0.5)
        job = folder / "job.yaml"
        job.write_text(JOB.format(data=folder / "data", folder=folder, images=options.images))
        images_per_s(job, EVALUATE)  # extracts the features of the set, and warms up
        ratios: dict[str, list[float]] = {"evaluated": [], "beside a busy core": []}
        for _ in range(options.rounds):
            alone = images_per_s(job)
            ratios["evaluated"].append(images_per_s(job, EVALUATE) / alone)
            with busy_core_1():
                ratios["beside a busy core"].append(images_per_s(job) / alone)
            done = len(list(folder.glob("runs/*/evaluations/*.json")))
            print(f"{alone:.1f} images/s alone; {done} evaluations so far", flush=True)
    for name, found in ratios.items():
        shown = ", ".join(f"{ratio:.3f}" for ratio in found)
        print(f"{name}: median {statistics.median(found):.3f} of that alone ({shown})")


if __name__ == "__main__":
    main()

"""Measure the time from a killed worker to the next step: this trainer and plain Ray Train.

    python benchmarks/recovery.py --kills 10

Both train a small pix2pix with two workers on this machine, in turn. Plain Ray Train uses its
defaults, torch's DDP, a checkpoint every 10 steps through ray.train.report, and only the imports
that this needs. A step counts when both processes started after the kill have done it.
"""

import argparse
import contextlib
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).parents[1]))

from orchestrator.faults.injection import run_command
from orchestrator.faults.run_processes import RunProcesses

FAULT_INJECTION = Path(__file__).parents[1] / "tests/support/fault_injection"
JOB = """\
name: recovery
model: {{name: pix2pix, image_size: 16, filters: 4, discriminator_filters: 4, receptive_field: 16,
  norm: instance}}
data: {{train: {folder}/data/train, validation: {folder}/data/validation, threads: 1}}
train: {{images: 100000000, batch_size: 4, log_every: 40, checkpoint_every: 40,
  validate_every: 100000000, sample_every: 100000000}}
cluster: {{workers: 2, max_failures: 1000}}
tracking: {{uri: "sqlite:///{folder}/mlflow.db"}}
storage: {folder}/runs
"""
PLAIN = """\
import json, os, sys, tempfile, time
from pathlib import Path
import ray, torch
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, prepare_model

def work(config):
    sys.path.insert(0, config["root"])
    from orchestrator.models.base import ModelConfig, build_model
    torch.manual_seed(0)
    given = dict(name="pix2pix", image_size=16, filters=4, discriminator_filters=4,
                 receptive_field=16, norm="instance")
    net = build_model(ModelConfig.model_validate(given)).generator
    optimizer = torch.optim.Adam(net.parameters(), 2e-4, fused=True)
    step = 0
    if (checkpoint := ray.train.get_checkpoint()) is not None:
        with checkpoint.as_directory() as folder:
            state = torch.load(Path(folder, "state.pt"), weights_only=True)
        net.load_state_dict(state["net"]); optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
    model = prepare_model(net)
    images = torch.rand(2, 3, 16, 16)
    shares = Path(config["folder"], f"{os.getpid()}.shares")
    while True:
        time.sleep(0.03)
        loss = (model(images) - images).abs().mean()
        optimizer.zero_grad(); loss.backward(); optimizer.step()
        step += 1
        with shares.open("a") as file:
            file.write(f"{step}\\\\n")
        if step % 10 == 0:
            with tempfile.TemporaryDirectory() as folder:
                given = None
                if ray.train.get_context().get_world_rank() == 0:
                    torch.save({"net": net.state_dict(), "optimizer": optimizer.state_dict(),
                                "step": step}, Path(folder, "state.pt"))
                    given = Checkpoint.from_directory(folder)
                ray.train.report({"loss": loss.item()}, checkpoint=given)

ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
TorchTrainer(
    work, train_loop_config={"folder": sys.argv[1], "root": sys.argv[2]},
    scaling_config=ScalingConfig(num_workers=2),
    run_config=RunConfig(name="plain", storage_path=sys.argv[1] + "/plain",
                         failure_config=FailureConfig(max_failures=-1),
                         checkpoint_config=CheckpointConfig(num_to_keep=3),
                         worker_runtime_env={"env_vars": {"OMP_WAIT_POLICY": "PASSIVE"}}),
).fit()
"""


@contextlib.contextmanager
def run_driver(command: Sequence[str], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a driver whose workers write their steps to ``folder``."""
    environ = {**os.environ, "FAULT_FOLDER": str(folder), "PYTHONPATH": str(FAULT_INJECTION)}
    environ.pop("RAY_ADDRESS", None)
    with (folder / "log.txt").open("ab") as log:
        process = subprocess.Popen(command, env=environ, stdout=log, stderr=log)
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_for_step(folder: Path, known: set[str], driver: subprocess.Popen[bytes]) -> None:
    """Wait until two processes that are not in ``known`` have done a step."""
    while len({path.name for path in folder.glob("*.shares")} - known) < 2:
        assert driver.poll() is None, (folder / "log.txt").read_text()[-3000:]
        time.sleep(0.01)


def measure_recoveries(command: Sequence[str], folder: Path, kills: int) -> list[float]:
    """Measure the seconds from each kill to the first step after it."""
    seconds = []
    with run_driver(command, folder) as driver:
        known: set[str] = {path.name for path in folder.glob("*.shares")}
        wait_for_step(folder, known, driver)
        for number in range(kills):
            time.sleep(3 + 0.37 * (number % 5))  # vary the moment between two polls
            known = {path.name for path in folder.glob("*.shares")}
            victims = RunProcesses(driver.pid).named("ray::RayTrainWorker")
            start = time.monotonic()
            os.kill(victims[-1], signal.SIGKILL)
            wait_for_step(folder, known, driver)
            seconds.append(time.monotonic() - start)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=10, help="number of each, in two turns")
    options = parser.parse_args()
    from orchestrator.data.prepare.pack import pack_folder
    from support.drawings import draw_pairs

    with tempfile.TemporaryDirectory(prefix="recovery-", ignore_cleanup_errors=True) as temporary:
        folder = Path(temporary)
        pairs = draw_pairs(folder / "pairs", count=40, size=16)
        pack_folder(pairs, str(folder / "data"), size=16, validation_share=0.2)
        (folder / "job.yaml").write_text(JOB.format(folder=folder))
        (folder / "plain.py").write_text(PLAIN.replace("\\\\n", "\\n"))
        commands = {
            "ours": run_command(folder / "job.yaml", ()),
            "plain": [sys.executable, str(folder / "plain.py"), str(folder / "steps-plain"),
                      str(Path(__file__).parents[1])],
        }  # fmt: skip
        results: dict[str, list[float]] = {"ours": [], "plain": []}
        for turn in range(2):
            for tool, command in commands.items():
                (folder / f"steps-{tool}").mkdir(exist_ok=True)
                kills = -(-options.kills // 2)
                results[tool] += measure_recoveries(command, folder / f"steps-{tool}", kills)
                print(f"turn {turn + 1}, {tool}: {[round(s, 1) for s in results[tool][-kills:]]}")
    for tool, seconds in results.items():
        spread = f"{min(seconds):.1f} to {max(seconds):.1f}"
        median = statistics.median(seconds)
        print(f"{tool}: median {median:.1f} s, {spread} s, {len(seconds)} kills")
    ratio = statistics.median(results["ours"]) / statistics.median(results["plain"])
    print(f"ours / plain: {ratio:.2f}")


if __name__ == "__main__":
    main()

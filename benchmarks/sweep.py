"""Benchmark sweeps: trials per hour against nested TorchTrainers, and the cost of ASHA.

    python benchmarks/sweep.py speed --trials 6          this tool and plain Ray Tune, in turn
    python benchmarks/sweep.py quality --pool 48         ASHA against complete random searches

speed: the same small trials with one worker, two at a time. "By hand" is the pattern of Ray's
documentation, a Tune function that starts a TorchTrainer. It trains on images in memory and only
reports a result; this tool also streams, validates, tracks and saves.

quality: a pool of trials is run to completion once. For each seed, 27 of them in another order are
a random search; the same 27 are replayed with ASHA, two at a time, with the sweep's own decisions
on the recorded intermediate results.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).parents[1]))

from orchestrator.storage.open import open_storage
from orchestrator.sweeps.records import Sweep, Trial, TrialSegment, rank_configs
from orchestrator.sweeps.store import list_sweeps
from orchestrator.sweeps.study import Study

ROOT = Path(__file__).parents[1]
IMAGES = 1600
JOB = """\
name: bench
model: {{name: pix2pix, image_size: 16, filters: 8, discriminator_filters: 8, receptive_field: 16,
  norm: instance}}
data: {{train: {folder}/data/train, validation: {folder}/data/validation, threads: 1}}
train: {{images: {images}, batch_size: 4, sample_every: 1000000}}
tracking: {{uri: "sqlite:///{folder}/mlflow.db"}}
storage: {folder}/runs
sweep:
  metric: validation/l1
  trials: {trials}
  space:
    model.l1_weight: {{loguniform: [1, 300]}}
    model.learning_rate: {{loguniform: [1.0e-5, 1.0e-1]}}
"""
BY_HAND = """\
import math, sys
import ray, torch
from ray import tune
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback

def work(config):
    import ray.train
    sys.path.insert(0, config["root"])
    from orchestrator.models.base import Batch, ModelConfig, build_model
    torch.manual_seed(0)
    given = dict(name="pix2pix", image_size=16, filters=8, discriminator_filters=8,
                 receptive_field=16, norm="instance", l1_weight=config["l1_weight"],
                 learning_rate=config["learning_rate"])
    model = build_model(ModelConfig.model_validate(given))
    phases = model.phases()
    images, inputs = torch.rand(2, 4, 3, 16, 16) * 2 - 1
    for step in range(config["images"] // 4):
        batch = Batch(images=images, positions=torch.arange(4), condition=inputs)
        shared = model.shared(batch)
        for phase in phases:
            loss, _ = phase.loss(batch, shared)
            phase.optimizer.zero_grad()
            loss.backward()
            phase.optimizer.step()
    ray.train.report({"loss": float(loss)})

def trial(config):
    TorchTrainer(work, train_loop_config=config, scaling_config=ScalingConfig(num_workers=1),
                 run_config=RunConfig(name=ray.tune.get_context().get_trial_id(),
                                      storage_path=config["folder"],
                                      callbacks=[TuneReportCallback()])).fit()

root, folder, trials, images = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
tune.Tuner(tune.with_resources(trial, {"memory": 1}),
           param_space={"root": root, "folder": folder, "images": images,
                        "l1_weight": tune.loguniform(1, 300),
                        "learning_rate": tune.loguniform(1e-5, 1e-3)},
           tune_config=tune.TuneConfig(num_samples=trials, max_concurrent_trials=2),
           run_config=tune.RunConfig(storage_path=folder, verbose=0)).fit()
"""


def prepare(folder: Path, trials: int, images: int) -> Path:
    from orchestrator.data.prepare.pack import pack_folder
    from support.drawings import draw_pairs

    pairs = draw_pairs(folder / "pairs", count=200, size=16)
    pack_folder(pairs, str(folder / "data"), size=16, validation_share=0.2)
    path = folder / "job.yaml"
    path.write_text(JOB.format(folder=folder, trials=trials, images=images))
    return path


def time_command(command: list[str], log: Path) -> float:
    environ = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    start = time.monotonic()
    with log.open("ab") as file:
        done = subprocess.run(command, stdout=file, stderr=file, env=environ, check=False)
    assert done.returncode == 0, log.read_text()[-3000:]
    return time.monotonic() - start


def speed(trials: int, turns: int) -> None:
    with tempfile.TemporaryDirectory(prefix="sweep-", ignore_cleanup_errors=True) as temporary:
        folder = Path(temporary)
        job = prepare(folder, trials, IMAGES)
        (folder / "by_hand.py").write_text(BY_HAND)
        by_hand = [sys.executable, str(folder / "by_hand.py"), str(ROOT), str(folder / "hand")]
        commands = {
            "ours": [sys.executable, "-m", "orchestrator", "run", "--no-resume", str(job)],
            "by hand": [*by_hand, str(trials), str(IMAGES)],
        }
        results: dict[str, list[float]] = {tool: [] for tool in commands}
        for turn in range(turns):
            for tool, command in commands.items():
                results[tool].append(time_command(command, folder / f"{tool}.txt"))
                print(f"turn {turn + 1}, {tool}: {results[tool][-1]:.0f} s for {trials} trials")
    for tool, seconds in results.items():
        hourly = trials * turns / sum(seconds) * 3600
        print(f"{tool}: {hourly:.0f} trials per hour, {min(seconds):.0f} to {max(seconds):.0f} s")
    print(f"ours / by hand: {sum(results['by hand']) / sum(results['ours']):.2f} times as many")


def quality(pool: int, seeds: int, size: int) -> None:
    with tempfile.TemporaryDirectory(prefix="sweep-", ignore_cleanup_errors=True) as temporary:
        folder = Path(temporary)
        job = prepare(folder, pool, 4 * IMAGES)
        time_command([sys.executable, "-m", "orchestrator", "run", str(job)], folder / "log.txt")
        (store,) = list_sweeps(open_storage(str(folder / "runs")))
        complete = store.load()
    worst, shares = 0.0, []
    for seed in range(seeds):
        chosen = random.Random(seed).sample([t for t in complete.trials if t.results], size)
        best = min(trial.results[-1].values[0] for trial in chosen)
        asha = replay(complete, chosen)
        found = rank_configs(asha)[0].means[0]
        spent = sum(trial.images_seen for trial in asha.trials)
        share = spent / (size * complete.total_images)
        worst = max(worst, found / best - 1)
        shares.append(spent / (size * complete.total_images))
        print(
            f"seed {seed}: best of {size} complete trials {best:.5f}; ASHA {found:.5f} "
            f"({100 * (found / best - 1):+.2f} %) with {share:.3f} of their images"
        )
    mean = sum(shares) / len(shares)
    print(
        f"worst: {100 * worst:+.2f} %; share of the images: {mean:.3f}, at most {max(shares):.3f}"
    )


def replay(complete: Sweep, chosen: list[Trial], num_concurrent: int = 2) -> Sweep:
    """Replay complete trials with ASHA; all trials run at the same speed."""
    section = complete.section.model_copy(
        update={"scheduler": "asha", "trials": len(chosen), "grace_images": None}
    )
    empty = replace(complete, section=section, trials=[])
    study = Study(empty, save=lambda trial: None, newest_checkpoint=lambda run: run)
    running: list[Trial] = []
    while not study.is_over:
        while len(running) < num_concurrent and (trial := study.next_trial()) is not None:
            trial.segments[-1] = TrialSegment("replayed", chosen[trial.number].values)
            running.append(trial)
        for trial in list(running):
            result = chosen[trial.number].results[len(trial.results)]
            decision = study.report_result(trial.number, result.images_seen, result.values)
            if decision.action == "pause":
                study.record_end(trial.number, "paused", decision.reason)
            elif result.images_seen >= complete.total_images:
                study.record_end(trial.number, "finished")
            else:
                continue
            running.remove(trial)
    return study.sweep


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("speed")
    one.add_argument("--trials", type=int, default=6)
    one.add_argument("--turns", type=int, default=2)
    two = commands.add_parser("quality")
    two.add_argument("--pool", type=int, default=48)
    two.add_argument("--seeds", type=int, default=5)
    two.add_argument("--size", type=int, default=27)
    options = parser.parse_args()
    if options.command == "speed":
        speed(options.trials, options.turns)
    else:
        quality(options.pool, options.seeds, options.size)


if __name__ == "__main__":
    main()

"""What all workers meet at: mailbox, Ray Train's controller, process group, a sweep's conductor."""

import os
import pickle
import resource
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.scale.timing import ROUNDS, cpu_s, wall_s
from orchestrator.cluster.worker_state import Heartbeat, WorkerGroupState
from orchestrator.training.interfaces import STEP

WORKERS = (8, 256, 4096)
POLLED = (8, 32)
GROUPS = (8, 32)
LOOKS = 20
"""A sweep's looks at one training, by default."""
JUDGED_AT = 1000 * LOOKS // 9 * 3
"""Images of the look that is timed: ASHA's second rung."""


def beat(group: Any = None) -> Heartbeat:
    """A worker's sign of life."""
    return Heartbeat(8, 56 * "a", "host-0001.example", 12345, STEP, 0.1, 100, 0.2, group)


def measure_mailbox(folder: Path) -> dict[str, float]:
    """Signs of life that the actor takes in a second, and the driver's look at those of all."""
    import ray
    from ray.util.placement_group import PlacementGroup

    del folder
    found: dict[str, float] = {}
    with _ray_here():
        group = PlacementGroup(ray.PlacementGroupID.from_random())
        actor: Any = ray.remote(_TimedMailbox).options(num_cpus=0).remote()
        ray.get(actor.requested_action.remote())

        def beats() -> None:
            ray.get([actor.heartbeat.remote(rank % 8, beat(group)) for rank in range(400)])

        found["mailbox_beats_per_s"] = 400 / wall_s(beats)
        found["mailbox_beat_cpu_ms"] = 1e3 * _actors_cpu_s(actor, beats) / 400
        for workers in WORKERS:
            ray.get([actor.heartbeat.remote(rank, beat(group)) for rank in range(workers)])

            def look() -> Any:
                return ray.get(actor.read_new.remote(0, 0))

            found[f"mailbox_look_ms_{workers}"] = 1e3 * wall_s(look)
            found[f"mailbox_look_cpu_ms_{workers}"] = 1e3 * _actors_cpu_s(actor, look)
            found[f"mailbox_look_bytes_{workers}"] = len(pickle.dumps(look()))
    return found


def measure_polling(folder: Path) -> dict[str, float]:
    """One look at N small actors, as Ray Train's controller takes every 0.3 s."""
    import ray

    del folder

    class Polled:
        def poll_status(self) -> dict[str, object]:
            return {"running": True, "error": None, "result": None}

    found = {}
    with _ray_here():
        actors: list[Any] = []
        for workers in POLLED:
            more = workers - len(actors)
            actors += [ray.remote(Polled).options(num_cpus=0).remote() for _ in range(more)]
            ray.get([actor.poll_status.remote() for actor in actors])

            def look(asked: list[Any] = actors) -> None:
                ray.get([actor.poll_status.remote() for actor in asked])

            found[f"poll_ms_{workers}"] = 1e3 * wall_s(look, 15)
            found[f"poll_cpu_ms_{workers}"] = 1e3 * cpu_s(look, 15)
    return found


def measure_group(folder: Path) -> dict[str, float]:
    """gloo's first meeting of N ranks, which are threads of one process, and their connections."""
    import torch.distributed as dist

    del folder
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 16384), hard))
    found = {}
    for ranks in GROUPS:
        seconds = []
        for _ in range(3):
            store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
            files, kept = _open_files(), []

            def meet(rank: int, ranks: int = ranks, store: Any = store, kept: Any = kept) -> None:
                mine = dist.TCPStore("127.0.0.1", store.port, is_master=False)
                kept.append((mine, dist.ProcessGroupGloo(mine, rank, ranks, timedelta(seconds=60))))

            threads = [threading.Thread(target=meet, args=(rank,)) for rank in range(ranks)]
            seconds.append(wall_s(partial(_run, threads), 1))
            assert len(kept) == ranks
            found[f"gloo_files_per_rank_{ranks}"] = (_open_files() - files) / ranks
            kept.clear()
        found[f"gloo_meeting_ms_{ranks}"] = 1e3 * statistics.median(seconds)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return found


def measure_conductor(folder: Path) -> dict[str, float]:
    """One look at a training among N, by scheduler, and one record written to S3."""
    from benchmarks.scale.server import s3_here
    from orchestrator.storage.open import open_storage
    from orchestrator.sweeps.store import SweepStore

    found = {}
    for scheduler in ("asha", "median"):
        for trials in WORKERS:
            study = _study(scheduler, trials)
            last = iter(range(trials - 3, trials))
            look_s = cpu_s(partial(_look, study, last), 3)
            found[f"look_{scheduler}_cpu_ms_{trials}"] = 1e3 * look_s
            if scheduler == "asha":
                told = partial(pickle.dumps, study.sweep)
                found[f"sweep_told_cpu_ms_{trials}"] = 1e3 * cpu_s(told)
                found[f"sweep_told_bytes_{trials}"] = len(told())
    trial = _study("asha", 8).trials[0]
    with s3_here(folder / "s3") as place:
        store = SweepStore(open_storage(place), "sweep")
        store.save_trial(trial)
        found["record_write_ms"] = 1e3 * wall_s(lambda: store.save_trial(trial), 30)
    return found


def _look(study: Any, numbers: Iterator[int]) -> None:
    """Take a look; where the training then waits, also look for one to go on in its place."""
    number = next(numbers)
    if study.report_result(number, JUDGED_AT, (0.5,)).action == "pause":
        study.record_end(number, "paused")
        study.next_trial()


def _study(scheduler: str, trials: int) -> Any:
    """A sweep of ``trials`` trainings that run and have had all looks but their last."""
    from orchestrator.config.sweep import SweepSection
    from orchestrator.sweeps.records import IntermediateResult, Sweep, Trial, TrialSegment
    from orchestrator.sweeps.study import Study

    section = SweepSection.model_validate(
        {
            "metric": "loss",
            "trials": trials,
            "scheduler": scheduler,
            "space": {"model.x": {"uniform": [0, 1]}},
        }
    )
    seen = range(1000, JUDGED_AT, 1000)
    running = [
        Trial(
            number,
            number,
            0,
            [TrialSegment(f"sweeps/s/t{number:03d}", {"model.x": 0.5})],
            results=[IntermediateResult(images, (1 / images,), k) for k, images in enumerate(seen)],
        )
        for number in range(trials)
    ]
    sweep = Sweep("s", "s", section, 1000 * LOOKS, running, num_trials=trials)
    study = Study(sweep, lambda trial: None, lambda run: "")
    for trial in study.trials:
        trial.status = "running"
    # All but three have had the look that is asked for.
    for trial in study.trials[: trials - 3]:
        trial.results.append(IntermediateResult(JUDGED_AT, (1.0,), len(seen)))
        if scheduler == "asha":
            trial.status = "paused"
    return study


class _TimedMailbox(WorkerGroupState):
    """Tells its own process's CPU seconds too."""

    def cpu_s(self) -> float:
        return time.process_time()


def _actors_cpu_s(actor: Any, call: Callable[[], object]) -> float:
    import ray

    before = ray.get(actor.cpu_s.remote())
    for _ in range(ROUNDS):
        call()
    return float(ray.get(actor.cpu_s.remote()) - before) / ROUNDS


class _ray_here:
    """Ray in this process, with its files in a folder whose path is short."""

    def __enter__(self) -> None:
        import ray

        os.environ["RAY_AUTH_MODE"] = "disabled"
        self._folder = tempfile.TemporaryDirectory(prefix="sc-", ignore_cleanup_errors=True)
        ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            _temp_dir=self._folder.name,
        )

    def __exit__(self, *error: object) -> None:
        import ray

        ray.shutdown()
        self._folder.cleanup()


def _run(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _open_files() -> int:
    return len(os.listdir("/proc/self/fd"))

"""Measure central parts: worker-group state, Ray Train, the process group, sweep controller."""

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
RESULTS_PER_TRIAL = 20
"""Intermediate results of a complete trial, by default."""
TIMED_IMAGES = 1000 * RESULTS_PER_TRIAL // 9 * 3
"""Images seen at the timed intermediate result, ASHA's second rung."""


def make_heartbeat(group: Any = None) -> Heartbeat:
    """Make a heartbeat of typical size."""
    return Heartbeat(8, 56 * "a", "host-0001.example", 12345, STEP, 0.1, 100, 0.2, group)


def measure_worker_state(folder: Path) -> dict[str, float]:
    """Measure heartbeats per second of the actor, and the driver's read of all heartbeats."""
    import ray
    from ray.util.placement_group import PlacementGroup

    del folder
    found: dict[str, float] = {}
    with _local_ray():
        group = PlacementGroup(ray.PlacementGroupID.from_random())
        actor: Any = ray.remote(_TimedWorkerGroupState).options(num_cpus=0).remote()
        ray.get(actor.requested_action.remote())

        def send_heartbeats() -> None:
            heartbeat = actor.heartbeat
            ray.get([heartbeat.remote(rank % 8, make_heartbeat(group)) for rank in range(400)])

        found["heartbeats_per_s"] = 400 / wall_s(send_heartbeats)
        found["heartbeat_cpu_ms"] = 1e3 * _actor_cpu_s(actor, send_heartbeats) / 400
        for workers in WORKERS:
            heartbeat = actor.heartbeat
            ray.get([heartbeat.remote(rank, make_heartbeat(group)) for rank in range(workers)])

            def read() -> Any:
                return ray.get(actor.read_new.remote(0, 0))

            found[f"worker_state_read_ms_{workers}"] = 1e3 * wall_s(read)
            found[f"worker_state_read_cpu_ms_{workers}"] = 1e3 * _actor_cpu_s(actor, read)
            found[f"worker_state_read_bytes_{workers}"] = len(pickle.dumps(read()))
    return found


def measure_polling(folder: Path) -> dict[str, float]:
    """Measure one poll of N small actors, as Ray Train's controller does every 0.3 s."""
    import ray

    del folder

    class Polled:
        def poll_status(self) -> dict[str, object]:
            return {"running": True, "error": None, "result": None}

    found = {}
    with _local_ray():
        actors: list[Any] = []
        for workers in POLLED:
            more = workers - len(actors)
            actors += [ray.remote(Polled).options(num_cpus=0).remote() for _ in range(more)]
            ray.get([actor.poll_status.remote() for actor in actors])

            def poll(polled: list[Any] = actors) -> None:
                ray.get([actor.poll_status.remote() for actor in polled])

            found[f"poll_ms_{workers}"] = 1e3 * wall_s(poll, 15)
            found[f"poll_cpu_ms_{workers}"] = 1e3 * cpu_s(poll, 15)
    return found


def measure_process_group(folder: Path) -> dict[str, float]:
    """Measure gloo's rendezvous of N ranks (threads of one process) and their connections."""
    import torch.distributed as dist
    from torch._C._distributed_c10d import TCPStore

    del folder
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 16384), hard))
    found = {}
    for ranks in GROUPS:
        seconds = []
        for _ in range(3):
            store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
            files = _num_open_files()
            groups: list[tuple[object, object]] = []

            def join(
                rank: int, ranks: int = ranks, store: Any = store, groups: Any = groups
            ) -> None:
                own = TCPStore("127.0.0.1", store.port, is_master=False)
                groups.append((own, dist.ProcessGroupGloo(own, rank, ranks, timedelta(seconds=60))))

            threads = [threading.Thread(target=join, args=(rank,)) for rank in range(ranks)]
            seconds.append(wall_s(partial(_run, threads), 1))
            assert len(groups) == ranks
            found[f"gloo_files_per_rank_{ranks}"] = (_num_open_files() - files) / ranks
            groups.clear()
        found[f"gloo_meeting_ms_{ranks}"] = 1e3 * statistics.median(seconds)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return found


def measure_sweep_controller(folder: Path) -> dict[str, float]:
    """Measure one intermediate result among N trials, by scheduler, and one record on S3."""
    from benchmarks.scale.server import local_s3
    from orchestrator.storage.open import open_storage
    from orchestrator.sweeps.store import SweepStore

    found = {}
    for scheduler in ("asha", "median"):
        for trials in WORKERS:
            study = _study(scheduler, trials)
            last = iter(range(trials - 3, trials))
            result_s = cpu_s(partial(_report_result, study, last), 3)
            found[f"result_{scheduler}_cpu_ms_{trials}"] = 1e3 * result_s
            if scheduler == "asha":
                dump = partial(pickle.dumps, study.sweep)
                found[f"sweep_status_cpu_ms_{trials}"] = 1e3 * cpu_s(dump)
                found[f"sweep_status_bytes_{trials}"] = len(dump())
    trial = _study("asha", 8).trials[0]
    with local_s3(folder / "s3") as place:
        store = SweepStore(open_storage(place), "sweep")
        store.save_trial(trial)
        found["record_write_ms"] = 1e3 * wall_s(lambda: store.save_trial(trial), 30)
    return found


def _report_result(study: Any, numbers: Iterator[int]) -> None:
    """Report a result; if the trial is paused, also choose the next one."""
    number = next(numbers)
    if study.report_result(number, TIMED_IMAGES, (0.5,)).action == "pause":
        study.record_end(number, "paused")
        study.next_trial()


def _study(scheduler: str, trials: int) -> Any:
    """Make a sweep in which all but three trials have reported the timed result."""
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
    seen = range(1000, TIMED_IMAGES, 1000)
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
    sweep = Sweep("s", "s", section, 1000 * RESULTS_PER_TRIAL, running, num_trials=trials)
    study = Study(sweep, lambda trial: None, lambda run: "")
    for trial in study.trials:
        trial.status = "running"
    for trial in study.trials[: trials - 3]:
        trial.results.append(IntermediateResult(TIMED_IMAGES, (1.0,), len(seen)))
        if scheduler == "asha":
            trial.status = "paused"
    return study


class _TimedWorkerGroupState(WorkerGroupState):
    """Also reports the CPU seconds of its process."""

    def cpu_s(self) -> float:
        return time.process_time()


def _actor_cpu_s(actor: Any, call: Callable[[], object]) -> float:
    import ray

    before = ray.get(actor.cpu_s.remote())
    for _ in range(ROUNDS):
        call()
    return float(ray.get(actor.cpu_s.remote()) - before) / ROUNDS


class _local_ray:
    """Run Ray in this process, with its files in a folder with a short path."""

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


def _num_open_files() -> int:
    return len(os.listdir("/proc/self/fd"))

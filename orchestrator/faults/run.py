"""Run a job as a user does, without and with injected faults, and compare the results."""

import json
import os
import signal
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

from orchestrator.config.job import Job
from orchestrator.data.prepare.copy import copy_sets
from orchestrator.diagnostics.compare_runs import RunArtifacts, is_timing_metric
from orchestrator.errors import Stopped
from orchestrator.faults.injection import FaultInjector, Recovery, draw_faults, run_command
from orchestrator.faults.kinds import FAULTS
from orchestrator.faults.report import FaultReport, RunResult, compare_with_faults
from orchestrator.faults.servers import Servers
from orchestrator.redaction import mask
from orchestrator.runs.checkpoints import Checkpoints
from orchestrator.storage.open import open_storage
from orchestrator.tracking.client import create_client

_Handler = Callable[[int, FrameType | None], object] | signal.Handlers
STEPS_PER_FAULT = 150
CHECKPOINT_STEPS = 10
MAX_COPIED_BYTES = 1 << 30
"""A larger set of data is read where it is, past the faults of the storage."""
RETRY_TIMEOUT_S = 60


def run_with_faults(
    path: Path,
    overrides: Sequence[str],
    job: Job,
    num_faults: int,
    seed: int,
    log: Callable[[str], None],
    steps_per_fault: int = STEPS_PER_FAULT,
) -> FaultReport:
    """Run a shortened job twice: without faults, and with ``num_faults`` faults.

    Each run has its own Ray cluster on this machine, and an S3 and an MLflow server of its own, to
    which its data is copied. Nothing is written to the job's storage or tracking server.

    Args:
        path: the job file; with ``overrides``, as given with --set, it is ``job``.
        seed: of the choice and order of faults; each kind comes once before any is repeated.
        steps_per_fault: more are needed where training steps are short.

    Raises:
        TrainingFailed: a run did not finish, or was too short for the faults.
        EnvironmentProblem: a server cannot be started.
    """
    names, size = draw_faults(num_faults, seed), job.train.batch_size
    images = (num_faults + 1) * steps_per_fault * size
    interval = CHECKPOINT_STEPS * size
    short = [
        *overrides,
        "train.epochs=null",
        f"train.images={images}",
        f"train.checkpoint_every={interval}",
        f"train.sample_every={steps_per_fault * size}",
        f"cluster.max_failures={num_faults + 1}",
        f"tracking.retry_timeout_s={RETRY_TIMEOUT_S}",
    ]
    short += [f"train.validate_every={images}"] if job.data.validation else []
    with (
        _ended_by_signals(),
        tempfile.TemporaryDirectory(prefix="faults-", ignore_cleanup_errors=True) as folder,
    ):
        log("training without faults")
        with _servers(job, Path(folder, "undisturbed"), log) as (servers, settings):
            baseline, _ = _run(path, [*short, *settings], [], servers, log)
        log(f"training with {num_faults} faults")
        with _servers(job, Path(folder, "disturbed"), log) as (servers, settings):
            disturbed, recoveries = _run(path, [*short, *settings], names, servers, log)
    results, checks = compare_with_faults(baseline, disturbed, recoveries, interval)
    images_seen = baseline.artifacts.state.images_seen
    return FaultReport(
        job.name, job.model.name, job.cluster.max_workers, images_seen, results, checks
    )


@contextmanager
def _servers(
    job: Job, folder: Path, log: Callable[[str], None]
) -> Iterator[tuple[Servers, list[str]]]:
    """Start the servers and copy the job's data; give them and the settings that use them."""
    folder.mkdir()
    servers = Servers(folder / "servers")
    with ExitStack() as stack:
        stack.enter_context(servers.running())
        stack.enter_context(_environment(servers.environ(direct=True)))
        settings = ["storage=s3://runs", f"tracking.uri={servers.mlflow.address}"]
        train, validation = job.data.train, job.data.validation
        if isinstance(train, str):
            settings += [f"data.train={place}" for place in _copy(train, "train", log)]
        else:
            sets = [
                {"path": place, "weight": each.weight}
                for number, each in enumerate(train)
                for place in _copy(each.path, f"train-{number}", log) or [each.path]
            ]
            settings.append(f"data.train={json.dumps(sets)}")
        if validation is not None:
            copied = _copy(validation, "validation", log)
            settings += [f"data.validation={place}" for place in copied]
        yield servers, settings


def _copy(source: str, name: str, log: Callable[[str], None]) -> list[str]:
    """Copy a set to s3://data/NAME and return that; nothing for one that is too large."""
    storage = open_storage(source)
    num_bytes = sum(storage.size(key) for key in storage.list())
    if num_bytes > MAX_COPIED_BYTES:
        log(f"{mask(source)} has {num_bytes:,} bytes: it is read where it is, without faults")
        return []
    copy_sets(source, f"s3://data/{name}")
    return [f"s3://data/{name}"]


def _run(
    path: Path,
    overrides: Sequence[str],
    names: Sequence[str],
    servers: Servers,
    log: Callable[[str], None],
) -> tuple[RunResult, list[Recovery]]:
    """Run the job with these faults; read what it has left."""
    storage = open_storage("s3://runs")
    injector = FaultInjector(
        run_command(path, overrides),
        storage,
        {**os.environ, **servers.environ()},
        [(name, FAULTS[name]) for name in names],
        log,
        servers,
    )
    injector.run()
    (run,) = {key.partition("/")[0] for key in storage.list()}
    state = Checkpoints(storage, f"{run}/checkpoints", "").latest()
    assert state is not None, "a run that finished has a checkpoint"
    points, pictures = _read_tracking(servers.environ(direct=True)["MLFLOW_TRACKING_URI"])
    record = RunResult(RunArtifacts(state, {}, {}), dict(injector.sums), points, pictures)
    return record, injector.recoveries


def _read_tracking(uri: str) -> tuple[dict[tuple[str, int], list[float]], list[str]]:
    """Read all points of the one run in the MLflow at ``uri``, and the names of its pictures."""
    client = create_client(uri)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    (found,) = client.search_runs(experiments)
    points: dict[tuple[str, int], list[float]] = defaultdict(list)
    for name in found.data.metrics:
        if not is_timing_metric(name):
            for metric in client.get_metric_history(found.info.run_id, name):
                points[name, metric.step].append(metric.value)
    files = client.list_artifacts(found.info.run_id, "images")
    # MLflow names an image <key>+step+<step>+timestamp+<ms>+<random>.
    pictures = ["+".join(file.path.split("+")[:3]) for file in files if "compressed" in file.path]
    return dict(points), sorted(pictures)


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let signals end the block in good order: its servers are in sessions of their own.

    Raises Stopped when one arrives.
    """

    def stop(number: int, _: object) -> None:
        raise Stopped(f"stopped by {signal.Signals(number).name}; nothing was compared")

    # A signal that is ignored here, as by nohup or in the background, would be ignored by the run.
    handlers: dict[int, _Handler] = {
        signal.SIGTERM: stop,
        signal.SIGHUP: stop,
        signal.SIGINT: signal.default_int_handler,
        signal.SIGQUIT: signal.SIG_DFL,
    }
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables of this process within the block."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

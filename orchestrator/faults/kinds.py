"""Kinds of faults: what is done to a run, and what may follow.

Each is done to a real process, server or file of the run. The kinds of a group follow those of a
user's bad day: a worker, the driver, Ray itself, the storage, a checkpoint, or MLflow fails.
"""

import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from signal import SIGABRT, SIGCONT, SIGHUP, SIGINT, SIGKILL, SIGQUIT, SIGSEGV, SIGSTOP, SIGTERM
from typing import Literal

from orchestrator.errors import TrainingFailed
from orchestrator.faults.http_proxy import Disturbance, Head, http_answer, s3_error
from orchestrator.faults.run_processes import RunProcesses, send_signal
from orchestrator.faults.servers import DisturbedServer, Matches, Servers
from orchestrator.storage.base import Storage

STOPPED, TRY_AGAIN = 130, 75
"""Exit codes: stopped by the user, and lost its cluster."""
OUTAGE_S = 2.0
SUSPENDED_S = 3.0
DISTURBED_TIMEOUT_S = 120.0
"""Longest wait for the requests that a fault disturbs."""
NUM_REQUESTS = 3


@dataclass(frozen=True)
class FaultyRun:
    """What a fault can be done to."""

    processes: RunProcesses
    storage: Storage
    """Storage of the run, reached past the proxy."""
    servers: Servers | None = None
    """Servers that the run uses; kinds of S3 and MLflow need them."""


Inject = Callable[[FaultyRun], None]


@dataclass(frozen=True)
class FaultKind:
    """One kind of fault."""

    inject: Inject
    """Does it; a fault of a server returns when its last request was disturbed."""
    new_workers: bool = True
    """Whether the workers are replaced; else they train on."""
    exits: tuple[int, ...] = ()
    """Exit codes that the driver may end with; it is then started again. Empty: it must live."""
    may_survive: bool = False
    """Whether the run may also go on as if nothing had happened."""


LAST, RANK_0, ALL = slice(-1, None), slice(1), slice(None)
"""Workers that a fault hits; the last one is never rank 0 if there are several."""


def _kill(title: str) -> Inject:
    """Kill the newest process with this title."""
    return lambda run: send_signal(run.processes.named(title)[-1:], SIGKILL)


def _signal_workers(number: signal.Signals, which: slice) -> Inject:
    return lambda run: send_signal(run.processes.workers()[which], number)


def _signal_driver(number: signal.Signals) -> Inject:
    return lambda run: send_signal([run.processes.driver], number)


def _suspend_driver(run: FaultyRun) -> None:
    send_signal([run.processes.driver], SIGSTOP)
    time.sleep(SUSPENDED_S)
    send_signal([run.processes.driver], SIGCONT)


def _kill_head(run: FaultyRun) -> None:
    """Kill all processes of Ray that are not workers, as if the head's container ended."""
    titles = ("raylet/raylet", "gcs_server", "dashboard.py", "monitor.py")
    send_signal([pid for title in titles for pid in run.processes.named(title)], SIGKILL)


def _damage_checkpoint(damage: Callable[[Storage, str], None]) -> Inject:
    """Damage the newest checkpoint and kill a worker.

    Meanwhile the workers are suspended: they would commit a newer one, or read this one back.
    """

    def inject(run: FaultyRun) -> None:
        workers = run.processes.workers()
        send_signal(workers, SIGSTOP)
        manifests = [key for key in run.storage.list() if key.endswith("/manifest.json")]
        damage(run.storage, max(manifests).rpartition("/")[0])
        send_signal(workers[-1:], SIGKILL)
        if others := workers[:-1]:
            send_signal(others, SIGCONT)

    return inject


def _flip_bit(storage: Storage, checkpoint: str) -> None:
    content = bytearray(storage.get(f"{checkpoint}/networks.safetensors"))
    content[len(content) // 2] ^= 1
    storage.put(f"{checkpoint}/networks.safetensors", bytes(content))


def _truncate(storage: Storage, checkpoint: str) -> None:
    content = storage.get(f"{checkpoint}/optimizers.safetensors")
    storage.put(f"{checkpoint}/optimizers.safetensors", content[: len(content) // 2])


def _is_s3_write(request: Head) -> bool:
    return request.method in ("PUT", "POST")


def _is_s3_read(request: Head) -> bool:
    return request.method == "GET" and "/" in request.path.strip("/")


def _is_log(request: Head) -> bool:
    """Whether MLflow is to store metrics or an image."""
    path = request.path
    return path.endswith(("/runs/log-batch", "/runs/log-metric")) or (
        request.method == "PUT" and "/mlflow-artifacts/" in path
    )


def _any_request(_: Head) -> bool:
    return True


S3_BUSY = s3_error("503 Slow Down", "SlowDown", "Reduce your request rate.")
S3_ERROR = s3_error("500 Internal Server Error", "InternalError", "Try again.")
MLFLOW_ERROR = http_answer(
    "500 Internal Server Error", b'{"error_code": "INTERNAL_ERROR"}', "application/json"
)


def _s3(kind: Disturbance, matches: Matches) -> Inject:
    return lambda run: _disturb(_servers_of(run).s3, kind, matches)


def _mlflow(kind: Disturbance, matches: Matches) -> Inject:
    return lambda run: _disturb(_servers_of(run).mlflow, kind, matches)


def _disturb(server: DisturbedServer, kind: Disturbance, matches: Matches) -> None:
    if not server.disturb(kind, matches, NUM_REQUESTS, DISTURBED_TIMEOUT_S):
        raise TrainingFailed(
            f"the run made too few requests within {DISTURBED_TIMEOUT_S:.0f} s, so no fault was "
            "injected; set train.log_every to fewer images"
        )


def _servers_of(run: FaultyRun) -> Servers:
    assert run.servers is not None, "this kind of fault needs servers"
    return run.servers


def _outage(which: Literal["s3", "mlflow"], then: Inject | None = None) -> Inject:
    """Refuse all connections to a server; in the middle of that do ``then``."""

    def inject(run: FaultyRun) -> None:
        servers = _servers_of(run)
        (servers.s3 if which == "s3" else servers.mlflow).proxy.outage(OUTAGE_S)
        time.sleep(OUTAGE_S / 2)
        if then is not None:
            then(run)
        else:
            time.sleep(OUTAGE_S / 2)

    return inject


# Ray itself has failed: the workers restart, or the driver ends and the same command resumes.
_of_ray = partial(FaultKind, exits=(TRY_AGAIN,), may_survive=True)
_of_server = partial(FaultKind, new_workers=False)

FAULTS: Mapping[str, FaultKind] = {
    "worker killed": FaultKind(_signal_workers(SIGKILL, LAST)),
    "worker crashed": FaultKind(_signal_workers(SIGSEGV, LAST)),
    "worker aborted": FaultKind(_signal_workers(SIGABRT, LAST)),
    "worker terminated": FaultKind(_signal_workers(SIGTERM, LAST)),
    "worker suspended": FaultKind(_signal_workers(SIGSTOP, LAST)),
    "rank 0 killed": FaultKind(_signal_workers(SIGKILL, RANK_0)),
    "rank 0 crashed": FaultKind(_signal_workers(SIGSEGV, RANK_0)),
    "rank 0 suspended": FaultKind(_signal_workers(SIGSTOP, RANK_0)),
    "all workers killed": FaultKind(_signal_workers(SIGKILL, ALL)),
    "controller killed": FaultKind(_kill("ray::TrainController")),
    "driver killed": FaultKind(_signal_driver(SIGKILL), exits=(-SIGKILL,)),
    "driver terminated": FaultKind(_signal_driver(SIGTERM), exits=(STOPPED,)),
    "driver interrupted": FaultKind(_signal_driver(SIGINT), exits=(STOPPED,)),
    "driver hung up": FaultKind(_signal_driver(SIGHUP), exits=(STOPPED,)),
    "driver quit": FaultKind(_signal_driver(SIGQUIT), exits=(-SIGQUIT,)),
    "driver suspended": FaultKind(_suspend_driver, new_workers=False),
    "raylet killed": _of_ray(_kill("raylet/raylet")),
    "GCS killed": _of_ray(_kill("gcs_server")),
    "head killed": _of_ray(_kill_head),
    "state actor killed": FaultKind(_kill("ray::WorkerGroupState"), new_workers=False),
    "driver's Ray process killed": _of_ray(_kill("cluster.ray_process")),
    "synchronization actor killed": _of_ray(_kill("ray::SynchronizationActor")),
    "dashboard agent killed": _of_ray(_kill("ray::DashboardAgent")),
    "runtime agent killed": _of_ray(_kill("ray::RuntimeEnvAgent")),
    "dashboard killed": FaultKind(_kill("dashboard.py"), new_workers=False),
    "autoscaler killed": FaultKind(_kill("_private/monitor.py"), new_workers=False),
    "log monitor killed": FaultKind(_kill("log_monitor.py"), new_workers=False),
    "checkpoint: a bit flipped": FaultKind(_damage_checkpoint(_flip_bit)),
    "checkpoint: file truncated": FaultKind(_damage_checkpoint(_truncate)),
    "checkpoint: file deleted": FaultKind(
        _damage_checkpoint(lambda storage, name: storage.delete(f"{name}/state.json"))
    ),
    "checkpoint: manifest deleted": FaultKind(
        _damage_checkpoint(lambda storage, name: storage.delete(f"{name}/manifest.json"))
    ),
    "S3: outage": _of_server(_outage("s3")),
    "S3: 503 at writes": _of_server(_s3(Disturbance("refuse", S3_BUSY), _is_s3_write)),
    "S3: written, then 500": _of_server(_s3(Disturbance("fail", S3_ERROR), _is_s3_write)),
    "S3: written, answer lost": _of_server(_s3(Disturbance("lose"), _is_s3_write)),
    "S3: reset": _of_server(_s3(Disturbance("reset"), _any_request)),
    "S3: body cut": _of_server(_s3(Disturbance("cut"), _is_s3_read)),
    "S3: a bit flipped in a read": _of_server(_s3(Disturbance("flip"), _is_s3_read)),
    "S3: slow": _of_server(_s3(Disturbance("delay", seconds=0.9), _any_request)),
    "S3: outage, worker killed": FaultKind(_outage("s3", _signal_workers(SIGKILL, LAST))),
    "S3: outage, driver killed": FaultKind(
        _outage("s3", _signal_driver(SIGKILL)), exits=(-SIGKILL,)
    ),
    "MLflow: outage": _of_server(_outage("mlflow")),
    "MLflow: restarted": _of_server(lambda run: _servers_of(run).restart_mlflow()),
    "MLflow: 500": _of_server(_mlflow(Disturbance("refuse", MLFLOW_ERROR), _is_log)),
    "MLflow: stored, then 500": _of_server(_mlflow(Disturbance("fail", MLFLOW_ERROR), _is_log)),
    "MLflow: stored, answer lost": _of_server(_mlflow(Disturbance("lose"), _is_log)),
    "MLflow: slow": _of_server(_mlflow(Disturbance("delay", seconds=2.0), _is_log)),
    "MLflow: outage, rank 0 killed": FaultKind(_outage("mlflow", _signal_workers(SIGKILL, RANK_0))),
    "MLflow: outage, driver killed": FaultKind(
        _outage("mlflow", _signal_driver(SIGKILL)), exits=(-SIGKILL,)
    ),
}

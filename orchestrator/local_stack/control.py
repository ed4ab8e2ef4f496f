"""Start and stop a stack, and report its status."""

import contextlib
import shlex
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from orchestrator.console import log_info
from orchestrator.distribution import install_command
from orchestrator.errors import EnvironmentProblem, UsageError
from orchestrator.local_stack.folder import StackFolder
from orchestrator.local_stack.mlflow_server import MlflowServer
from orchestrator.local_stack.mlflow_users import create_jobs_user
from orchestrator.local_stack.processes import start
from orchestrator.local_stack.ray_head import RayHead, job_environment
from orchestrator.local_stack.s3_server import S3Server
from orchestrator.local_stack.services import SECRET_REFUSED, Service

HEALTH_TIMEOUT_S = 300.0
"""Longest wait for a healthy service: Ray and MLflow take a minute on two busy cores."""
RUNNING_HEALTH_TIMEOUT_S = 60.0
"""The same for a service that was already running: it hangs, or has just been started."""
START_ATTEMPTS = 3
"""Attempts to start a service that ends with its transient error."""


@dataclass(frozen=True)
class ServiceStatus:
    """Status of one service."""

    name: str
    state: str
    """running, stopped, or the problem of an unhealthy service."""
    address: str
    pid: int | None
    login: str
    """Required credentials, and the file that holds them."""
    log: str


def services(folder: StackFolder) -> list[Service]:
    """Services in the order of starting: a service follows those it uses."""
    return [S3Server(folder), MlflowServer(folder), RayHead(folder)]


def up(path: Path, project: Path, num_cpus: int | None = None) -> list[ServiceStatus]:
    """Start the services of the stack in ``path`` that are not running; wait until all are healthy.

    Args:
        project: working directory of jobs, if Ray is started.
        num_cpus: CPUs that Ray schedules; by default as before, or all.

    Raises:
        EnvironmentProblem: a package is missing, or a service did not start; those that were
            started by this call are stopped again.
        UsageError: ``path`` is not empty and not a stack.
    """
    folder = StackFolder(path)
    if missing := list(filter(None, (each.missing_package() for each in services(folder)))):
        names = " and ".join(missing)
        raise EnvironmentProblem(f"{names} not installed: {install_command('stack')}")
    folder.create()
    with folder.lock():
        folder.create()  # whoever held the lock may have changed or deleted it
        running = [service for service in services(folder) if service.is_running()]
        stopped = [service for service in services(folder) if not service.is_running()]
        for service in running:
            log_info(f"{service.name} is already running")
        if num_cpus is not None and num_cpus != folder.state.num_cpus:
            _set_num_cpus(folder, num_cpus, running)
        if any(service.name == "ray" for service in stopped):
            folder.state.project = str(project)
        for service in running:
            _wait_for_running(service)
        start_services(folder, stopped)
        write_env(folder)
        return status(folder)


def start_services(folder: StackFolder, stopped: Sequence[Service]) -> None:
    """Start these services, wait until they are healthy, and create the buckets and the jobs' user.

    Raises:
        EnvironmentProblem: one did not start; those that were started are stopped again.
    """
    _choose_ports(folder, stopped)
    with contextlib.ExitStack() as undo:
        undo.callback(stop_services, stopped)
        for service in stopped:
            # One at a time: two at once are no faster, and Ray's own timeouts are short.
            _start(service)
        S3Server(folder).create_buckets()
        create_jobs_user(MlflowServer(folder))
        undo.pop_all()


def down(path: Path, *, delete: bool = False) -> None:
    """Stop the stack in ``path``: its jobs, then Ray, MLflow and S3; ``delete`` its folder too."""
    folder = open_stack(path)
    with folder.lock():
        folder.read()
        ray = RayHead(folder)
        if ray.is_running():
            ray.stop_jobs()
        for service in reversed(services(folder)):
            if _stop(service):
                log_info(f"stopped {service.name}")
        if delete:
            folder.delete()


def open_stack(path: Path) -> StackFolder:
    """Open the stack in ``path``. Raises EnvironmentProblem if there is none."""
    folder = StackFolder(path)
    if not folder.read():
        raise EnvironmentProblem(f"there is no stack in {path}; create one with `orchestrator up`")
    return folder


def status(folder: StackFolder) -> list[ServiceStatus]:
    """Check the health of each service."""
    statuses = []
    for service in reversed(services(folder)):
        process = service.process()
        pid = process.pid if process is not None and process.is_running() else None
        state = "stopped" if pid is None else service.health_problem() or "running"
        login = service.login.format(_relative_to_cwd(service.secret_file))
        log = _relative_to_cwd(folder.log(service.name))
        statuses.append(ServiceStatus(service.name, state, service.address, pid, login, log))
    return statuses


def write_env(folder: StackFolder) -> None:
    """Write the file that a shell sources to use the stack."""
    lines = [
        "# For `source`. Contains secrets: do not share it.",
        "unset AWS_PROFILE AWS_SESSION_TOKEN MLFLOW_TRACKING_TOKEN RAY_AUTH_TOKEN",
        *(f"export {name}={shlex.quote(value)}" for name, value in job_environment(folder).items()),
    ]
    folder.write("env", "\n".join(lines) + "\n")


def _set_num_cpus(folder: StackFolder, num_cpus: int, running: Sequence[Service]) -> None:
    if any(service.name == "ray" for service in running):
        raise UsageError(
            f"--num-cpus {num_cpus}: Ray is running with {folder.state.num_cpus or 'all CPUs'}; "
            "run `orchestrator down` first"
        )
    folder.state.num_cpus = num_cpus


def _choose_ports(folder: StackFolder, stopped: Sequence[Service]) -> None:
    """Choose ports for the services to start, after stopping what is left of an earlier start."""
    # Their leaders have ended, but other processes of a session may not have.
    stop_services(stopped)
    moved = folder.choose_ports({k: v for service in stopped for k, v in service.ports.items()})
    for service in stopped:
        if next(iter(service.ports)) in moved:
            log_info(f"the port of {service.name} is in use; it gets a new one: source env again")
            if RayHead(folder).is_running():
                log_info("jobs still use the old port: run `orchestrator down`, then `up`")
    folder.save()


def _start(service: Service) -> None:
    """Start ``service`` and wait until it is healthy."""
    folder = service.folder
    log_info(f"starting {service.name}: {service.address}")
    for left in reversed(range(START_ATTEMPTS)):
        environ, log = service.environ(), folder.log(service.name)
        try:
            process = start(service.command(), cwd=service.working_dir, environ=environ, log=log)
        except OSError as error:
            raise EnvironmentProblem(f"cannot start {service.name}: {error}") from error
        folder.state.processes[service.name] = asdict(process)
        folder.save()
        try:
            _wait(service)
            return
        except EnvironmentProblem as error:
            if not left or not service.transient_error or service.transient_error not in str(error):
                raise
        log_info(f"{service.name} did not start in time on this busy machine; retrying")
        _stop(service)


def _wait_for_running(service: Service) -> None:
    """Wait until a service that was already running is healthy. It is never stopped here."""
    try:
        _wait(service, RUNNING_HEALTH_TIMEOUT_S)
    except EnvironmentProblem as error:
        process = service.process()
        if process is None or not process.is_running():
            raise
        raise EnvironmentProblem(
            f"{error}\nit is still running, so it is not restarted; kill it and its children with "
            f"`kill -9 -- -{process.pid}`, then run orchestrator up"
        ) from error


def _wait(service: Service, timeout_s: float = HEALTH_TIMEOUT_S) -> None:
    """Wait until ``service`` is healthy.

    Raises:
        EnvironmentProblem: it ended, or did not become healthy in time; with the end of its log.
    """
    started = time.monotonic()
    while (problem := service.health_problem()) is not None:
        if not service.is_running():
            raise EnvironmentProblem(f"{service.name} ended:\n{_log_tail(service)}")
        waited_s = time.monotonic() - started
        if waited_s > timeout_s or SECRET_REFUSED in problem:
            raise EnvironmentProblem(
                f"{service.name} did not become healthy within {waited_s:.0f} s: {problem}\n"
                f"{_log_tail(service)}"
            )
        time.sleep(0.5)


def _log_tail(service: Service) -> str:
    log = service.folder.log(service.name)
    lines = log.read_text(errors="replace").splitlines()[-15:] if log.exists() else []
    return "\n".join([*(f"  {line}" for line in lines), f"full log: {_relative_to_cwd(log)}"])


def stop_services(started: Sequence[Service], timeout_s: float | None = None) -> None:
    """Stop services; kill what is left after ``timeout_s``, by default that of each service."""
    for service in reversed(started):
        _stop(service, timeout_s)


def _stop(service: Service, timeout_s: float | None = None) -> bool:
    """Stop ``service`` with its whole session. Returns whether any process was alive."""
    folder, process = service.folder, service.process()
    if process is None:
        return False
    alive = bool(process.session(str(folder.path)))
    process.stop(str(folder.path), service.stop_timeout_s if timeout_s is None else timeout_s)
    del folder.state.processes[service.name]
    folder.save()
    return alive


def _relative_to_cwd(path: Path) -> str:
    """Shorten ``path`` if it is below the current folder."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)

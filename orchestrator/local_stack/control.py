"""Start, stop and look at a stack."""

import contextlib
import shlex
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from orchestrator.console import log_info
from orchestrator.errors import EnvironmentProblem, UsageError
from orchestrator.local_stack.folder import StackFolder
from orchestrator.local_stack.jobs import stop_jobs
from orchestrator.local_stack.mlflow_server import MlflowServer
from orchestrator.local_stack.processes import start
from orchestrator.local_stack.ray_head import RayHead, job_environment
from orchestrator.local_stack.s3_server import S3Server
from orchestrator.local_stack.services import SECRET_REFUSED, Service

DEFAULT = Path(".orchestrator/stack")
HEALTH_TIMEOUT_S = 300.0
"""How long a service may take to answer: Ray and MLflow take a minute on two busy cores."""
RUNNING_HEALTH_TIMEOUT_S = 60.0
"""The same of one that runs already: it hangs, or `up` was killed when it had just started it."""
LOG_LINES = 15
START_ATTEMPTS = 3
"""How often a service is started that has ended of something that may pass."""


@dataclass(frozen=True)
class ServiceStatus:
    """What is to be said of one service."""

    name: str
    state: str
    """running, stopped, or what is wrong with it."""
    address: str
    pid: int | None
    login: str
    """What it asks for, and in which file that is."""
    log: str


def services(folder: StackFolder) -> list[Service]:
    """In the order of starting: whom the others use comes first."""
    return [S3Server(folder), MlflowServer(folder), RayHead(folder)]


def up(path: Path, project: Path, num_cpus: int | None = None) -> list[ServiceStatus]:
    """Start what does not run of the stack in ``path``, and wait until all of it answers.

    Args:
        project: the folder in which jobs start, if Ray is started.
        num_cpus: how many CPUs Ray has to give away; by default as last time, or all.

    Raises:
        EnvironmentProblem: something is not installed, or did not start; nothing that was started
            here runs on.
        UsageError: ``path`` is a folder with other things in it.
    """
    folder = StackFolder(path)
    missing_package = [what for service in services(folder) if (what := service.missing_package())]
    if missing_package:
        raise EnvironmentProblem(
            f"{' and '.join(missing_package)} not installed: pip install 'orchestrator[stack]'"
        )
    folder.create()
    with folder.lock():
        folder.create()  # who had the lock may have changed or deleted it
        running = [service for service in services(folder) if service.is_running()]
        stopped = [service for service in services(folder) if not service.is_running()]
        for service in running:
            log_info(f"{service.name} runs already")
        if num_cpus is not None and num_cpus != folder.state.num_cpus:
            _set_num_cpus(folder, num_cpus, running)
        _choose_ports(folder, stopped)
        if any(service.name == "ray" for service in stopped):
            folder.state.project = str(project)
        with _stopped_on_failure(folder, stopped):
            for service in running:
                _wait_for_running(folder, service)
            for service in stopped:
                # One after the other: two at a time take as long, and what Ray cannot wait for.
                _start(folder, service)
            S3Server(folder).create_buckets()
        write_env(folder)
        return status(folder)


def down(path: Path, *, delete: bool = False) -> None:
    """Stop the stack in ``path``: its jobs, then Ray, MLflow and S3. Data stay, unless ``delete``.

    Raises:
        EnvironmentProblem: there is no stack.
    """
    folder = open_stack(path)
    with folder.lock():
        folder.read()
        ray = RayHead(folder)
        if ray.is_running():
            stop_jobs(ray.address, folder.secret("ray-token"))
        for service in reversed(services(folder)):
            if _stop(folder, service):
                log_info(f"stopped {service.name}")
        if delete:
            folder.delete()


def open_stack(path: Path) -> StackFolder:
    """The stack in ``path``.

    Raises:
        EnvironmentProblem: there is none.
    """
    folder = StackFolder(path)
    if not folder.read():
        raise EnvironmentProblem(f"there is no stack in {path}; `orchestrator up` makes one")
    return folder


def status(folder: StackFolder) -> list[ServiceStatus]:
    """Each service with its address, asked for its health now."""
    found = []
    for service in reversed(services(folder)):
        process = service.process()
        is_running = process is not None and process.is_running()
        state = (service.health_problem() or "running") if is_running else "stopped"
        found.append(
            ServiceStatus(
                service.name,
                state,
                service.address,
                process.pid if process is not None and is_running else None,
                service.login.format(_relative_to_cwd(service.secret_file)),
                _relative_to_cwd(folder.log(service.name)),
            )
        )
    return found


def write_env(folder: StackFolder) -> None:
    """Write the file that a shell reads to find the stack."""
    lines = [
        "# Read by `source`; it holds secrets: keep it to yourself.",
        "unset AWS_PROFILE AWS_SESSION_TOKEN MLFLOW_TRACKING_TOKEN RAY_AUTH_TOKEN",
        *(f"export {name}={shlex.quote(value)}" for name, value in job_environment(folder).items()),
    ]
    folder.write("env", "\n".join(lines) + "\n")


def _set_num_cpus(folder: StackFolder, num_cpus: int, running: Sequence[Service]) -> None:
    if any(service.name == "ray" for service in running):
        raise UsageError(
            f"--num-cpus {num_cpus}: Ray runs with {folder.state.num_cpus or 'all CPUs'}; "
            "`orchestrator down` first"
        )
    folder.state.num_cpus = num_cpus


def _choose_ports(folder: StackFolder, stopped: Sequence[Service]) -> None:
    """Ports for what is to be started, once nothing of an earlier start holds them."""
    for service in stopped:
        _stop(folder, service)  # its leader is gone; others of its session may not be
    moved = folder.choose_ports({k: v for one in stopped for k, v in one.ports.items()})
    for service in stopped:
        if next(iter(service.ports)) in moved:
            log_info(
                f"{service.name} has another address, for its port was taken: source env again"
            )
            if RayHead(folder).is_running():
                log_info("Ray's jobs still know the old one: orchestrator down, then up")
    folder.save()


def _start(folder: StackFolder, service: Service) -> None:
    """Start ``service`` and wait until it answers.

    Raises:
        EnvironmentProblem: it has ended, or does not answer in time; with the end of its log.
    """
    log_info(f"starting {service.name}: {service.address}")
    for left in reversed(range(START_ATTEMPTS)):
        environ, log = service.environ(), folder.log(service.name)
        try:
            process = start(service.command(), cwd=service.working_dir, environ=environ, log=log)
        except OSError as error:
            raise EnvironmentProblem(f"{service.name} cannot be started: {error}") from error
        folder.state.processes[service.name] = asdict(process)
        folder.save()
        try:
            _wait(folder, service)
            return
        except EnvironmentProblem as error:
            if not left or not service.transient_error or service.transient_error not in str(error):
                raise
        log_info(f"{service.name} was too slow on this busy machine; starting it again")
        _stop(folder, service)


def _wait_for_running(folder: StackFolder, service: Service) -> None:
    """Wait until a service that this process has not started answers; it is never ended here.

    Raises EnvironmentProblem, which says how to end it, if it does not.
    """
    try:
        _wait(folder, service, RUNNING_HEALTH_TIMEOUT_S)
    except EnvironmentProblem as error:
        process = service.process()
        if process is None or not process.is_running():
            raise
        raise EnvironmentProblem(
            f"{error}\nit is not started again while it runs: end it and what it has started with "
            f"`kill -9 -- -{process.pid}`, then orchestrator up"
        ) from error


def _wait(folder: StackFolder, service: Service, limit_s: float = HEALTH_TIMEOUT_S) -> None:
    started = time.monotonic()
    while (health_problem := service.health_problem()) is not None:
        if not service.is_running():
            raise EnvironmentProblem(f"{service.name} has ended:\n{_log_tail(folder, service)}")
        waited_s = time.monotonic() - started
        if waited_s > limit_s or SECRET_REFUSED in health_problem:
            raise EnvironmentProblem(
                f"{service.name} is not well after {waited_s:.0f} s: {health_problem}\n"
                f"{_log_tail(folder, service)}"
            )
        time.sleep(0.5)


def _log_tail(folder: StackFolder, service: Service) -> str:
    log = folder.log(service.name)
    lines = log.read_text(errors="replace").splitlines()[-LOG_LINES:] if log.exists() else []
    return "\n".join([*(f"  {line}" for line in lines), f"the whole log: {_relative_to_cwd(log)}"])


@contextlib.contextmanager
def _stopped_on_failure(folder: StackFolder, started: Sequence[Service]) -> Iterator[None]:
    try:
        yield
    except BaseException:
        for service in reversed(started):
            _stop(folder, service)
        raise


def _stop(folder: StackFolder, service: Service) -> bool:
    """Stop ``service`` with all of its session; whether there was anything to stop."""
    process = service.process()
    if process is None:
        return False
    alive = bool(process.group(str(folder.path)))
    process.stop(str(folder.path), service.stop_timeout_s)
    del folder.state.processes[service.name]
    folder.save()
    return alive


def _relative_to_cwd(path: Path) -> str:
    """``path`` as it is typed in the current folder."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)

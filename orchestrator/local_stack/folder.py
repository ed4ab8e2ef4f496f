"""Folder of a stack: its state, its secrets and its lock."""

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.console import log_info
from orchestrator.errors import EnvironmentProblem, UsageError
from orchestrator.home_folder import expand_home
from orchestrator.private_folder import MAX_RAY_FOLDER_BYTES, is_private
from orchestrator.record_reader import DamagedRecord, parse_record

STATE = "state.json"


@dataclass
class State:
    """State that is kept from one `up` to the next."""

    ports: dict[str, int] = field(default_factory=dict)
    """Ports by name of their listener."""
    processes: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Fields of processes.Process by service."""
    ray_folder: str = ""
    """Folder of Ray's sockets and logs."""
    project: str = ""
    """Working directory of jobs."""
    num_cpus: int | None = None
    """CPUs that Ray schedules; None means all CPUs of this machine."""
    path: str = ""
    """Folder of the stack when this was written; it may have been moved or copied since."""


class StackFolder:
    """Folder with everything that a stack stores; only its owner can read it."""

    def __init__(self, path: Path) -> None:
        self.path = expand_home(path).absolute()
        self.state = State()

    def create(self) -> None:
        """Create the folder, or read its state. Raises UsageError if it is not a stack."""
        try:
            if self.path.exists() and not self._is_stack() and any(self.path.iterdir()):
                raise UsageError(
                    f"{self.path} is not empty and not a stack; use a new or an empty folder"
                )
            self.path.mkdir(parents=True, exist_ok=True)
            self.path.chmod(0o700)
            # Keep secrets and data out of repositories, and out of uploads of working directories.
            for name in (".gitignore", ".rayignore"):
                (self.path / name).write_text("*\n")
        except OSError as error:
            raise EnvironmentProblem(
                f"cannot create the stack in {self.path}: {error}; use a writable folder with "
                "--folder"
            ) from error
        self.read()
        self.save()

    def read(self) -> bool:
        """Read the state. Returns whether there is a stack here."""
        if not self._is_stack():
            return False
        try:
            remedy = "move it away and start the stack again: data and secrets are kept"
            file = self.path / STATE
            self.state = parse_record(State, file.read_bytes(), str(file), remedy)
        except DamagedRecord as error:
            raise EnvironmentProblem(str(error)) from error
        if self._is_copy():
            # The processes, their ports and Ray's folder are those of the original.
            self.state = State(project=self.state.project, num_cpus=self.state.num_cpus)
        return True

    def save(self) -> None:
        """Write the state atomically."""
        self.state.path = str(self.path)
        self.write(STATE, json.dumps(vars(self.state), indent=2) + "\n")

    def write(self, name: str, text: str) -> Path:
        """Write a file atomically; only its owner can read it."""
        target = self.path / name
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        new = target.with_name(f".{target.name}.new")
        new.unlink(missing_ok=True)
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(text)
        new.replace(target)
        return target

    def secret(self, name: str) -> str:
        """Return a secret of 64 hex digits; it is created when first used."""
        file = self.secret_file(name)
        if not file.exists():
            self.write(f"secrets/{name}", secrets.token_hex(32))
        return file.read_text().strip()

    def secret_file(self, name: str) -> Path:
        """Path of a secret."""
        return self.path / "secrets" / name

    def log(self, service: str) -> Path:
        """Path of a service's output."""
        return self.path / "logs" / f"{service}.log"

    def choose_ports(self, preferred: Mapping[str, int]) -> list[str]:
        """Choose a free port for each name: the previous one, the preferred one, or any (0).

        Returns the names whose port has changed.
        """
        ports, before = self.state.ports, dict(self.state.ports)
        with contextlib.ExitStack() as held:
            for name, default in preferred.items():
                tried = (_bind_port(port, held) for port in (ports.get(name, default), default, 0))
                ports[name] = next(filter(None, tried))
        return [name for name in preferred if name in before and before[name] != ports[name]]

    def ray_folder(self) -> Path:
        """Return a folder whose path is short enough for Ray's sockets.

        Ray makes it readable for everyone; its parent is private to the owner.
        """
        inside = self.path / "ray"
        if len(os.fsencode(inside)) <= MAX_RAY_FOLDER_BYTES:
            self.state.ray_folder = str(inside)
        elif not (self.state.ray_folder and is_private(Path(self.state.ray_folder).parent)):
            self.state.ray_folder = tempfile.mkdtemp(prefix="stack-", dir="/tmp") + "/ray"
        return Path(self.state.ray_folder)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes from starting or stopping this stack."""
        with (self.path / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                log_info(
                    f"waiting for another command that starts or stops the stack in {self.path}"
                )
                fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def delete(self) -> None:
        """Delete the folder with all data, and Ray's folder if it is elsewhere."""
        parent = Path(self.state.ray_folder).parent
        if parent != self.path and parent.name.startswith("stack-") and is_private(parent):
            shutil.rmtree(parent, ignore_errors=True)
        shutil.rmtree(self.path, ignore_errors=True)

    def _is_copy(self) -> bool:
        """Whether the state is that of another stack, which still exists."""
        original = Path(self.state.path)
        if not self.state.path or original == self.path or not (original / STATE).is_file():
            return False
        return not original.samefile(self.path)

    def _is_stack(self) -> bool:
        return (self.path / STATE).is_file()


def _bind_port(port: int, held: contextlib.ExitStack) -> int | None:
    """Bind ``port`` (0: any) on 127.0.0.1 until ``held`` is closed; None if it is in use."""
    probe = held.enter_context(socket.socket())
    # Connections of an ended server linger for a minute, and do not matter.
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        probe.bind(("127.0.0.1", port))
    except OSError:
        return None
    return int(probe.getsockname()[1])

"""The folder of a stack: what it remembers, its secrets, and the lock of who works on it."""

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.console import log_info
from orchestrator.errors import EnvironmentProblem, UsageError

STATE = "state.json"
LONGEST_RAY_FOLDER = 40
"""Ray adds up to 66 characters to it for its Unix sockets, whose paths end at 107."""


@dataclass
class State:
    """What is remembered from one `up` to the next."""

    ports: dict[str, int] = field(default_factory=dict)
    """The ports by what listens there."""
    processes: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The process of each service, see processes.Process."""
    ray_folder: str = ""
    """Where Ray has its sockets and logs."""
    project: str = ""
    """The folder in which jobs start."""
    num_cpus: int | None = None
    """How many CPUs Ray has to give away; None: all of this machine."""


class StackFolder:
    """One folder, readable for its owner alone, with everything that a stack keeps."""

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser().absolute()
        self.state = State()

    def create(self) -> None:
        """Make the folder, or read what it remembers.

        Raises:
            UsageError: it is there, and it is not a stack's.
            EnvironmentProblem: it cannot be made or read.
        """
        try:
            if self.path.exists() and not self._is_stack() and any(self.path.iterdir()):
                raise UsageError(
                    f"{self.path} has files in it that are no stack's: name a new folder or an "
                    "empty one"
                )
            self.path.mkdir(parents=True, exist_ok=True)
            self.path.chmod(0o700)
            # Secrets and data go neither into a repository nor into an upload of this folder's.
            for name in (".gitignore", ".rayignore"):
                (self.path / name).write_text("*\n")
        except OSError as error:
            raise EnvironmentProblem(
                f"{self.path} cannot be made the stack's folder: {error}; name one that can be "
                "written with --folder"
            ) from error
        self.read()
        self.save()

    def read(self) -> bool:
        """Read what is remembered; False if there is no stack here."""
        if not self._is_stack():
            return False
        text = (self.path / STATE).read_text()
        try:
            self.state = State(**json.loads(text))
        except (ValueError, TypeError) as error:
            raise EnvironmentProblem(
                f"{self.path / STATE} is damaged ({error}): move it away and start the stack "
                "again; data and secrets stay"
            ) from error
        return True

    def save(self) -> None:
        """Write what is remembered, all of it or nothing."""
        self.write(STATE, json.dumps(vars(self.state), indent=2) + "\n")

    def write(self, name: str, text: str) -> Path:
        """Write a file that its owner alone can read; it is whole at any moment."""
        target = self.path / name
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        new = target.with_name(f".{target.name}.new")
        new.unlink(missing_ok=True)
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(text)
        new.replace(target)
        return target

    def secret(self, name: str) -> str:
        """The secret called ``name``: 64 hex digits, made when it is first asked for."""
        file = self.secret_file(name)
        if not file.exists():
            self.write(f"secrets/{name}", secrets.token_hex(32))
        return file.read_text().strip()

    def secret_file(self, name: str) -> Path:
        """Where the secret called ``name`` is."""
        return self.path / "secrets" / name

    def log(self, service: str) -> Path:
        """What a service writes to its terminal."""
        return self.path / "logs" / f"{service}.log"

    def choose_ports(self, wanted: Mapping[str, int]) -> list[str]:
        """Give each name a port nobody listens on: the one it had, else ``wanted``, else any.

        0 wants none in particular. Returns the names whose port is another than before.
        """
        moved = []
        with contextlib.ExitStack() as held:
            for name, default in wanted.items():
                before = self.state.ports.get(name)
                for port in (before, default, 0):
                    if port is None or (found := _bind_port(port, held)) is None:
                        continue
                    self.state.ports[name] = found
                    break
                if before not in (None, self.state.ports[name]):
                    moved.append(name)
        return moved

    def ray_folder(self) -> Path:
        """A folder for Ray whose path is short enough for its sockets.

        Ray opens it for everyone; the one around it is the owner's alone.
        """
        inside = self.path / "ray"
        if len(str(inside)) <= LONGEST_RAY_FOLDER:
            self.state.ray_folder = str(inside)
        elif not (self.state.ray_folder and _is_private(Path(self.state.ray_folder).parent)):
            self.state.ray_folder = tempfile.mkdtemp(prefix="stack-", dir="/tmp") + "/ray"
        return Path(self.state.ray_folder)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """The block in which nobody else starts or stops this stack."""
        with (self.path / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                log_info(
                    f"another command starts or stops the stack in {self.path}; waiting for it"
                )
                fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def delete(self) -> None:
        """Remove the folder with all data, and Ray's where it is elsewhere."""
        around = Path(self.state.ray_folder).parent
        if around != self.path and around.name.startswith("stack-") and _is_private(around):
            shutil.rmtree(around, ignore_errors=True)
        shutil.rmtree(self.path, ignore_errors=True)

    def _is_stack(self) -> bool:
        return (self.path / STATE).is_file()


def _is_private(folder: Path) -> bool:
    """Whether nobody else can have put anything into ``folder``, which may lie in /tmp."""
    try:
        found = folder.lstat()
    except OSError:
        return False
    private = stat.S_ISDIR(found.st_mode) and not stat.S_IMODE(found.st_mode) & 0o077
    return private and found.st_uid == os.getuid()


def _bind_port(port: int, held: contextlib.ExitStack) -> int | None:
    """Take ``port`` on 127.0.0.1 until ``held`` ends (0: any); None if somebody has it."""
    probe = held.enter_context(socket.socket())
    # Connections of a server that is gone linger for a minute; they are in nobody's way.
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        probe.bind(("127.0.0.1", port))
    except OSError:
        return None
    return int(probe.getsockname()[1])

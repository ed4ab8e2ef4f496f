"""Hosts for tests: network namespaces with addresses of their own, joined by a bridge.

They share the file system, the clock and the processors of this machine, but not its network.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

PREFIX = "10.77.0"
OUTSIDE = f"{PREFIX}.254"
"""Address of this machine itself, which is not one of the hosts."""


def missing() -> str:
    """Return what this machine lacks to run hosts; "" if nothing."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "network namespaces need the command ip (Debian: iproute2)"
    return ""


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@dataclass
class Host:
    """One host on the network."""

    name: str
    address: str
    processes: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    @property
    def namespace(self) -> str:
        """Name of its network namespace."""
        return f"orc-{self.name}"

    def start(self, *command: str, environ: Mapping[str, str], log: Path, cwd: Path) -> None:
        """Start a service, which is started again when it ends, as systemd does."""
        again = 'while true; do "$@"; echo "ended with $?"; sleep 2; done'
        with log.open("ab") as output:
            process = subprocess.Popen(
                ["ip", "netns", "exec", self.namespace, "bash", "-c", again, "sh", *command],
                env=dict(environ), cwd=cwd, start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            )  # fmt: skip
        self.processes.append(process)

    def popen(
        self, *command: str, environ: Mapping[str, str], log: Path, cwd: Path
    ) -> "subprocess.Popen[bytes]":
        """Start a command with its output in ``log``."""
        with log.open("wb") as output:
            return subprocess.Popen(
                ["ip", "netns", "exec", self.namespace, *command], env=dict(environ), cwd=cwd,
                stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            )  # fmt: skip

    def cut(self) -> None:
        """Unplug the network cable."""
        _ip("-n", "orc-hub", "link", "set", f"v{self.name}", "down")

    def join(self) -> None:
        """Plug the network cable in again."""
        _ip("-n", "orc-hub", "link", "set", f"v{self.name}", "up")

    def pids(self) -> list[int]:
        """Process ids of this host."""
        done = subprocess.run(
            ["ip", "netns", "pids", self.namespace], capture_output=True, text=True, check=False
        )
        return [int(pid) for pid in done.stdout.split()]

    def remove(self) -> None:
        """Kill everything on the host at once, as on a power failure."""
        with contextlib.suppress(subprocess.CalledProcessError):
            self.cut()
        deadline = time.monotonic() + 60
        while (pids := self.pids()) and time.monotonic() < deadline:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)
        for process in self.processes:
            process.wait(10)
        with contextlib.suppress(subprocess.CalledProcessError):
            _ip("netns", "del", self.namespace)


class Network:
    """Bridge and the hosts that it joins."""

    def __init__(self) -> None:
        self._hosts: list[Host] = []

    def add(self, name: str) -> Host:
        """Add a host, with the next address."""
        host = Host(name, f"{PREFIX}.{len(self._hosts) + 1}")
        _ip("netns", "add", host.namespace)
        self._hosts.append(host)
        _ip("-n", host.namespace, "link", "set", "lo", "up")
        _ip("link", "add", "veth0", "netns", host.namespace, "type", "veth",
            "peer", "name", f"v{name}", "netns", "orc-hub")  # fmt: skip
        _ip("-n", "orc-hub", "link", "set", f"v{name}", "master", "br0", "up")
        _ip("-n", host.namespace, "addr", "add", f"{host.address}/24", "dev", "veth0")
        _ip("-n", host.namespace, "link", "set", "veth0", "up")
        return host

    def end(self) -> None:
        """Remove all hosts and the bridge, also those that a killed test has left."""
        left = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True)
        for line in left.stdout.splitlines():
            name = line.split()[0].removeprefix("orc-")
            if line.startswith("orc-") and name not in ("hub", *(h.name for h in self._hosts)):
                self._hosts.append(Host(name, ""))
        for host in self._hosts:
            host.remove()
        self._hosts.clear()
        for command in (["link", "del", "orc-out"], ["netns", "del", "orc-hub"]):
            with contextlib.suppress(subprocess.CalledProcessError):
                _ip(*command)


@contextlib.contextmanager
def network() -> Iterator[Network]:
    """Set up a bridge for hosts, with this machine at OUTSIDE, until the block ends."""
    made = Network()
    made.end()
    try:
        _ip("netns", "add", "orc-hub")
        _ip("-n", "orc-hub", "link", "set", "lo", "up")
        _ip("-n", "orc-hub", "link", "add", "br0", "type", "bridge")
        _ip("-n", "orc-hub", "link", "set", "br0", "up")
        _ip("link", "add", "orc-out", "type", "veth", "peer", "name", "vout", "netns", "orc-hub")
        _ip("-n", "orc-hub", "link", "set", "vout", "master", "br0", "up")
        _ip("addr", "add", f"{OUTSIDE}/24", "dev", "orc-out")
        _ip("link", "set", "orc-out", "up")
        yield made
    finally:
        made.end()

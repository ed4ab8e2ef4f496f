"""By which of a machine's networks its workers reach those of other machines."""

import contextlib
import fcntl
import os
import socket
import struct
from typing import Any

import ray
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend

_SIOCGIFADDR = 0x8915
"""Linux: ask for the IPv4 address of an interface."""


def interface_of(address: str) -> str | None:
    """The name of this machine's interface with the IPv4 ``address``; None where there is none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode())
            with contextlib.suppress(OSError):  # it has no IPv4 address
                reply = fcntl.ioctl(probe, _SIOCGIFADDR, request)
                if socket.inet_ntoa(reply[20:24]) == address:
                    return name
    return None


def use_nodes_interface() -> None:
    """Have Gloo in this process listen where Ray's node does, unless the environment says where.

    By itself it takes the address that the machine's own name stands for, which is a loopback one
    where /etc/hosts follows Debian's custom: the other machines would look for it in themselves.
    """
    name = interface_of(ray.util.get_node_ip_address())
    if name is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


class _Backend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        worker_group.execute(use_nodes_interface)
        super().on_start(worker_group, backend_config)


class TorchOnNodes(TorchConfig):
    """Ray Train's, with a process group over the network that Ray itself uses."""

    @property
    def backend_cls(self) -> type[_Backend]:
        """What sets the process group up."""
        return _Backend

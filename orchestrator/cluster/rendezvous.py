"""Choose the network interface over which workers on different nodes reach each other."""

import os
import socket
from typing import Any

import psutil
import ray
from ray.train.torch import TorchConfig

_TorchBackend: Any = TorchConfig().backend_cls


def interface_of(address: str) -> str | None:
    """Return the name of this machine's interface with an IPv4 address; None without one."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(one.family == socket.AF_INET and one.address == address for one in addresses):
            return name
    return None


def use_node_interface() -> None:
    """Have Gloo in this process listen where Ray's node does, unless the environment chooses.

    By default Gloo takes the address of the machine's own name, which is a loopback address where
    /etc/hosts follows Debian's custom: other nodes would then try to reach it on themselves.
    """
    name = interface_of(ray.util.get_node_ip_address())
    if name is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


class _NodeNetworkBackend(_TorchBackend):  # type: ignore[misc]  # a class known at run time
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        worker_group.execute(use_node_interface)
        super().on_start(worker_group, backend_config)


class NodeNetworkTorchConfig(TorchConfig):
    """Ray Train's config with a process group over the network that Ray itself uses."""

    @property
    def backend_cls(self) -> type[_NodeNetworkBackend]:
        """Return the class that sets up the process group."""
        return _NodeNetworkBackend

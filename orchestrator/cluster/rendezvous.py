"""Set up the process group of the workers, over the network that Ray's nodes use alone.

On a cluster of one machine that is the loopback network.
"""

import ipaddress
import os
import socket
from datetime import timedelta
from typing import Any

import psutil
import ray
import torch.distributed as dist
from ray.train.torch import TorchConfig

from orchestrator.cluster.ray_compat import set_torch_variables

_TorchBackend: Any = TorchConfig().backend_cls
_stores: list[Any] = []
"""The store that this process serves, if it is rank 0."""


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
    address = ray.util.get_node_ip_address()
    name = interface_of(address)
    if name is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
        if ipaddress.ip_address(address).is_loopback:  # which NCCL would not take by itself
            os.environ.setdefault("NCCL_SOCKET_IFNAME", name)


def serve_store(world_size: int, timeout_s: int) -> tuple[str, int]:
    """Serve the store of a process group at the node's address alone; return the address.

    By itself, torch's store listens on all addresses of the machine.
    """
    address = ray.util.get_node_ip_address()
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, 0), family=family, backlog=2048) as server:
        port: int = server.getsockname()[1]
        store = _new_store(
            address, port, world_size, timeout_s, is_master=True, master_listen_fd=server.detach()
        )
    _stores[:] = [store]
    return address, port


def join_process_group(
    address: str, port: int, rank: int, world_size: int, backend: str, timeout_s: int
) -> None:
    """Make this process rank ``rank`` of the process group of rank 0's store."""
    store = _stores[0] if rank == 0 else _new_store(address, port, world_size, timeout_s)
    if backend == "nccl":  # as Ray Train does: an error ends the process
        os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1")
    untyped: Any = dist
    untyped.init_process_group(
        backend,
        store=store,
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=timeout_s),
    )


def _new_store(address: str, port: int, world_size: int, timeout_s: int, **options: Any) -> Any:
    store: Any = dist.TCPStore  # type: ignore[attr-defined]
    timeout = timedelta(seconds=timeout_s)
    return store(address, port, world_size, timeout=timeout, wait_for_workers=False, **options)


class _NodeNetworkBackend(_TorchBackend):  # type: ignore[misc]  # a class known at run time
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        worker_group.execute(use_node_interface)
        worker_group.execute(set_torch_variables)
        size, timeout_s = len(worker_group), backend_config.timeout_s
        address, port = worker_group.execute_single(0, serve_store, size, timeout_s)
        joined = [
            worker_group.execute_single_async(
                rank, join_process_group, address, port, rank, size,
                backend_config.backend, timeout_s,
            )
            for rank in range(size)
        ]  # fmt: skip
        ray.get(joined)


class NodeNetworkTorchConfig(TorchConfig):
    """Ray Train's config with a process group over the network that Ray itself uses."""

    @property
    def backend_cls(self) -> type[_NodeNetworkBackend]:
        """Return the class that sets up the process group."""
        return _NodeNetworkBackend

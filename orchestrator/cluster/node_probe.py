"""Probe every node of the cluster and the network between them, with time limits."""

import contextlib
import math
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.cluster import rendezvous
from orchestrator.cluster.failure_policy import last_line
from orchestrator.cluster.ray_session import ray_session
from orchestrator.diagnostics.doctor import remove_new_folders
from orchestrator.diagnostics.node_facts import (
    NodeFacts,
    ServiceAddresses,
    ServiceFacts,
    collect_node_facts,
    collect_versions,
    probe_services,
)
from orchestrator.diagnostics.node_report import (
    BANDWIDTH_BYTES,
    LATENCY_BYTES,
    AllReduce,
    ClockOffset,
    ClusterReport,
    NodeReport,
    estimate_clock_offset,
)
from orchestrator.errors import OrchestratorError
from orchestrator.storage.open import open_storage

LIMIT_S = 60.0
"""Time limit for each part of the probe: a process that starts imports torch."""
OBJECT_BYTES = 8 << 20
CLOCK_SAMPLES = 9
WARM_UPS = 3
REPETITIONS = {LATENCY_BYTES: 50, BANDWIDTH_BYTES: 10}


class NodeProbe:
    """Actor on one node that collects facts about it."""

    def facts(self, folders: Sequence[str], ray_gpus: int) -> NodeFacts:
        """Collect facts about the node; see ``collect_node_facts``."""
        return collect_node_facts(folders, ray_gpus)

    def clock(self) -> float:
        """Return the node's time."""
        return time.time()

    def services(self, addresses: ServiceAddresses, key: str) -> ServiceFacts:
        """Try MLflow and the storage; see ``probe_services``."""
        return probe_services(addresses, key, OBJECT_BYTES)

    def serve_store(self, world_size: int, limit_s: float) -> tuple[str, int]:
        """Serve the store of the process group, with this process as rank 0; return its address."""
        return rendezvous.serve_store(world_size, math.ceil(limit_s))

    def all_reduce(
        self, store: tuple[str, int], rank: int, world_size: int, backend: str, limit_s: float
    ) -> dict[int, list[float]]:
        """Return seconds of each all-reduce, by size in bytes; every rank must call it.

        Raises:
            RuntimeError: the ranks do not find each other, or a sum is wrong.
        """
        import torch
        import torch.distributed as dist

        device = torch.device("cuda" if backend == "nccl" else "cpu")
        synchronize: Any = torch.cuda.synchronize if backend == "nccl" else lambda: None
        untyped: Any = dist
        rendezvous.use_node_interface()
        rendezvous.join_process_group(*store, rank, world_size, backend, math.ceil(limit_s))
        seconds: dict[int, list[float]] = {}
        for size, repetitions in REPETITIONS.items():
            tensor = torch.empty(size // 4, device=device)
            durations = []
            for _ in range(WARM_UPS + repetitions):
                tensor.fill_(1)
                synchronize()
                start = time.perf_counter()
                dist.all_reduce(tensor)
                synchronize()
                durations.append(time.perf_counter() - start)
            if not bool((tensor == world_size).all()):
                raise RuntimeError(f"a sum of {world_size} ones is wrong")
            seconds[size] = durations[WARM_UPS:]
        untyped.destroy_process_group()
        return seconds


def probe_nodes(
    tracking_uri: str, storage: str, shown: tuple[str, str], limit_s: float = LIMIT_S
) -> ClusterReport:
    """Probe every node of the cluster of RAY_ADDRESS, and the network between them.

    Args:
        tracking_uri: of the MLflow that nodes are to reach.
        storage: where each node writes, reads and deletes an object of 8 MiB, all at once.
        shown: how to print these two.
        limit_s: seconds for each part; a node that takes longer gets a problem in its report.

    Raises:
        EnvironmentProblem: the cluster is out of reach.
    """
    with ray_session("ask someone who runs it for its address"):
        return _ClusterProbe(limit_s).run(tracking_uri, storage, shown)


class _ClusterProbe:
    """One probe of the cluster: an actor on each node, and their answers."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._problems: dict[str, str] = {}
        """First problem of a node, by node id."""
        nodes = ray.nodes()
        self._nodes = {node["NodeID"]: node for node in nodes if node["Alive"]}
        alive = {node["NodeManagerAddress"] for node in self._nodes.values()}
        gone = {node["NodeManagerAddress"] for node in nodes if not node["Alive"]}
        self._gone = tuple(sorted(gone - alive))
        self._names = _unique_names(self._nodes)
        self._probes = {node_id: self._start_probe(node_id) for node_id in self._nodes}

    def run(self, tracking_uri: str, storage: str, shown: tuple[str, str]) -> ClusterReport:
        def ask_facts(node_id: str, probe: Any) -> Any:
            node = self._nodes[node_id]
            ray_folder = PurePath(node["ObjectStoreSocketName"]).parents[2]  # of session_*/sockets
            folders = [str(ray_folder), tempfile.gettempdir()]
            return probe.facts.remote(folders, int(node["Resources"].get("GPU", 0)))

        facts: dict[str, NodeFacts] = self._ask(self._probes, ask_facts, "its process")
        answering = {node_id: self._probes[node_id] for node_id in facts}
        clocks = self._compare_clocks(answering)
        services = self._probe_services(answering, tracking_uri, storage, shown)
        all_reduce = self._time_all_reduce(
            {node_id: probe for node_id, probe in answering.items() if node_id in clocks},
            {node_id for node_id in facts if facts[node_id].gpus},
        )
        for probe in self._probes.values():
            ray.kill(probe)
        reports = [
            NodeReport(
                name=self._names[node_id],
                address=node["NodeManagerAddress"],
                resources={
                    kind: node["Resources"][kind]
                    for kind in ("CPU", "GPU")
                    if kind in node["Resources"]
                },
                facts=facts.get(node_id),
                services=services.get(node_id),
                clock=clocks.get(node_id),
                problem=self._problems.get(node_id, ""),
            )
            for node_id, node in self._nodes.items()
        ]
        reports.sort(key=lambda report: report.name)
        return ClusterReport(tuple(reports), self._gone, collect_versions(), all_reduce)

    def _start_probe(self, node_id: str, num_gpus: int = 0) -> Any:
        on_node = NodeAffinitySchedulingStrategy(node_id, soft=False)
        actor: Any = ray.remote(NodeProbe)
        # In threads: a storage that does not answer must not keep the other calls waiting.
        options = {"num_cpus": 0, "num_gpus": num_gpus, "max_concurrency": 4}
        return actor.options(scheduling_strategy=on_node, **options).remote()

    def _ask(
        self, probes: Mapping[str, Any], question: Callable[[str, Any], Any], what: str
    ) -> dict[str, Any]:
        """Return the answers that come in time; note a problem of the other nodes."""
        asked = {question(node_id, probe): node_id for node_id, probe in probes.items()}
        if not asked:
            return {}
        ready, late = ray.wait(list(asked), num_returns=len(asked), timeout=self._limit_s)
        problems = dict.fromkeys(late, f"{what} gave no answer within {self._limit_s:g} s")
        answers = {}
        for reference in ready:
            try:
                answers[asked[reference]] = ray.get(reference, timeout=self._limit_s)
            except ray.exceptions.RayError as error:
                problems[reference] = f"{what} failed: {_describe_error(error)}"
        for reference, problem in problems.items():
            self._problems.setdefault(asked[reference], problem)
        return answers

    def _compare_clocks(self, probes: Mapping[str, Any]) -> dict[str, ClockOffset]:
        """Compare clocks, one node after the other, so that no answer waits for another."""
        clocks = {}
        for node_id, probe in probes.items():
            samples = []
            try:
                for _ in range(CLOCK_SAMPLES):
                    asked = time.time()
                    remote = ray.get(probe.clock.remote(), timeout=self._limit_s)
                    samples.append((asked, remote, time.time()))
            except ray.exceptions.RayError as error:
                self._problems.setdefault(node_id, f"its clock: {_describe_error(error)}")
            else:
                clocks[node_id] = estimate_clock_offset(samples)
        return clocks

    def _probe_services(
        self, probes: Mapping[str, Any], tracking_uri: str, storage: str, shown: tuple[str, str]
    ) -> dict[str, ServiceFacts]:
        prefix, data = f"doctor-{secrets.token_hex(8)}", secrets.token_bytes(16)
        addresses = ServiceAddresses(tracking_uri, storage, *shown, f"{prefix}-driver", data)
        keys = {node_id: f"{prefix}-{number}" for number, node_id in enumerate(probes)}
        with _marker_in_storage(addresses, list(keys.values())):
            return self._ask(
                probes,
                lambda node_id, probe: probe.services.remote(addresses, keys[node_id]),
                "asking MLflow and the storage",
            )

    def _time_all_reduce(self, probes: Mapping[str, Any], with_gpus: set[str]) -> AllReduce | None:
        """Time all-reduces between the nodes that have GPUs, if there are two; else between all."""
        ranks, backend = probes, "gloo"
        gpu_nodes = sorted(with_gpus & probes.keys())
        if len(gpu_nodes) > 1:  # each with a GPU that no run uses
            ranks = {node_id: self._start_probe(node_id, 1) for node_id in gpu_nodes}
            backend = "nccl"
        if len(ranks) < 2:
            return None
        nodes = tuple(self._names[node_id] for node_id in ranks)
        try:
            first, *_ = ranks.values()
            served = first.serve_store.remote(len(ranks), self._limit_s)
            store = ray.get(served, timeout=self._limit_s)
            calls = [
                probe.all_reduce.remote(store, rank, len(ranks), backend, self._limit_s)
                for rank, probe in enumerate(ranks.values())
            ]
            seconds = ray.get(calls, timeout=2 * self._limit_s)
        except ray.exceptions.GetTimeoutError:
            problem = f"not done within {2 * self._limit_s:g} s"
            if backend == "nccl":
                problem += ", or no GPU was free"
            return AllReduce(backend, nodes, problem=problem)
        except ray.exceptions.RayError as error:
            return AllReduce(backend, nodes, problem=_describe_error(error))
        finally:
            if backend == "nccl":
                for probe in ranks.values():
                    ray.kill(probe)
        slowest = {
            size: list(map(max, zip(*(rank[size] for rank in seconds), strict=True)))
            for size in REPETITIONS
        }
        return AllReduce(backend, nodes, slowest)


@contextlib.contextmanager
def _marker_in_storage(addresses: ServiceAddresses, keys: Sequence[str]) -> Iterator[None]:
    """Keep the driver's object in the storage within the block; then delete all probe objects.

    Also those of a node that was lost meanwhile. The nodes report a storage that cannot be used.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OrchestratorError):
            storage = open_storage(addresses.storage)
            stack.enter_context(remove_new_folders(storage))
            storage.put(addresses.marker, addresses.marker_data)
        try:
            yield
        finally:
            with contextlib.suppress(OrchestratorError):
                for key in (addresses.marker, *keys):
                    open_storage(addresses.storage).delete(key)


def _unique_names(nodes: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Name each node by its host, and its id where several nodes share the host."""
    hosts = {node_id: node["NodeManagerHostname"] for node_id, node in nodes.items()}
    shared = {host for host in hosts.values() if list(hosts.values()).count(host) > 1}
    return {
        node_id: f"{host}/{node_id[:6]}" if host in shared else host
        for node_id, host in hosts.items()
    }


def _describe_error(error: Exception) -> str:
    """Describe an error on a node without Ray's traceback."""
    if isinstance(error, ray.exceptions.GetTimeoutError):
        return "no answer in time"
    if isinstance(error, ray.exceptions.RayActorError) and not error.actor_init_failed:
        return f"its process or its node is gone ({type(error).__name__})"
    cause = getattr(error, "cause", None)
    if not isinstance(cause, Exception):
        return last_line(error)
    return f"{type(cause).__name__}: {cause}".strip().splitlines()[-1].strip()

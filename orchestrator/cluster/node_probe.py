"""A look at every node of the cluster, and at what is between them; nothing waits without end."""

import contextlib
import secrets
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import PurePath
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.cluster.ray_map import connected
from orchestrator.diagnostics.doctor import no_new_folders
from orchestrator.diagnostics.node_facts import (
    NodeFacts,
    Places,
    Services,
    all_versions,
    node_facts,
    services,
)
from orchestrator.diagnostics.node_report import (
    BANDWIDTH_BYTES,
    LATENCY_BYTES,
    AllReduce,
    Checkup,
    Clock,
    NodeReport,
    clock_of,
)
from orchestrator.errors import OrchestratorError
from orchestrator.storage.open import open_storage

LIMIT_S = 60.0
"""The longest that each part of the checkup may take: a process that starts imports torch."""
OBJECT_BYTES = 8 << 20
CLOCK_SAMPLES = 9
WARM_UPS = 3
REPETITIONS = {LATENCY_BYTES: 50, BANDWIDTH_BYTES: 10}


class Examiner:
    """A process on one node that answers questions about it."""

    def facts(self, folders: Sequence[str], ray_gpus: int) -> NodeFacts:
        """See ``node_facts``."""
        return node_facts(folders, ray_gpus)

    def clock(self) -> float:
        """What time it is there."""
        return time.time()

    def services(self, places: Places, key: str) -> Services:
        """See ``orchestrator.diagnostics.node_facts.services``."""
        return services(places, key, OBJECT_BYTES)

    def meeting_place(self) -> str:
        """An address at which this process can be rank 0."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return f"{ray.util.get_node_ip_address()}:{probe.getsockname()[1]}"

    def all_reduce(
        self, address: str, rank: int, world_size: int, backend: str, limit_s: float
    ) -> dict[int, list[float]]:
        """Seconds of each sum over all ranks, by size in bytes.

        Raises RuntimeError if the ranks do not meet, or a sum is wrong.
        """
        import torch
        import torch.distributed as dist

        device = torch.device("cuda" if backend == "nccl" else "cpu")
        wait: Any = torch.cuda.synchronize if backend == "nccl" else lambda: None
        meet: Any = dist.init_process_group
        meet(
            backend,
            init_method=f"tcp://{address}",
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=limit_s),
        )
        seconds: dict[int, list[float]] = {}
        for size, repetitions in REPETITIONS.items():
            tensor = torch.empty(size // 4, device=device)
            taken = []
            for _ in range(WARM_UPS + repetitions):
                tensor.fill_(1)
                wait()
                start = time.perf_counter()
                dist.all_reduce(tensor)
                wait()
                taken.append(time.perf_counter() - start)
            if not bool((tensor == world_size).all()):
                raise RuntimeError(f"a sum of {world_size} ones came out wrong")
            seconds[size] = taken[WARM_UPS:]
        leave: Any = dist.destroy_process_group
        leave()
        return seconds


def examine(
    tracking_uri: str, storage: str, shown: tuple[str, str], limit_s: float = LIMIT_S
) -> Checkup:
    """Ask every node of the cluster that RAY_ADDRESS names, and measure between them.

    Args:
        tracking_uri: of the MLflow that nodes are to reach.
        storage: where each node writes, reads and deletes an object of 8 MiB, all at once.
        shown: how to print these two.
        limit_s: seconds for each of the parts; what has not come by then is a problem of the node.

    Raises:
        EnvironmentProblem: the cluster is out of reach.
    """
    with connected("ask someone who runs it for its address"):
        return _Examination(limit_s).carry_out(tracking_uri, storage, shown)


class _Examination:
    """One checkup: an examiner on each node, and what they have answered."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._problems: dict[str, str] = {}
        """By node id, the first one."""
        nodes = ray.nodes()
        self._nodes = {node["NodeID"]: node for node in nodes if node["Alive"]}
        alive = {node["NodeManagerAddress"] for node in self._nodes.values()}
        gone = {node["NodeManagerAddress"] for node in nodes if not node["Alive"]}
        self._gone = tuple(sorted(gone - alive))
        self._examiners = {node_id: self._examiner(node_id) for node_id in self._nodes}

    def carry_out(self, tracking_uri: str, storage: str, shown: tuple[str, str]) -> Checkup:
        facts: dict[str, NodeFacts] = self._ask(
            self._examiners,
            lambda node_id, examiner: examiner.facts.remote(
                [_ray_folder(self._nodes[node_id]), tempfile.gettempdir()],
                int(self._nodes[node_id]["Resources"].get("GPU", 0)),
            ),
            "its process",
        )
        answering = {node_id: self._examiners[node_id] for node_id in facts}
        clocks = self._clocks(answering)
        reached = self._services(answering, tracking_uri, storage, shown)
        names = self._names()
        all_reduce = self._all_reduce(
            {node_id: examiner for node_id, examiner in answering.items() if node_id in clocks},
            {node_id for node_id in facts if facts[node_id].gpus},
            names,
        )
        for examiner in self._examiners.values():
            ray.kill(examiner)
        reports = [
            NodeReport(
                name=names[node_id],
                address=node["NodeManagerAddress"],
                resources={
                    kind: node["Resources"][kind]
                    for kind in ("CPU", "GPU")
                    if kind in node["Resources"]
                },
                facts=facts.get(node_id),
                services=reached.get(node_id),
                clock=clocks.get(node_id),
                problem=self._problems.get(node_id, ""),
            )
            for node_id, node in self._nodes.items()
        ]
        reports.sort(key=lambda report: report.name)
        return Checkup(tuple(reports), self._gone, all_versions(), all_reduce)

    def _examiner(self, node_id: str, num_gpus: int = 0) -> Any:
        there = NodeAffinitySchedulingStrategy(node_id, soft=False)
        actor: Any = ray.remote(Examiner)
        # In threads: a storage that does not answer must not keep the others waiting.
        options = {"num_cpus": 0, "num_gpus": num_gpus, "max_concurrency": 4}
        return actor.options(scheduling_strategy=there, **options).remote()

    def _names(self) -> dict[str, str]:
        hosts = {node_id: node["NodeManagerHostname"] for node_id, node in self._nodes.items()}
        several = {host for host in hosts.values() if list(hosts.values()).count(host) > 1}
        return {
            node_id: f"{host}/{node_id[:6]}" if host in several else host
            for node_id, host in hosts.items()
        }

    def _ask(
        self, of: Mapping[str, Any], question: Callable[[str, Any], Any], what: str
    ) -> dict[str, Any]:
        """The answers of those that gave one in time; of the others the problem is kept."""
        asked = {question(node_id, examiner): node_id for node_id, examiner in of.items()}
        if not asked:
            return {}
        ready, late = ray.wait(list(asked), num_returns=len(asked), timeout=self._limit_s)
        answers = {}
        for reference in ready:
            try:
                answers[asked[reference]] = ray.get(reference, timeout=self._limit_s)
            except ray.exceptions.RayError as error:
                self._problems.setdefault(asked[reference], f"{what} failed: {last_words(error)}")
        for reference in late:
            told = f"{what} gave no answer within {self._limit_s:g} s"
            self._problems.setdefault(asked[reference], told)
        return answers

    def _clocks(self, of: Mapping[str, Any]) -> dict[str, Clock]:
        """One after the other, lest the answers wait for each other here."""
        clocks = {}
        for node_id, examiner in of.items():
            samples = []
            try:
                for _ in range(CLOCK_SAMPLES):
                    asked = time.time()
                    there = ray.get(examiner.clock.remote(), timeout=self._limit_s)
                    samples.append((asked, there, time.time()))
            except ray.exceptions.RayError as error:
                self._problems.setdefault(node_id, f"its clock: {last_words(error)}")
            else:
                clocks[node_id] = clock_of(samples)
        return clocks

    def _services(
        self, of: Mapping[str, Any], tracking_uri: str, storage: str, shown: tuple[str, str]
    ) -> dict[str, Services]:
        prefix, data = f"doctor-{secrets.token_hex(8)}", secrets.token_bytes(16)
        places = Places(tracking_uri, storage, *shown, f"{prefix}-driver", data)
        keys = {node_id: f"{prefix}-{number}" for number, node_id in enumerate(of)}
        with _marked(places, list(keys.values())):
            return self._ask(
                of,
                lambda node_id, examiner: examiner.services.remote(places, keys[node_id]),
                "asking MLflow and the storage",
            )

    def _all_reduce(
        self, of: Mapping[str, Any], with_gpus: set[str], names: Mapping[str, str]
    ) -> AllReduce | None:
        """Between the nodes that have GPUs, if there are two; else between all."""
        gpu_nodes = sorted(with_gpus & of.keys())
        backend = "nccl" if len(gpu_nodes) > 1 else "gloo"
        ranks = dict(of)
        if backend == "nccl":  # each with a GPU that no training has
            ranks = {node_id: self._examiner(node_id, 1) for node_id in gpu_nodes}
        if len(ranks) < 2:
            return None
        nodes = tuple(names[node_id] for node_id in ranks)
        try:
            seconds = self._summed(ranks, backend)
        except ray.exceptions.GetTimeoutError:
            why = f"not done within {2 * self._limit_s:g} s"
            if backend == "nccl":
                why += ", or no GPU was free"
            return AllReduce(backend, nodes, problem=why)
        except ray.exceptions.RayError as error:
            return AllReduce(backend, nodes, problem=last_words(error))
        finally:
            if backend == "nccl":
                for examiner in ranks.values():
                    ray.kill(examiner)
        slowest = {
            size: [max(taken) for taken in zip(*(rank[size] for rank in seconds), strict=True)]
            for size in REPETITIONS
        }
        return AllReduce(backend, nodes, slowest)

    def _summed(self, ranks: Mapping[str, Any], backend: str) -> list[dict[int, list[float]]]:
        first = next(iter(ranks.values()))
        address = ray.get(first.meeting_place.remote(), timeout=self._limit_s)
        return ray.get(
            [
                examiner.all_reduce.remote(address, rank, len(ranks), backend, self._limit_s)
                for rank, examiner in enumerate(ranks.values())
            ],
            timeout=2 * self._limit_s,
        )


@contextlib.contextmanager
def _marked(places: Places, keys: Sequence[str]) -> Iterator[None]:
    """The driver's object is in the storage within the block, and after it nothing is.

    Also what a node has left that was ended meanwhile. A storage that cannot be used is the
    nodes' to tell of.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OrchestratorError):
            storage = open_storage(places.storage)
            stack.enter_context(no_new_folders(storage))
            storage.put(places.marker, places.marker_data)
        try:
            yield
        finally:
            with contextlib.suppress(OrchestratorError):
                for key in (places.marker, *keys):
                    open_storage(places.storage).delete(key)


def _ray_folder(node: Mapping[str, Any]) -> str:
    """The folder in which Ray keeps its files on ``node``: it holds session_*/sockets/NAME."""
    return str(PurePath(node["ObjectStoreSocketName"]).parents[2])


def last_words(error: Exception) -> str:
    """The end of what Ray says of an error on a node: the error itself and not the way there."""
    if isinstance(error, ray.exceptions.GetTimeoutError):
        return "no answer in time"
    if isinstance(error, ray.exceptions.RayActorError):
        return f"its process or its machine is gone ({type(error).__name__})"
    cause = getattr(error, "cause", None)
    text = f"{type(cause).__name__}: {cause}" if isinstance(cause, Exception) else str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__

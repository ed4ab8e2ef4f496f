"""Report of a cluster's nodes and network, before it is evaluated."""

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from orchestrator.diagnostics.node_facts import NodeFacts, ServiceFacts

LATENCY_BYTES = 4 << 10
BANDWIDTH_BYTES = 16 << 20


@dataclass(frozen=True)
class ClockOffset:
    """Offset of a node's clock from the driver's."""

    offset_s: float
    """Positive if it is ahead."""
    error_s: float
    """Half the round trip, which bounds the error of ``offset_s``."""


def estimate_clock_offset(samples: Sequence[tuple[float, float, float]]) -> ClockOffset:
    """Estimate the offset by the sample with the shortest round trip, as NTP does.

    Args:
        samples: (driver's time of the request, node's time, driver's time of the answer).
    """
    sent, remote, received = min(samples, key=lambda sample: sample[2] - sample[0])
    return ClockOffset(remote - (sent + received) / 2, (received - sent) / 2)


@dataclass(frozen=True)
class NodeReport:
    """One node of the cluster."""

    name: str
    """Host name, with the first digits of Ray's node id where several nodes share it."""
    address: str
    resources: Mapping[str, float] = field(default_factory=dict)
    """CPUs and GPUs that Ray schedules there."""
    facts: NodeFacts | None = None
    services: ServiceFacts | None = None
    clock: ClockOffset | None = None
    problem: str = ""
    """Why one of the fields above is missing."""


@dataclass(frozen=True)
class AllReduce:
    """Timed all-reduce over one process on each of several nodes."""

    backend: str
    """gloo or nccl."""
    nodes: tuple[str, ...]
    seconds: Mapping[int, Sequence[float]] = field(default_factory=dict)
    """Seconds of each repetition on the slowest rank, by size in bytes."""
    problem: str = ""
    """Why nothing was measured."""

    @property
    def latency_s(self) -> float:
        """Median seconds of an all-reduce of 4 KiB."""
        return statistics.median(self.seconds[LATENCY_BYTES])

    @property
    def bandwidth(self) -> float:
        """Bus bandwidth (nccl-tests): bytes/s that each node sends in the median 16 MiB all-reduce.

        A ring sends 2 (n - 1) / n times the size from each of n nodes.
        """
        n = len(self.nodes)
        return 2 * (n - 1) / n * BANDWIDTH_BYTES / statistics.median(self.seconds[BANDWIDTH_BYTES])

    def estimate_s(self, num_bytes: int) -> float:
        """Estimate the seconds of an all-reduce of ``num_bytes``."""
        per_byte = statistics.median(self.seconds[BANDWIDTH_BYTES]) / BANDWIDTH_BYTES
        return self.latency_s + num_bytes * per_byte


@dataclass(frozen=True)
class ClusterReport:
    """All that was found out about a cluster."""

    nodes: tuple[NodeReport, ...]
    lost: tuple[str, ...]
    """Addresses of nodes that have left the cluster."""
    driver_versions: Mapping[str, str]
    all_reduce: AllReduce | None
    """None for fewer than two nodes."""

    def to_json(self) -> dict[str, Any]:
        """Convert to plain data."""
        plain: dict[str, Any] = asdict(self)
        if (sums := self.all_reduce) is not None and sums.seconds:
            plain["all_reduce"]["latency_s"] = sums.latency_s
            plain["all_reduce"]["bandwidth_bytes_per_s"] = sums.bandwidth
        return plain


@dataclass(frozen=True)
class ClusterRequirements:
    """Requirements of a job; the defaults require nothing."""

    resources: Mapping[str, float] = field(default_factory=dict)
    """CPUs and GPUs of all workers together."""
    gradient_bytes: int = 0
    """Bytes of gradients that each step averages."""
    local_tracking: bool = False
    """Whether the tracking URI is a file on one machine."""


def names_by_value(values: Mapping[str, str]) -> dict[str, list[str]]:
    """Group names by their value."""
    names: dict[str, list[str]] = defaultdict(list)
    for name, value in values.items():
        names[value].append(name)
    return dict(names)


def describe_by_value(names: Mapping[str, list[str]]) -> str:
    """Format values with the nodes that have them; a single value without its nodes."""
    if len(names) == 1:
        return next(iter(names))
    return ", ".join(f"{value} on {' and '.join(nodes)}" for value, nodes in names.items())

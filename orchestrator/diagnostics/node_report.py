"""What was found on the nodes of a cluster and between them, before anyone judges it."""

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from orchestrator.diagnostics.node_facts import NodeFacts, Services

LATENCY_BYTES = 4 << 10
BANDWIDTH_BYTES = 16 << 20


@dataclass(frozen=True)
class Clock:
    """How far a machine's clock is from the driver's."""

    offset_s: float
    """Positive where it is ahead."""
    error_s: float
    """Half the round trip: the true offset is not further than that from ``offset_s``."""


def clock_of(samples: Sequence[tuple[float, float, float]]) -> Clock:
    """The offset by the sample with the shortest round trip, as NTP has it.

    Args:
        samples: of each the driver's clock when it asked, the node's when it answered, and the
            driver's when the answer was there.
    """
    asked, there, answered = min(samples, key=lambda sample: sample[2] - sample[0])
    return Clock(there - (asked + answered) / 2, (answered - asked) / 2)


@dataclass(frozen=True)
class NodeReport:
    """One node of the cluster."""

    name: str
    """Its host's name, with the first digits of Ray's id where several nodes have the same."""
    address: str
    resources: Mapping[str, float] = field(default_factory=dict)
    """CPUs and GPUs that Ray gives out there."""
    facts: NodeFacts | None = None
    services: Services | None = None
    clock: Clock | None = None
    problem: str = ""
    """Why something of these is missing."""


@dataclass(frozen=True)
class AllReduce:
    """Sums over one process on each of several nodes, as training makes them of gradients."""

    backend: str
    """gloo or nccl."""
    nodes: tuple[str, ...]
    seconds: Mapping[int, Sequence[float]] = field(default_factory=dict)
    """For each size in bytes, how long each repetition took on the slowest rank."""
    problem: str = ""
    """Why there are no numbers."""

    @property
    def latency_s(self) -> float:
        """Median seconds of a sum over 4 KiB."""
        return statistics.median(self.seconds[LATENCY_BYTES])

    @property
    def bandwidth(self) -> float:
        """Bytes a second that each node sends, and receives, in the median sum over 16 MiB.

        The best algorithm moves 2 (n - 1) / n times the size through each of n nodes; nccl-tests
        calls the same figure bus bandwidth.
        """
        n = len(self.nodes)
        moved = 2 * (n - 1) / n * BANDWIDTH_BYTES
        return moved / statistics.median(self.seconds[BANDWIDTH_BYTES])

    def estimate_s(self, num_bytes: int) -> float:
        """About how long the sum over so many bytes takes."""
        per_byte = statistics.median(self.seconds[BANDWIDTH_BYTES]) / BANDWIDTH_BYTES
        return self.latency_s + num_bytes * per_byte


@dataclass(frozen=True)
class Checkup:
    """All that was found."""

    nodes: tuple[NodeReport, ...]
    gone: tuple[str, ...]
    """Addresses of nodes that the cluster had and has not any more."""
    here: Mapping[str, str]
    """The driver's own versions."""
    all_reduce: AllReduce | None
    """None where there are not two nodes to measure between."""

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        plain: dict[str, Any] = asdict(self)
        if self.all_reduce is not None and self.all_reduce.seconds:
            plain["all_reduce"] |= {
                "latency_s": self.all_reduce.latency_s,
                "bandwidth_bytes_per_s": self.all_reduce.bandwidth,
            }
        return plain


@dataclass(frozen=True)
class Wanted:
    """What a job asks of the cluster; the defaults ask nothing."""

    resources: Mapping[str, float] = field(default_factory=dict)
    """CPUs and GPUs of all its workers together."""
    gradient_bytes: int = 0
    """Of all its networks, which are averaged at each step."""
    local_tracking: bool = False
    """Whether its MLflow is a file on one machine."""


def by_value(values: Mapping[str, str]) -> dict[str, list[str]]:
    """For each value the names that have it."""
    names: dict[str, list[str]] = defaultdict(list)
    for name, value in values.items():
        names[value].append(name)
    return dict(names)


def who(names: Mapping[str, list[str]]) -> str:
    """Values with the nodes that have them; one value alone."""
    if len(names) == 1:
        return next(iter(names))
    return ", ".join(f"{value} on {' and '.join(those)}" for value, those in names.items())

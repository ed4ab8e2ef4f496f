"""State of a running sweep, as the controller sends it to the driver."""

from dataclasses import dataclass, field

from orchestrator.sweeps.records import Sweep


@dataclass
class SweepStatus:
    """Status of a running sweep."""

    sweep: Sweep
    images_seen: dict[int, int]
    """Of the running trials, at their newest metrics, by trial number."""
    messages: list[str] = field(default_factory=list)
    """For the user, in the order of arrival."""
    stopped: bool = False
    """Whether someone stopped the sweep, which can be resumed."""
    unresponsive: list["TrialHeartbeat"] = field(default_factory=list)
    """Last heartbeats of trial processes that have sent none for too long; each comes once."""


@dataclass(frozen=True)
class TrialHeartbeat:
    """Heartbeat of the process that runs a trial."""

    number: int
    """Of the trial."""
    pid: int
    node_id: str
    arrived_at: float = 0.0
    """Time of arrival, by the controller's monotonic clock."""

"""How a sweep stands, as its driver sees it."""

from dataclasses import dataclass, field

from orchestrator.sweeps.records import Sweep


@dataclass
class Progress:
    """How a sweep stands, for the driver."""

    sweep: Sweep
    images_seen: dict[int, int]
    """Of the trainings that run, at the newest point."""
    notes: list[str] = field(default_factory=list)
    """What a person is to be told, in the order of arrival."""
    stopped: bool = False
    """Whether someone wants it to stop, and to go on another time."""
    silent: list["Pulse"] = field(default_factory=list)
    """Processes that train and give no sign of life any more; each is told of once."""


@dataclass(frozen=True)
class Pulse:
    """A sign of life of the process that does a training."""

    number: int
    pid: int
    node_id: str
    came: float = 0.0

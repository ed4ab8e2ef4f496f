"""Where workers leave what the driver must know. Imports little: its actor is to start at once."""

from dataclasses import dataclass, field
from typing import Any

from orchestrator.errors import OrchestratorError


@dataclass
class News:
    """What the workers have told, the newest of each kind."""

    report: dict[str, Any] | None = None
    """The fields of a Report, from rank 0."""
    outcome: dict[str, Any] | None = None
    """The fields of an Outcome, from rank 0, when training has ended."""
    error: OrchestratorError | None = None
    """What no retry can mend."""
    notes: list[str] = field(default_factory=list)
    """Warnings of all workers, in the order of arrival."""


class Mailbox:
    """An actor that outlives a restart of the workers."""

    def __init__(self) -> None:
        self.news = News()

    def tell(self, **news: Any) -> None:
        """Replace what was told before under the names of News."""
        for name, value in news.items():
            setattr(self.news, name, value)

    def note(self, text: str) -> None:
        """Keep a warning for the driver."""
        self.news.notes.append(text)

    def read(self) -> News:
        """All that has been told."""
        return self.news

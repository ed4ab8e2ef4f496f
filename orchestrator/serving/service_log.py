"""Log lines of a service: one JSON object each, on stderr, without credentials."""

import json
import sys
from datetime import UTC, datetime
from typing import Any

from orchestrator.redaction import mask


def log_event(event: str, **facts: Any) -> None:
    """Log ``event`` with its facts."""
    time = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    line = json.dumps({"time": time, "event": event, **facts}, default=str)
    sys.stderr.write(f"{mask(line)}\n")
    sys.stderr.flush()

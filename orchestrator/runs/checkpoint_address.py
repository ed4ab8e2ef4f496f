"""Find checkpoints by the address that a user gives."""

from orchestrator.errors import UsageError
from orchestrator.redaction import mask
from orchestrator.runs.checkpoints import Checkpoints
from orchestrator.storage.open import open_storage


def checkpoints_at(uri: str) -> tuple[Checkpoints, str | None]:
    """Open the checkpoints at ``uri``; return also the name if it is a single checkpoint.

    ``uri`` is STORAGE/RUN or STORAGE/RUN/checkpoints/NAME. Raises UsageError if there is none.
    """
    folder, name = uri.rstrip("/"), None
    parent, _, last = folder.rpartition("/")
    if parent.endswith("/checkpoints") or parent == "checkpoints":
        folder, name = parent, last
    root, run = folder.removesuffix("/checkpoints").rpartition("/")[::2]
    checkpoints = Checkpoints(open_storage(root or "."), f"{run}/checkpoints", "")
    found = checkpoints.listed()
    if not found or (name is not None and name not in found):
        raise UsageError(
            f"there are no checkpoints at {mask(uri)}; use a run's folder, such as runs/NAME, "
            "which `orchestrator run` prints when it starts"
        )
    return checkpoints, name

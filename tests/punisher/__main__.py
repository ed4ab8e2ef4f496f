"""A job, run calmly and run through drawn faults; both must end alike.

python -m tests.punisher JOB --faults 20 --seed 1 [--set a.b=value ...]

It trains in a temporary folder, on a Ray cluster of its own. The job must be long enough: each
fault waits for a checkpoint after the one before.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

from orchestrator.checkpoints import Checkpoints
from orchestrator.storage import open_storage
from orchestrator.verification.evidence import Evidence, compare
from orchestrator.verification.punisher import FAULTS, Punisher, command_of, drawn


def tell(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def trained(job: Path, settings: list[str], faults: list[str], folder: Path) -> Evidence:
    """What the job leaves in ``folder``."""
    places = [f"storage={folder}/runs", f"tracking.uri=sqlite:///{folder}/mlflow.db"]
    given = [*settings, *places, "register=null", f"cluster.max_failures={len(faults) + 1}"]
    folder.mkdir()
    storage = open_storage(str(folder / "runs"))
    pairs = [(name, FAULTS[name]) for name in faults]
    punisher = Punisher(command_of(job, given), storage, os.environ, pairs, tell)
    punisher.run()
    for name, seconds in zip(faults, punisher.recoveries_s, strict=True):
        tell(f"{name}: {seconds:.1f} s to the next checkpoint")
    (run,) = {key.partition("/")[0] for key in storage.list()}
    state = Checkpoints(storage, f"{run}/checkpoints", "").latest()
    assert state is not None
    return Evidence(state, {}, {})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("job", type=Path)
    parser.add_argument("--faults", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="punisher-", ignore_cleanup_errors=True) as temporary:
        folder = Path(temporary)
        calm = trained(options.job, options.set, [], folder / "calm")
        faults = drawn(options.faults, options.seed)
        hit = trained(options.job, options.set, faults, folder / "hit")
    differences = [check for check in compare(calm, hit) if check.difference]
    for check in differences:
        tell(f"{check.what}: {check.difference}")
    tell("the runs differ" if differences else f"bit for bit the same after {faults}")
    return bool(differences)


if __name__ == "__main__":
    sys.exit(main())

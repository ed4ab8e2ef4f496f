"""Measure checkpoints: size per job, and MB/s of copying, hashing, writing and reading."""

import hashlib
from pathlib import Path

import torch
from safetensors.torch import save as save_tensors

from benchmarks.scale.server import local_s3
from benchmarks.scale.timing import cpu_s, wall_s
from orchestrator.config.load import load_job
from orchestrator.diagnostics.plan import make_plan
from orchestrator.runs.checkpoint_reader import FILES
from orchestrator.runs.checkpoints import KEEP, Checkpoints
from orchestrator.storage.base import Storage
from orchestrator.storage.open import open_storage
from orchestrator.training.state import TrainState

JOBS = Path(__file__).parents[2] / "jobs"
MEASURED_BYTES = 64 << 20
ROUNDS = 3


def make_state(num_bytes: int) -> TrainState:
    """Make a state of about ``num_bytes``: weights, EMA weights and Adam's two moments."""
    each = torch.randn(num_bytes // 16)
    moments = {"p.0.exp_avg": each, "p.0.exp_avg_sq": each.clone()}
    return TrainState(1, {"w": each.clone()}, {"w": each.clone()}, moments, settings={"p": {}})


def save_one(storage: Storage, num_bytes: int) -> Checkpoints:
    """Save one checkpoint in ``storage`` and return its store."""
    checkpoints = Checkpoints(storage, "run/checkpoints", "")
    checkpoints.save(make_state(num_bytes))
    return checkpoints


def measure_checkpoints(folder: Path) -> dict[str, float]:
    """Measure the size of each job's checkpoint and the speed of each operation on one."""
    found: dict[str, float] = {"checkpoint_files": len(FILES) + 1, "checkpoints_kept": KEEP}
    for path in sorted(JOBS.glob("*.yaml")):
        plan = make_plan(load_job(path))
        if plan.sweep is None and plan.checkpoint_bytes is not None:
            found[f"checkpoint_bytes_{path.stem}"] = plan.checkpoint_bytes
            found[f"parameters_{path.stem}"] = sum(plan.parameters.values())
    state = make_state(MEASURED_BYTES)
    whole = save_tensors(state.networks)
    with local_s3(folder / "s3") as place:
        checkpoints = Checkpoints(open_storage(place), "run/checkpoints", "")
        checkpoints.save(state)  # opens the connection
        (name,) = checkpoints.names()
        mb = MEASURED_BYTES / 1e6
        found["copy_mb_per_cpu_s"] = mb / cpu_s(state.on_host)
        found["hash_mb_per_cpu_s"] = len(whole) / 1e6 / cpu_s(lambda: hashlib.sha256(whole))
        found["load_mb_per_cpu_s"] = mb / cpu_s(lambda: checkpoints.load(name), ROUNDS)
        found["load_mb_per_s"] = mb / wall_s(lambda: checkpoints.load(name), ROUNDS)
        found["save_mb_per_cpu_s"] = mb / cpu_s(lambda: checkpoints.save(state), ROUNDS)
        found["save_mb_per_s"] = mb / wall_s(lambda: checkpoints.save(state), ROUNDS)
    return found

"""A gradient that is not finite on one of two ranks: both act alike and stay equal."""

from pathlib import Path

import pytest
import torch

from orchestrator.config.job import GuardSection, Job, TrainSection
from orchestrator.errors import Collapsed
from orchestrator.models.base import GenerativeModel, ModelConfig, build_model
from orchestrator.models.parts.noise import uniform
from orchestrator.runs.async_checkpoints import AsyncCheckpointStore
from orchestrator.runs.checkpoints import Checkpoints
from orchestrator.storage.open import open_storage
from orchestrator.training import loop, trainer
from orchestrator.training.divergence import DivergenceGuard
from orchestrator.training.interfaces import Worker
from orchestrator.training.state import optimizer_tensors
from orchestrator.training.step import TrainingStep
from support.fakes import ListRecorder, small_job
from support.poison import PositionedStream, poison, skip_update
from support.ranks import WORLD_SIZE, on_two_ranks
from support.small import small_batch, small_config

MICROBATCHES = (None, 1)
BROKEN_STEP = 2


def four_steps(
    rank: int, microbatch: int | None, how: str
) -> tuple[dict[str, torch.Tensor], list[list[str]]]:
    """Weights and moments after four steps; the phases that were skipped in each."""
    now = {"step": -1}
    torch.manual_seed(0)
    model = build_model(small_config("pix2pix", dropout=0.0))
    if how == "nan" and rank == 1:
        poison(model, "generator", lambda: now["step"] == BROKEN_STEP)
    if how == "by hand":
        skip_update(model, "generator", lambda: now["step"] == BROKEN_STEP)
    phases = model.phases()
    section = TrainSection(images=16, batch_size=4, microbatch_size=microbatch)
    step = TrainingStep(model, phases, section, rank, WORLD_SIZE, DivergenceGuard(GuardSection()))
    skipped = []
    for number in range(4):
        now["step"] = number
        whole = small_batch(model.config, 4, first=4 * number)
        step(whole._each(lambda tensor: tensor[rank::WORLD_SIZE]), number, 0.0)
        skipped.append(sorted(step.skipped_phases))
    return {**model.state_dict(), **optimizer_tensors(phases)}, skipped


def diverging_job() -> Job:
    made = small_job({"dropout": 0.0}, log_every=4, checkpoint_every=4).model_dump(by_alias=True)
    return Job.model_validate({**made, "guard": {"max_consecutive_skips": 1}})


def train_diverging(rank: int, out: Path) -> None:
    """Two NaNs in a row on rank 1 only: both roll back to the checkpoint at 8 images."""
    stream, left = PositionedStream(rank=rank, world=WORLD_SIZE), {8, 12}
    models: list[GenerativeModel] = []

    def now() -> bool:
        found = stream.at in left
        left.discard(stream.at or 0)
        return found

    def build(config: ModelConfig) -> GenerativeModel:
        models.append(build_model(config))
        if rank == 1:
            poison(models[-1], "generator", now)
        return models[-1]

    trainer.build_model = build  # type: ignore[attr-defined]
    recorder = ListRecorder()
    kept = Checkpoints(open_storage(str(out / "runs")), "run/checkpoints", "")
    checkpoints = AsyncCheckpointStore(kept, retry_timeout_s=10)
    worker = Worker(recorder, checkpoints, torch.device("cpu"), rank, WORLD_SIZE)
    outcome = loop.train(diverging_job(), stream, worker)
    torch.save(
        (models[0].state_dict(), outcome.images_seen, recorder.points), out / f"diverging-{rank}.pt"
    )


def train_to_collapse(rank: int, out: Path) -> None:
    """The samples, which only rank 0 draws, are diverse once, then all alike."""
    left = [1.0, 0.0]

    def build(config: ModelConfig) -> GenerativeModel:
        model = build_model(config)

        def draw(seeds: torch.Tensor, condition: torch.Tensor | None) -> torch.Tensor:
            return left.pop(0) * uniform(seeds, "image", (3, 16, 16))

        model.draw = draw  # type: ignore[method-assign]
        return model

    trainer.build_model = build  # type: ignore[attr-defined]
    made = small_job(sample_every=4).model_dump(by_alias=True)
    model = small_config("dcgan").model_dump()
    job = Job.model_validate({**made, "model": model, "guard": {"collapse": "stop"}})
    kept = Checkpoints(open_storage(str(out / "runs")), "collapsed/checkpoints", "")
    store = AsyncCheckpointStore(kept, retry_timeout_s=10)
    worker = Worker(ListRecorder(), store, torch.device("cpu"), rank, WORLD_SIZE)
    with pytest.raises(Collapsed) as error:
        loop.train(job, PositionedStream(rank=rank, world=WORLD_SIZE), worker)
    (out / f"collapsed-{rank}.txt").write_text(str(error.value))


def run_worker(rank: int, out: Path) -> None:
    for microbatch in MICROBATCHES:
        for how in ("nan", "by hand"):
            torch.save(four_steps(rank, microbatch, how), out / f"{how}-{microbatch}-{rank}.pt")
    train_diverging(rank, out)
    train_to_collapse(rank, out)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("guard")
    on_two_ranks(run_worker, folder)
    return folder


@pytest.mark.parametrize("microbatch", MICROBATCHES)
def test_both_ranks_skip_the_same_update(microbatch: int | None, results: Path) -> None:
    first, second, hand = (
        torch.load(results / f"{name}.pt")
        for name in (f"nan-{microbatch}-0", f"nan-{microbatch}-1", f"by hand-{microbatch}-0")
    )
    assert first[1] == second[1] == [[], [], ["generator"], []]
    for other in (second, hand):
        assert first[0].keys() == other[0].keys()
        assert [k for k in first[0] if not torch.equal(first[0][k], other[0][k])] == []


def test_both_ranks_roll_back_together_and_end_with_the_same_weights(results: Path) -> None:
    first, second = (torch.load(results / f"diverging-{rank}.pt") for rank in range(WORLD_SIZE))
    assert first[1] == second[1] == 24
    assert [k for k in first[0] if not torch.equal(first[0][k], second[0][k])] == []
    backs = [(n, p["guard/rollbacks"]) for n, p in first[2] if "guard/rollbacks" in p]
    assert backs == [(4, 0), (8, 0), (12, 0), (12, 1), (16, 1), (20, 1), (24, 1)]
    assert second[2] == []


def test_both_ranks_stop_for_a_collapse_that_one_of_them_detects(results: Path) -> None:
    first, second = ((results / f"collapsed-{n}.txt").read_text() for n in range(WORLD_SIZE))
    assert first == second
    assert first.startswith("after 8 images samples/diversity fell to 0")

"""Mistakes that ruin GANs or data-parallel training are found before the first step."""

import copy
import logging
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import nn

from orchestrator.errors import UsageError
from orchestrator.models.base import (
    Batch,
    Clock,
    GenerativeModel,
    Loss,
    ModelConfig,
    Phase,
    build_model,
)
from orchestrator.training.interfaces import Worker
from orchestrator.training.preflight import Finding, find_problems, run_preflight
from support.fakes import ListRecorder, MemoryCheckpoints
from support.ranks import on_two_ranks
from support.small import small_batch, small_config


class ToyConfig(ModelConfig):
    """Config of a model that has no file."""


class Toy(GenerativeModel):
    """A linear layer that learns to reproduce its input, with an optional ``mistake``."""

    averaged = ("only/loss",)
    balance: torch.Tensor
    history: torch.Tensor

    def __init__(self, mistake: str = "") -> None:
        super().__init__()
        self.config = ToyConfig(name="toy", image_size=4, channels=1)
        self.mistake = mistake
        self.layer = nn.Linear(16, 16)
        self.second = nn.Linear(16, 16)
        if mistake == "untrained":
            self.forgotten = nn.Linear(3, 3)
        if mistake == "idle":
            self.layer.unused = nn.Parameter(torch.zeros(2))
        self.norm = nn.BatchNorm1d(16) if mistake == "batch norm" else nn.Identity()
        self.register_buffer("balance", torch.zeros(()))
        self.register_buffer("history", torch.zeros(5))

    def phases(self) -> tuple[Phase, ...]:
        modules = nn.ModuleList([self.layer, self.norm])
        phases = [Phase("only", modules, torch.optim.SGD(modules.parameters(), 0.1), self.loss)]
        adam = torch.optim.SGD(self.second.parameters(), 0.1)
        phases.append(Phase("second", self.second, adam, self.second_loss))
        return tuple(phases)

    def shared(self, batch: Batch) -> dict[str, torch.Tensor]:
        noise = torch.rand(len(batch), 16)
        if self.mistake == "same noise":
            noise = torch.rand(len(batch), 16, generator=torch.Generator().manual_seed(0))
        return {"code": self.second(noise)}

    def loss(self, batch: Batch, shared: Mapping[str, torch.Tensor]) -> Loss:
        code = shared["code"] if self.mistake == "no detach" else shared["code"].detach()
        given = self.norm(self.layer(batch.images.flatten(1)))
        value = ((given - batch.images.flatten(1)) ** 2).mean() + 0 * code.square().mean()
        if self.mistake == "own backward":
            value.backward(retain_graph=True)
        if self.mistake == "balance":
            self.balance.add_(value.detach())
        if self.mistake == "history":
            self.history.add_(value.detach())
        return Loss(value, {})

    def second_loss(self, batch: Batch, shared: Mapping[str, torch.Tensor]) -> Loss:
        return Loss(shared["code"].square().mean(), {})

    def after_step(
        self, means: Mapping[str, torch.Tensor], clock: Clock
    ) -> dict[str, torch.Tensor]:
        if self.mistake != "balance":
            self.balance.add_(means["only/loss"])
        return {}

    def draw(self, seeds: torch.Tensor, condition: torch.Tensor | None) -> torch.Tensor:
        raise NotImplementedError


def worker(rank: int = 0, world: int = 1) -> Worker:
    return Worker(ListRecorder(), MemoryCheckpoints(), torch.device("cpu"), rank, world)


def examples() -> Batch:
    images = torch.rand(8, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    return Batch(images, torch.arange(8))


def found(mistake: str, images_per_pass: int = 4, rank: int = 0, world: int = 1) -> list[Finding]:
    torch.manual_seed(0)
    model = Toy(mistake)
    if mistake == "different weights of norm" and rank:
        model.balance += 1
    return find_problems(model, model.phases(), examples(), images_per_pass, worker(rank, world))


def test_a_model_without_mistakes_has_no_findings() -> None:
    assert found("") == []


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        ("untrained", "forgotten.weight is in no phase's module, so nothing trains it"),
        ("idle", "phase only gives no gradient to 0.unused"),
        ("own backward", "the loss of phase only goes backward itself; return it instead"),
        ("no detach", "phase second goes backward through a graph that an earlier phase has used"),
    ],
)
def test_a_mistake_is_an_error_in_one_line(mistake: str, words: str) -> None:
    findings = found(mistake)
    assert [finding.severity for finding in findings] == ["error"] * len(findings)
    assert words in findings[0].message
    assert "\n" not in findings[0].message
    torch.manual_seed(0)
    model = Toy(mistake)
    with pytest.raises(UsageError, match=words[:40]):
        run_preflight(model, model.phases(), examples(), 4, worker())


def test_batch_norm_over_one_image_per_worker_is_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert found("batch norm", images_per_pass=4) == []
    small = build_model(small_config("pix2pix", norm="batch"))
    with caplog.at_level(logging.WARNING):
        run_preflight(small, small.phases(), small_batch(small.config, 8), 1, worker())
    assert len([r for r in caplog.records if "instance normalisation" in r.getMessage()]) == 1


@pytest.mark.parametrize(
    ("name", "images_per_pass", "warned"),
    [("batch", 4, 1), ("batch", 1, 0), ("instance", 4, 0)],
)
def test_a_generator_that_draws_with_other_statistics_than_it_trains_is_a_warning(
    name: str, images_per_pass: int, warned: int
) -> None:
    model = build_model(small_config("pix2pix", norm=name))
    given = small_batch(model.config, 8)
    messages = [
        f.message for f in find_problems(model, model.phases(), given, images_per_pass, worker())
    ]
    assert len([m for m in messages if "draws each image with its own" in m]) == warned
    running = build_model(small_config("dcgan"))
    given = small_batch(running.config, 8)
    assert find_problems(running, running.phases(), given, 4, worker()) == []


def test_a_preflight_leaves_no_trace() -> None:
    torch.manual_seed(0)
    model = Toy("batch norm")
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    run_preflight(model, model.phases(), examples(), 4, worker())
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert model.norm.num_batches_tracked == 0


TWO_RANKS = {
    "": (),
    "same noise": (("error", "all 2 ranks draw the same random numbers"),),
    "balance": (("error", "the buffer balance differs between ranks after one step"),),
    "history": (("warning", "the buffer history differs between ranks after one step"),),
    "different weights of norm": (
        ("error", "the buffer balance differs between ranks before the first step"),
    ),
    "batch norm": (),
}


def run_rank(rank: int, out: Path) -> None:
    results = {mistake: found(mistake, rank=rank, world=2) for mistake in TWO_RANKS}
    plain = {k: [(f.severity, f.message) for f in findings] for k, findings in results.items()}
    torch.save(plain, out / f"{rank}.pt")


@pytest.fixture(scope="module")
def findings_of_ranks(
    tmp_path_factory: pytest.TempPathFactory,
) -> list[dict[str, list[tuple[str, str]]]]:
    folder: Path = tmp_path_factory.mktemp("ranks")
    on_two_ranks(run_rank, folder)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("mistake", TWO_RANKS)
def test_differences_between_ranks_are_found_on_two_ranks(
    mistake: str, findings_of_ranks: list[dict[str, list[tuple[str, str]]]]
) -> None:
    assert findings_of_ranks[0][mistake] == findings_of_ranks[1][mistake]
    wanted, findings = TWO_RANKS[mistake], findings_of_ranks[0][mistake]
    assert [severity for severity, _ in findings] == [severity for severity, _ in wanted]
    for (_, message), (_, words) in zip(findings, wanted, strict=True):
        assert words in message

"""The time of one image alone, by a generator whose time is known."""

import platform
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from orchestrator.data.format.shard_index import open_set
from orchestrator.model_evaluation import latency
from orchestrator.model_evaluation.latency import (
    FEWEST,
    MOST,
    WARM_UP,
    describe_machine,
    measure_latency,
    num_cores,
)
from orchestrator.model_evaluation.reference_set import ReferenceSet
from orchestrator.models.base import GenerativeModel, build_model, model_names
from support.packed_sets import write_set
from support.small import small_config


def reference_for(model: GenerativeModel, folder: Path) -> ReferenceSet:
    write_set(folder, model.config, 3)
    return ReferenceSet(open_set(str(folder)), 1)


class Timed:
    """Takes a known time for each image instead of drawing it."""

    def __init__(self, model: GenerativeModel, slow: int, milliseconds: float) -> None:
        self.model, self.slow, self.milliseconds = model, slow, milliseconds
        self.batches: list[int] = []
        self.threads: set[int] = set()

    def draw(self, seeds: Tensor, condition: Tensor | None) -> Tensor:
        self.batches.append(len(seeds))
        self.threads.add(torch.get_num_threads())
        time.sleep(0.1 if len(self.batches) <= self.slow else self.milliseconds / 1000)
        size = self.model.config.image_size
        return torch.zeros(len(seeds), self.model.config.channels, size, size)


def test_it_is_the_median_of_single_images_after_the_warm_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build_model(small_config("dcgan"))
    # Not only the warm-up is slow, but also fewer than half of the timed images.
    timed = Timed(model, slow=WARM_UP + 5, milliseconds=10)
    monkeypatch.setattr(model, "draw", timed.draw)
    before = torch.get_num_threads()
    found = measure_latency(model, reference_for(model, tmp_path / "set"))
    assert (found.metric, found.n) == ("latency_ms", MOST)
    assert 10 <= found.value < 60
    assert found.details["slowest"] >= 100
    assert timed.batches == [1] * (WARM_UP + MOST)
    assert timed.threads == {num_cores()}
    assert torch.get_num_threads() == before
    assert describe_machine() == f"{platform.node()}, {num_cores()} cores"


def test_a_slow_model_is_timed_with_fewer_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency, "LONGEST_S", 0.0)
    model = build_model(small_config("dcgan"))
    assert measure_latency(model, reference_for(model, tmp_path / "set")).n == FEWEST


@pytest.mark.parametrize("name", model_names())
def test_every_model_gets_the_condition_that_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(latency, "MOST", 1)
    model = build_model(small_config(name))
    assert measure_latency(model, reference_for(model, tmp_path / "set")).value > 0

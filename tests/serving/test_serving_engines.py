"""Both engines draw what the model draws, and the larger batch is chosen where it is faster."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from orchestrator.errors import EnvironmentProblem, UsageError
from orchestrator.export.exported_sampler import to_levels
from orchestrator.models.base import model_names
from orchestrator.serving import engines
from orchestrator.serving.engines import EngineName, choose_batch, make_engine
from support.served import write_model
from support.small import condition_for, scattered_model, small_batch

SEEDS = torch.tensor([5, 0, 2**40, 8])


def inputs(config: Any, count: int) -> tuple[NDArray[Any], ...]:
    given = condition_for(config, small_batch(config, count))
    seeds = SEEDS.repeat(16)[:count].numpy()
    if given is None:
        return (seeds,)
    return seeds, (to_levels(given) if config.translates else given).numpy()


@pytest.mark.parametrize("name", model_names())
def test_pytorch_draws_the_levels_of_the_models_images(name: str, tmp_path: Path) -> None:
    model = scattered_model(name).eval()
    engine = make_engine(model, tmp_path, "torch", "cpu", lambda count: inputs(model.config, count))
    drawn = engine.draw(*inputs(model.config, 4))
    condition = condition_for(model.config, small_batch(model.config, 4))
    expected = ((model.sample(SEEDS, condition).double() + 1) * 127.5).clamp(0, 255)
    assert drawn.dtype == np.uint8
    assert np.abs(drawn - expected.numpy()).max() < 0.51


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pix2pix", "dcgan"])
def test_onnxruntime_draws_them_within_a_level(name: str, tmp_path: Path) -> None:
    model = scattered_model(name).eval()
    write_model(tmp_path / "model", model)

    def example(count: int) -> tuple[NDArray[Any], ...]:
        return inputs(model.config, count)

    with_onnx = make_engine(model, tmp_path / "model", "onnx", "cpu", example)
    with_torch = make_engine(model, tmp_path / "model", "torch", "cpu", example)
    assert with_onnx.name == "onnx"
    drawn, expected = (each.draw(*example(4)).astype(int) for each in (with_onnx, with_torch))
    assert np.abs(drawn - expected).max() <= 1


class Paced:
    """An engine that takes a given time for a batch."""

    name: EngineName = "torch"

    def __init__(self, clock: list[float], seconds: Callable[[int], float]) -> None:
        self.clock, self.seconds, self.sizes = clock, seconds, set[int]()

    def draw(self, *inputs: NDArray[Any]) -> NDArray[Any]:
        self.sizes.add(len(inputs[0]))
        self.clock[0] += self.seconds(len(inputs[0]))
        return inputs[0]


@pytest.mark.parametrize(
    ("seconds", "best"),
    [
        (lambda size: 0.001, 64),  # a batch of any size takes the same time
        (lambda size: 0.001 * size, 1),  # nothing is gained by a batch
        (lambda size: 0.001 * max(size, 8), 8),
        (lambda size: 0.05 * size**0.5, 8),  # 64 would be faster still, but one would wait 0.4 s
    ],
    ids=["constant", "proportional", "up to 8", "slow"],
)
def test_the_batch_is_the_smallest_that_is_about_fastest(
    seconds: Callable[[int], float], best: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    engine = Paced(clock, seconds)
    chosen = choose_batch(engine, lambda count: (np.zeros(count),))
    assert chosen == best
    assert chosen in engine.sizes, "a size that is used was warmed up"


def test_onnx_for_a_gpu_or_for_an_autoregressive_model_is_refused(tmp_path: Path) -> None:
    model = scattered_model("pixelcnn").eval()
    write_model(tmp_path / "model", model)

    def example(count: int) -> tuple[NDArray[Any], ...]:
        return inputs(model.config, count)

    with pytest.raises(UsageError, match="value by value"):
        make_engine(model, tmp_path / "model", "onnx", "cpu", example)
    with pytest.raises(UsageError, match="--device cpu"):
        make_engine(model, tmp_path / "model", "onnx", "cuda", example)
    assert make_engine(model, tmp_path / "model", "auto", "cpu", example).name == "torch"


def test_without_the_packages_auto_draws_with_pytorch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> None:
        raise EnvironmentProblem("needs the package onnx")

    monkeypatch.setattr(engines, "require_packages", missing)
    model = scattered_model("dcgan").eval()

    def example(count: int) -> tuple[NDArray[Any], ...]:
        return inputs(model.config, count)

    assert make_engine(model, tmp_path, "auto", "cpu", example).name == "torch"
    with pytest.raises(EnvironmentProblem, match="onnx"):
        make_engine(model, tmp_path, "onnx", "cpu", example)

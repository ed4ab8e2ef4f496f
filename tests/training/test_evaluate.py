"""Validation metrics, and the pictures that are drawn during training."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import sem
from torch import Generator, Tensor

from orchestrator.config.job import Job
from orchestrator.evaluation.kid import mmd2, random_features
from orchestrator.models.base import Batch, GenerativeModel, Input, ModelConfig, Phase
from orchestrator.models.parts.noise import uniform
from orchestrator.training.evaluate import Validation, draw_grids, validate
from orchestrator.training.interfaces import Worker
from support.fakes import ListRecorder, MemoryCheckpoints, small_job
from support.ranks import on_two_ranks


class PlainConfig(ModelConfig):
    """Config of a model that has no file."""

    classes: int = 0
    described: bool = False
    cubes: bool = False

    @property
    def translates(self) -> bool:
        return self.cubes

    @property
    def num_classes(self) -> int:
        return self.classes

    @property
    def takes(self) -> frozenset[Input]:
        return frozenset({"captions"} if self.described else ())


class Plain(GenerativeModel):
    """Samples noise with its condition, or black, in a corner."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.config = PlainConfig(name="plain", image_size=4, channels=1, **options)

    def phases(self) -> tuple[Phase, ...]:
        return ()

    def draw(self, seeds: Tensor, condition: Tensor | None) -> Tensor:
        images = uniform(seeds, "image", (1, 4, 4))
        images[:, 0, 0, 0] = -1 if condition is None else condition.reshape(len(seeds), -1)[:, 0]
        return images


class Coder(Plain):
    """Reconstructs half of each image; its likelihood is computed from pixels and noise."""

    def reconstruct(self, images: Tensor) -> Tensor:
        return images / 2

    def negative_log_likelihood(self, batch: Batch) -> dict[str, Tensor]:
        return {
            "nll_nats": batch.images.flatten(1).sum(1),
            "negative_elbo_nats": batch.normal("z", 4).sum(1),
        }

    def pictures(self, examples: Batch) -> dict[str, list[list[Tensor]]]:
        return {"halves": [list(examples.images[:2])]}


class Cuber(Plain):
    """Translates each pixel to its third power."""

    def __init__(self) -> None:
        super().__init__(cubes=True)

    def draw(self, seeds: Tensor, condition: Tensor | None) -> Tensor:
        assert condition is not None
        return condition**3


def held_out(first: int, stop: int, step: int = 1) -> Batch:
    numbers = torch.arange(first, stop, step)
    return Batch(numbers[:, None, None, None].expand(-1, 1, 4, 4) / 10 - 0.5, numbers)


def worker(rank: int = 0, world: int = 1) -> Worker:
    return Worker(ListRecorder(), MemoryCheckpoints(), torch.device("cpu"), rank, world)


def job(binarize: str | None = None) -> Job:
    plain = small_job()
    data = plain.data.model_copy(update={"binarize": binarize})
    return plain.model_copy(update={"data": data})


def test_likelihoods_are_means_over_images_in_nats_and_bits_per_dimension() -> None:
    batches = [
        held_out(0, 4),
        held_out(4, 5),
    ]  # not a mean of the batches' means
    measured = validate(Coder(), iter(batches), job(), worker()).means
    nats = sum((n / 10 - 0.5) * 16 for n in range(5)) / 5
    assert measured["validation/nll_nats"] == pytest.approx(nats)
    assert measured["validation/bits_per_dim"] == pytest.approx(nats / (16 * math.log(2)))
    assert measured["validation/l1"] == pytest.approx(
        sum(abs(n / 10 - 0.5) / 2 for n in range(5)) / 5
    )
    assert "validation/negative_elbo_bits_per_dim" in measured


def test_standard_errors_are_those_of_the_images_values() -> None:
    """Against scipy, whose `sem` takes the values themselves; the batches are uneven."""
    batches = [held_out(0, 4), held_out(4, 5), held_out(5, 11)]
    measured = validate(Coder(), iter(batches), job(), worker())
    values = [(number / 10 - 0.5) * 16 for number in range(11)]
    l1 = [abs(number / 10 - 0.5) / 2 for number in range(11)]
    errors = measured.standard_errors
    assert errors["validation/nll_nats"] == pytest.approx(sem(values), rel=1e-6)
    assert errors["validation/l1"] == pytest.approx(sem(l1), rel=1e-6)
    bits = sem(values) / (16 * math.log(2))
    assert errors["validation/bits_per_dim"] == pytest.approx(bits, rel=1e-6)
    translated = validate(Cuber(), iter([pairs(torch.arange(6))]), job(), worker())
    means = translated.means.keys() - {"validation/random_feature_mmd"}
    assert translated.standard_errors.keys() == means, "a distance of sets is no mean"


@pytest.mark.parametrize("how", ["dynamic", "fixed"])
def test_the_name_of_a_metric_on_binarized_images_says_how_they_were_binarized(how: str) -> None:
    measured = validate(Coder(), iter([held_out(0, 4)]), job(how), worker()).means
    assert f"validation/nll_nats_binarized_{how}" in measured
    assert f"validation/bits_per_dim_binarized_{how}" in measured
    assert "validation/nll_nats" not in measured


def test_a_model_that_only_samples_has_no_validation_metrics() -> None:
    assert validate(Plain(), iter([held_out(0, 4)]), job(), worker()).means == {}


def pairs(positions: Tensor) -> Batch:
    """Random images, each a function of its position, and inputs that resemble them."""
    seeds = [Generator().manual_seed(int(position)) for position in positions]
    images, inputs = (
        torch.stack([torch.rand(1, 4, 4, generator=seed) * 2 - 1 for seed in seeds])
        for _ in range(2)
    )
    return Batch(images, positions, images * 0.8 + inputs * 0.2)


def test_the_outputs_of_a_model_that_translates_are_compared_with_the_targets_as_sets() -> None:
    batch = pairs(torch.arange(9))
    assert batch.condition is not None
    measured = validate(Cuber(), iter(batch.split(4)), job(), worker()).means
    outputs, targets = (random_features(i) for i in (batch.condition**3, batch.images))
    assert measured["validation/random_feature_mmd"] == pytest.approx(float(mmd2(outputs, targets)))
    assert measured["validation/random_feature_mmd"] > 0.001
    same = Batch(batch.images, batch.positions, batch.images.sign() * batch.images.abs() ** (1 / 3))
    measured = validate(Cuber(), iter([same]), job(), worker()).means
    assert measured["validation/random_feature_mmd"] == pytest.approx(0, abs=1e-6)


def test_random_feature_mmd_compares_only_the_first_images_of_the_set() -> None:
    first, more = pairs(torch.arange(1020, 1024)), pairs(torch.arange(1024, 1030))
    both = pairs(torch.arange(1020, 1030))
    alone, all_of_them, in_one = (
        validate(Cuber(), iter(batches), job(), worker()).means
        for batches in ([first], [first, more], [both])
    )
    assert all_of_them["validation/random_feature_mmd"] == alone["validation/random_feature_mmd"]
    assert in_one["validation/random_feature_mmd"] == pytest.approx(
        alone["validation/random_feature_mmd"]
    )
    assert all_of_them["validation/l1"] != alone["validation/l1"]
    measured = validate(Cuber(), iter([more]), job(), worker()).means
    assert "validation/random_feature_mmd" not in measured


SIZES = (5, 4, 1)


def flat(found: Validation) -> dict[str, float]:
    """Means and standard errors together."""
    errors = {f"error of {name}": error for name, error in found.standard_errors.items()}
    return {**found.means, **errors}


def run_rank(rank: int, out: Path) -> None:
    results = {}
    for size in SIZES:
        share = [held_out(rank, size, 2)] if rank < size else []
        results[size] = flat(validate(Coder(), iter(share), job(), worker(rank, 2)))
    for size in SIZES:  # neighbours, as in the stream, in several batches
        mine = torch.arange(rank * size // 2, (rank + 1) * size // 2)
        share = [pairs(part) for part in mine.split(2) if len(part)]
        results[-size] = flat(validate(Cuber(), iter(share), job(), worker(rank, 2)))
    torch.save(results, out / f"{rank}.pt")


def test_two_workers_measure_the_same_as_one_even_if_their_shares_are_uneven_or_empty(
    tmp_path: Path,
) -> None:
    on_two_ranks(run_rank, tmp_path)
    on_two = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for size in SIZES:
        alone = flat(validate(Coder(), iter([held_out(0, size)]), job(), worker()))
        assert ("error of validation/l1" in alone) == (size > 1)
        assert on_two[0][size] == pytest.approx(alone)
        assert on_two[1][size] == on_two[0][size]
        alone = flat(validate(Cuber(), iter([pairs(torch.arange(size))]), job(), worker()))
        assert on_two[0][-size] == pytest.approx(alone, rel=1e-6)
        assert on_two[1][-size] == on_two[0][-size]
        assert ("validation/random_feature_mmd" in alone) == (size > 1)


def test_the_grid_of_a_model_with_many_classes_has_rows_for_some_from_all_over() -> None:
    rows = draw_grids(Plain(classes=1000), held_out(0, 2), job()).grids["samples"]
    found = [{int(image[0, 0, 0]) for image in row} for row in rows]
    assert [len(row) for row in rows] == [8] * 16
    assert found == [{1000 * number // 16} for number in range(16)]


def test_the_grid_of_a_model_with_classes_has_a_row_for_each_class() -> None:
    rows = draw_grids(Plain(classes=3), held_out(0, 2), job()).grids["samples"]
    assert [[int(image[0, 0, 0]) for image in row] for row in rows] == [[k] * 8 for k in range(3)]


def test_the_grid_of_a_model_with_captions_shows_the_real_image_before_its_samples() -> None:
    examples = held_out(0, 2)
    texts = torch.tensor([[65] * 256, [66] * 256], dtype=torch.uint8)
    rows = draw_grids(
        Plain(described=True), Batch(examples.images, examples.positions, captions=texts), job()
    ).grids["samples"]
    assert [len(row) for row in rows] == [8, 8]
    for row, real, letter in zip(rows, examples.images, (65, 66), strict=True):
        assert torch.equal(row[0], real)
        assert [int(image[0, 0, 0]) for image in row[1:]] == [letter] * 7


def test_every_grid_is_drawn_with_the_same_noise_and_models_may_add_pictures() -> None:
    model = Coder()
    first, again = (draw_grids(model, held_out(0, 3), job()).grids for _ in range(2))
    assert list(first) == ["samples", "reconstructions", "halves"]
    assert [len(row) for row in first["samples"]] == [8] * 8
    flat = [torch.stack([i for row in p["samples"] for i in row]) for p in (first, again)]
    assert torch.equal(*flat)
    originals, reconstructions = first["reconstructions"]
    for image, half in zip(originals, reconstructions, strict=True):
        assert torch.equal(image / 2, half)

"""The comparison of an exported model with the model, on exports that are broken on purpose."""

import pytest
import torch
from torch import Tensor

from orchestrator.errors import DataError
from orchestrator.export.exported_sampler import ExportedSampler
from orchestrator.export.parity import Draw, Parity, ParityFailed, measure_parity
from orchestrator.models.base import GenerativeModel, build_model
from support.small import small_config


@pytest.fixture(scope="module")
def model() -> GenerativeModel:
    """A translator that draws with dropout."""
    torch.manual_seed(0)
    return build_model(small_config("pix2pix", dropout=0.5))


def test_a_model_equals_itself_up_to_rounding(model: GenerativeModel) -> None:
    parity = measure_parity(model, model.sample)
    assert parity.holds
    assert 0 <= parity.difference < 1e-5
    assert measure_parity(model, ExportedSampler(model, "uint8"), "uint8").holds


def test_the_numbers_are_those_of_the_difference(model: GenerativeModel) -> None:
    """The oracle: an export that adds a known amount to one value of each image."""

    def shifted(seeds: Tensor, condition: Tensor | None) -> Tensor:
        images = model.sample(seeds, condition)
        images[:, 0, 0, 0] += 4 / 255
        return images

    parity = measure_parity(model, shifted)
    assert parity.difference == pytest.approx(4 / 255, abs=1e-6)
    assert parity.levels == 2
    # Of 64 + 1 + 2 + 5 images one value in 3 * 16 * 16; 8 more are compared with each other.
    assert parity.share == pytest.approx(72 / 80 / 768, rel=0.01)
    assert not parity.holds


def test_a_level_is_tolerated_in_a_thousandth_of_the_values(model: GenerativeModel) -> None:
    def changed(levels: int, every: int) -> Draw:
        def draw(seeds: Tensor, condition: Tensor | None) -> Tensor:
            images: Tensor = ExportedSampler(model, "uint8")(seeds, condition)
            flat = images.flatten(1)
            away = torch.where(flat < 128, levels, -levels).to(torch.uint8)
            flat[:, ::every] += away[:, ::every]
            return flat.view_as(images)

        return draw

    # 1 of 768 values is 0.13 %, of which 80 comparisons count 72: 0.117 %
    for levels, every, is_far in ((0, 1, False), (1, 768, True), (1, 700, True), (2, 768, True)):
        parity = measure_parity(model, changed(levels, every), "uint8")
        assert parity.levels == levels
        assert parity.holds != is_far
    assert Parity("uint8", 0, 1, 0.001).holds
    assert not Parity("uint8", 0, 2, 0.00001).holds


def test_an_image_that_depends_on_its_company_is_found(model: GenerativeModel) -> None:
    def normalised(seeds: Tensor, condition: Tensor | None) -> Tensor:
        images = model.sample(seeds, condition)
        return images - images.mean(0, keepdim=True) * 0.1 if len(seeds) < 64 else images

    assert not measure_parity(model, normalised).holds


def test_an_export_that_ignores_the_seed_or_draws_its_own_noise_is_found(
    model: GenerativeModel,
) -> None:
    still = measure_parity(model, lambda seeds, given: model.sample(seeds * 0, given))
    own = measure_parity(
        model, lambda seeds, given: model.sample(torch.randint_like(seeds, 9), given)
    )
    for parity in (still, own):
        assert not parity.holds
        assert parity.difference > 0.01


def test_a_difference_only_at_real_inputs_is_found(model: GenerativeModel) -> None:
    real = torch.ones(3, 3, 16, 16)

    def draw(seeds: Tensor, condition: Tensor | None) -> Tensor:
        assert condition is not None
        white = (condition == 1).flatten(1).all(1).float()[:, None, None, None]
        return model.sample(seeds, condition) - white * 0.1

    assert measure_parity(model, draw).holds
    assert measure_parity(model, draw, real=real).difference == pytest.approx(0.1, abs=1e-4)


def test_nan_is_never_within_the_limits(model: GenerativeModel) -> None:
    def draw(seeds: Tensor, condition: Tensor | None) -> Tensor:
        images = model.sample(seeds, condition)
        images[0, 0, 0, 0] = float("nan")
        return images

    assert not measure_parity(model, draw).holds


def test_what_fails_or_gives_something_else_is_told(model: GenerativeModel) -> None:
    def fixed_batch(seeds: Tensor, condition: Tensor | None) -> Tensor:
        if len(seeds) == 5:
            raise RuntimeError("Got invalid dimensions\nfor input")
        return model.sample(seeds, condition)

    with pytest.raises(ParityFailed, match="it fails at a batch of 5: Got invalid dimensions for"):
        measure_parity(model, fixed_batch)
    with pytest.raises(ParityFailed, match=r"it gives torch.float32 \(64, 3, 16\), expected"):
        measure_parity(model, lambda seeds, given: model.sample(seeds, given)[..., 0])


def test_a_model_that_draws_nan_is_no_reference() -> None:
    model = build_model(small_config("vae"))
    with torch.no_grad():
        next(iter(model.inference_module().parameters())).fill_(float("nan"))
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    with pytest.raises(DataError, match="values that are not finite"):
        measure_parity(model, model.sample)

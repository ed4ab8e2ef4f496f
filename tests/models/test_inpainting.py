"""The context encoder against its published sizes and a second, slow writing of its losses."""

import math

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from orchestrator.config.job import TrainSection
from orchestrator.models.base import Batch, build_model
from orchestrator.models.inpainting import Config, Model
from orchestrator.training.step import TrainingStep
from support.small import small_batch, small_config


def config(**options: object) -> Config:
    return Config.model_validate({"name": "inpainting", **options})


def small(**options: object) -> Model:
    torch.manual_seed(0)
    model = build_model(small_config("inpainting", **options))
    assert isinstance(model, Model)
    return model


def on_meta(**options: object) -> Model:
    with torch.device("meta"):
        return Model(config(**options))


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_networks_have_the_published_number_of_parameters() -> None:
    """71.1 and 2.77 million; layer by layer from the authors' table, 4x4 kernels everywhere."""
    model = on_meta()
    encoder = [(3, 64), (64, 64), (64, 128), (128, 256), (256, 512), (512, 4000)]
    decoder = [(4000, 512), (512, 256), (256, 128), (128, 64), (64, 3)]
    weights = sum(16 * a * b for a, b in encoder + decoder)
    norms = 2 * (64 + 128 + 256 + 512 + 4000 + 512 + 256 + 128 + 64)
    biases = 64 + 3
    assert count(model.generator) == weights + norms + biases == 71_124_611
    judge = [(3, 64), (64, 128), (128, 256), (256, 512), (512, 1)]
    weights = sum(16 * a * b for a, b in judge)
    assert count(model.discriminator) == weights + 2 * (128 + 256 + 512) + 64 + 1 == 2_765_633


def test_maps_shrink_to_one_code_and_grow_to_the_centre() -> None:
    model, shapes = on_meta(), []
    for layer in model.generator.children():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            layer.register_forward_hook(lambda *call: shapes.append(tuple(call[2].shape[1:3])))
    middle = model.generator(torch.empty(2, 3, 128, 128, device="meta"))
    down = [(64, 64), (64, 32), (128, 16), (256, 8), (512, 4), (4000, 1)]
    assert shapes == [*down, (512, 4), (256, 8), (128, 16), (64, 32), (3, 64)]
    assert model.discriminator(middle).shape == (2, 1, 1, 1)


@pytest.mark.parametrize("size", [32, 64, 256])
def test_other_sizes_predict_their_centre(size: int) -> None:
    model = on_meta(image_size=size, filters=4, bottleneck=8)
    middle = model.generator(torch.empty(2, 3, size, size, device="meta"))
    assert middle.shape == (2, 3, size // 2, size // 2)
    assert model.discriminator(middle).shape == (2, 1, 1, 1)


def test_losses_equal_the_formulas_in_float64() -> None:
    """At 32 px the centre is rows 8 to 23; with a known border of 4 the hole is 12 to 19."""
    model = small().double()
    batch = small_batch(model.config, 2)
    images = batch.images.double()
    batch = Batch(images, batch.positions)
    fake = model.shared(batch)["fake"].detach()
    total = 0.0
    for image in range(2):
        for channel in range(3):
            for row in range(16):
                for column in range(16):
                    real = images[image, channel, 8 + row, 8 + column].item()
                    known = not (4 <= row < 12 and 4 <= column < 12)
                    error = (fake[image, channel, row, column].item() - real) ** 2
                    total += (10 if known else 1) * error / (2 * 3 * 16 * 16)

    def probability(middles: torch.Tensor) -> torch.Tensor:
        return 1 / (1 + torch.exp(-model.discriminator(middles).detach()))

    judged, real_middles = probability(fake), images[:, :, 8:24, 8:24]
    got = model.generator_loss(batch, {"fake": fake})
    # the discriminator's logits pass through float32
    assert got.metrics["l2"].item() == pytest.approx(total, rel=1e-6)
    expected = 0.001 * -judged.log().mean().item() + 0.999 * total
    assert got.value.item() == pytest.approx(expected, rel=1e-6)
    by_hand = -probability(real_middles).log().mean() - (1 - judged).log().mean()
    value = model.discriminator_loss(batch, {"fake": fake}).value.item()
    assert value == pytest.approx(by_hand.item(), rel=1e-6)


def test_an_undecided_discriminator_costs_2_ln_2_and_the_generator_ln_2() -> None:
    model = small(adversarial_weight=1.0)
    for p in model.discriminator.parameters():
        nn.init.zeros_(p)
    batch = small_batch(model.config, 2)
    shared = model.shared(batch)
    loss = model.discriminator_loss(batch, shared).value.item()
    assert loss == pytest.approx(2 * math.log(2))
    assert model.generator_loss(batch, shared).value.item() == pytest.approx(math.log(2))


def test_the_hole_has_the_mean_colour_and_the_rest_is_the_image() -> None:
    """At 128 px the hole is the central 64 pixels without the known border of 4."""
    images = torch.rand(2, 3, 128, 128) * 2 - 1
    holed = Model(config(filters=1, bottleneck=1)).with_hole(images)
    colour = torch.tensor([117, 104, 123]) / 255 * 2 - 1
    inside = holed[:, :, 36:92, 36:92]
    torch.testing.assert_close(inside, colour[None, :, None, None].expand_as(inside))
    outside = torch.ones(128, 128, dtype=torch.bool)
    outside[36:92, 36:92] = False
    assert torch.equal(holed[:, :, outside], images[:, :, outside])


def test_nothing_in_the_hole_reaches_the_prediction() -> None:
    model = small()
    batch = small_batch(model.config, 2)
    images = batch.images.clone().requires_grad_()
    model.generator(model.with_hole(images)).sum().backward()
    assert images.grad is not None
    seen = images.grad.abs().sum((0, 1)) > 0
    inside = torch.zeros(32, 32, dtype=torch.bool)
    inside[12:20, 12:20] = True
    assert torch.equal(seen, ~inside)
    other = batch.images.clone()
    other[:, :, 12:20, 12:20] = math.nan
    given = [model.sample(torch.arange(len(x)), x) for x in (batch.images, other)]
    assert torch.equal(given[0], given[1])


def test_sampling_changes_the_hole_and_no_other_pixel() -> None:
    model = small()
    images = small_batch(model.config, 2).images
    kept = images.clone()
    filled = model.sample(torch.arange(len(images)), images)
    changed = (filled != images).all(1).all(0)
    inside = torch.zeros(32, 32, dtype=torch.bool)
    inside[12:20, 12:20] = True
    assert torch.equal(changed, inside)
    assert torch.equal(filled[:, :, ~inside], images[:, :, ~inside])
    assert torch.equal(images, kept)


def test_a_trained_generator_fills_the_hole_at_the_right_place() -> None:
    """After overfitting one image it returns that image, unlike with a shift by one pixel."""
    model = small(filters=16, bottleneck=32, adversarial_weight=0.0)
    row = torch.linspace(-0.9, 0.9, 32)
    image = torch.stack([row.expand(32, 32), row[:, None].expand(32, 32), torch.zeros(32, 32)])
    batch = Batch(
        image.repeat(2, 1, 1, 1) + torch.tensor([0.0, 0.05])[:, None, None, None], torch.arange(2)
    )
    step = TrainingStep(model, model.phases(), TrainSection(images=2, batch_size=2))
    for number in range(150):
        step(batch, number, 0.0)
    error = (model.sample(batch.positions, batch.images) - batch.images)[:, :, 12:20, 12:20]
    assert error.abs().mean() < 0.04  # one pixel is 0.058 in two channels


def test_sampling_uses_running_statistics_and_restores_the_mode() -> None:
    model = small()
    images = small_batch(model.config, 3).images
    together = model.sample(torch.arange(len(images)), images)
    alone = torch.cat([model.sample(torch.arange(1), image[None]) for image in images])
    torch.testing.assert_close(together, alone)
    assert all(module.training for module in model.modules())


def test_pictures_show_the_image_with_hole_filled_and_original() -> None:
    model = small()
    images = small_batch(model.config, 2).images
    rows = model.pictures(small_batch(model.config, 2))["holes"]
    filled = model.sample(torch.arange(len(images)), images)
    for index, row in enumerate(rows):
        expected = [model.with_hole(images)[index], filled[index], images[index]]
        torch.testing.assert_close(list(row), expected)


def test_the_generator_learns_ten_times_as_fast_as_the_discriminator() -> None:
    phases = small().phases()
    rates = [(phase.name, phase.optimizer.param_groups[0]["lr"]) for phase in phases]
    assert rates == [("discriminator", 2e-4), ("generator", 2e-3)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 100}, "must be a power of two, at least 32; use 64 or 128"),
        ({"image_size": 16}, "must be a power of two, at least 32; use 32 or 64"),
        (
            {"image_size": 32, "overlap": 8},
            "leaves no hole in images of image_size 32; use at most 7",
        ),
    ],
)
def test_impossible_options_are_rejected(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError) as error:
        config(**options)
    assert message in str(error.value)

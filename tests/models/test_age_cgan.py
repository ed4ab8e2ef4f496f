"""CAAE against the widths of its paper and a second, slow writing of its formulas."""

import math
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn import functional as F

from orchestrator.config.job import TrainSection
from orchestrator.models.age_cgan import Config, Model, total_variation
from orchestrator.models.base import Batch
from orchestrator.training.step import TrainingStep
from support.small import small_batch


def config(**options: object) -> Config:
    return Config.model_validate({"name": "age_cgan", **options})


def small(**options: object) -> Model:
    torch.manual_seed(0)
    defaults = {"image_size": 16, "classes": 3, "latent_size": 7, "filters": 4}
    return Model(config(**{**defaults, "discriminator_filters": 4, **options}))


def in_float64(model: Model, size: int = 4) -> Batch:
    model.double()
    batch = small_batch(model.config, size)
    return replace(batch, images=batch.images.double())


def shapes(network: nn.Module, *inputs: torch.Tensor) -> list[tuple[int, ...]]:
    """Return the output shapes of all layers with weights, in order, without the batch."""
    found: list[tuple[int, ...]] = []
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            layer.register_forward_hook(lambda _, x, y: found.append(tuple(y.shape[1:])))
    network(*inputs)
    return found


def test_networks_have_the_papers_widths_and_maps() -> None:
    with torch.device("meta"):
        model = Model(config())
        image, code, ages = torch.empty(2, 3, 128, 128), torch.empty(2, 50), torch.empty(2, 10)
    coders, judges = model.autoencoder, model.discriminators
    down = [(64, 64, 64), (128, 32, 32), (256, 16, 16), (512, 8, 8)]
    assert shapes(coders["encoder"], image) == [*down, (50,)]
    up = [(512, 16, 16), (256, 32, 32), (128, 64, 64), (64, 128, 128)]
    assert shapes(coders["generator"], code, ages) == [(1024 * 8 * 8,), *up, (3, 128, 128)]
    assert shapes(judges["code"], code) == [(64,), (32,), (16,), (1,)]
    down = [(16, 64, 64), (32, 32, 32), (64, 16, 16), (128, 8, 8)]
    assert shapes(judges["image"], image, ages) == [*down, (1024,), (1,)]
    kernels = {m.kernel_size for m in model.modules() if isinstance(m, nn.Conv2d)}
    assert kernels == {(5, 5)}
    # Layer by layer: weights and biases; the label is tiled 5 times to 50 numbers.
    dense = (100 + 1) * 1024 * 64
    deconvolutions = sum(25 * 2 * w * w + w for w in (512, 256, 128, 64)) + 25 * 64 * 3 + 3
    assert sum(p.numel() for p in coders["generator"].parameters()) == dense + deconvolutions


@pytest.mark.parametrize(("size", "smallest"), [(16, 4), (32, 4), (64, 4), (128, 8)])
def test_smaller_images_halve_four_times_but_not_below_four_pixels(
    size: int, smallest: int
) -> None:
    model = small(image_size=size)
    maps = shapes(model.autoencoder["encoder"], torch.zeros(1, 3, size, size))
    assert maps[-2][1:] == (smallest, smallest)
    assert model.sample(torch.arange(2)).shape == (2, 3, size, size)


def test_ages_reach_the_generator_tiled_and_coded_as_minus_and_plus_one() -> None:
    model, seen = small(), []
    dense = model.autoencoder.get_submodule("generator.layers.0")
    dense.register_forward_hook(lambda _, x, y: seen.append(x[0]))
    model.shared(Batch(torch.zeros(2, 3, 16, 16), torch.arange(2), labels=torch.tensor([2, 0])))
    assert seen[0][:, 7:].tolist() == [[-1, -1, 1] * 2, [1, -1, -1] * 2]


def test_ages_are_concatenated_as_maps_after_the_image_discriminators_first_layer() -> None:
    model, seen = small(), []
    second = model.discriminators.get_submodule("image.others.0")
    second.register_forward_hook(lambda _, x, y: seen.append(x[0]))
    labels = torch.tensor([2, 0])
    batch = Batch(torch.zeros(2, 3, 16, 16), torch.arange(2), labels=labels)
    model.discriminators_loss(batch, model.shared(batch))
    assert len(seen) == 2  # real images and reconstructions
    for x in seen:
        assert x.shape == (2, 4 + 3, 8, 8)
        code = torch.tensor([[-1.0, -1, 1], [1, -1, -1]])
        assert torch.equal(x[:, 4:], code[:, :, None, None].expand(2, 3, 8, 8))


def probabilities(logits: torch.Tensor) -> torch.Tensor:
    return 1 / (1 + torch.exp(-logits.double()))


@pytest.mark.parametrize("reconstruction", ["l1", "l2"])
def test_losses_equal_the_formulas_in_float64(reconstruction: str) -> None:
    weights = {"image_weight": 0.3, "code_weight": 0.7, "total_variation_weight": 0.2}
    model = small(reconstruction=reconstruction, **weights)
    batch = in_float64(model)
    shared = model.shared(batch)
    ages = torch.full((4, 3), -1.0).double()
    for row, label in enumerate(batch.labels):  # type: ignore[arg-type]
        ages[row, label] = 1
    z = model.autoencoder["encoder"](batch.images)
    y = model.autoencoder["generator"](z, ages)
    prior = (2 * batch.uniform("prior", 7) - 1).double()
    d_z, d_img = model.discriminators["code"], model.discriminators["image"]
    real, fake = probabilities(d_img(batch.images, ages)), probabilities(d_img(y, ages))
    code = probabilities(d_z(z))

    by_hand = -(
        probabilities(d_z(prior)).log().mean()
        + (1 - code).log().mean()
        + real.log().mean()
        + (1 - fake).log().mean()
    )
    found = model.discriminators_loss(batch, shared).value.item()
    assert found == pytest.approx(by_hand.item(), rel=1e-6)

    errors = batch.images - y
    distance = errors.abs().mean() if reconstruction == "l1" else (errors**2).mean()
    variation = (y[:, :, 1:] - y[:, :, :-1]).abs().mean()
    variation = variation + (y[:, :, :, 1:] - y[:, :, :, :-1]).abs().mean()
    by_hand = distance - 0.3 * fake.log().mean() - 0.7 * code.log().mean() + 0.2 * variation
    found = model.autoencoder_loss(batch, shared).value.item()
    assert found == pytest.approx(by_hand.item(), rel=1e-6)


def test_total_variation_of_stripes() -> None:
    """Alternating rows of -1 and 1 differ by 2 vertically and by 0 horizontally, and vice versa."""
    stripes = torch.tensor([-1.0, 1, -1, 1]).view(1, 1, 4, 1).expand(1, 1, 4, 4)
    assert total_variation(stripes) == 2
    assert total_variation(stripes.mT + stripes) == 4
    assert total_variation(torch.ones(1, 3, 4, 4)) == 0


def test_undecided_discriminators_cost_ln_2_per_term() -> None:
    model = small(image_weight=2.0, code_weight=3.0)
    for p in model.discriminators.parameters():
        nn.init.zeros_(p)
    batch = small_batch(model.config)
    shared = model.shared(batch)
    judged = model.discriminators_loss(batch, shared).value.item()
    assert judged == pytest.approx(4 * math.log(2))
    loss = model.autoencoder_loss(batch, shared)
    distance = F.l1_loss(shared["faces"], batch.images).item()
    assert loss.value.item() == pytest.approx(distance + 5 * math.log(2))


def test_the_prior_is_uniform_and_the_same_for_a_sample_in_any_batch() -> None:
    model, seen = small(), []
    model.discriminators["code"].register_forward_hook(lambda _, x, y: seen.append(x[0]))
    count = 2000
    shared = {"codes": torch.zeros(count, 7), "faces": torch.zeros(count, 3, 16, 16)}
    labels = torch.zeros(count, dtype=torch.int64)
    batch = Batch(shared["faces"], torch.arange(count), labels=labels)
    model.discriminators_loss(batch, shared)
    part = batch.split(500)[1]
    model.discriminators_loss(part, {name: x[:500] for name, x in shared.items()})
    whole, of_part = seen[0], seen[2]
    assert torch.equal(whole[500:1000], of_part)
    assert whole.abs().max() < 1
    for quarter in range(4):
        share = ((whole + 1) * 2).floor().eq(quarter).float().mean().item()
        assert share == pytest.approx(0.25, abs=0.015)


def test_the_code_discriminator_spreads_the_codes() -> None:
    """With a high code weight, codes that start near 0 spread to the prior's variance of 1/3."""
    model = small(image_weight=0.0, code_weight=100.0, learning_rate=1e-2, latent_size=2)
    batch = small_batch(model.config, 32)
    with torch.no_grad():
        encoder = model.autoencoder["encoder"]
        assert isinstance(encoder, nn.Sequential)
        encoder[-2].get_parameter("weight").mul_(0.1)

    before = model.shared(batch)["codes"].var(0).max().item()
    step = TrainingStep(model, model.phases(), TrainSection(images=32, batch_size=32))
    for number in range(60):
        step(replace(batch, positions=batch.positions + 32 * number), number, 0.0)
    after = model.shared(batch)["codes"].var(0).min().item()
    assert before < 0.01
    assert after > 0.1


def test_no_phase_leaves_gradients_in_other_networks() -> None:
    model = small()
    batch = small_batch(model.config)
    model.discriminators_loss(batch, model.shared(batch)).value.backward()
    assert all(p.grad is None for p in model.autoencoder.parameters())
    assert all(p.grad is not None for p in model.discriminators.parameters())


def test_encoder_and_generator_run_once_per_step() -> None:
    model, calls = small(), []
    for name, network in model.autoencoder.items():
        network.register_forward_hook(lambda _, x, y, name=name: calls.append(name))
    step = TrainingStep(model, model.phases(), TrainSection(images=4, batch_size=4))
    step(small_batch(model.config), 0, 0.0)
    assert calls == ["encoder", "generator"]


def test_the_ages_of_a_person_differ_only_by_the_label() -> None:
    model = small()
    images = small_batch(model.config, 2).images
    young, mixed = model.age(images, torch.tensor([0, 0])), model.age(images, torch.tensor([0, 2]))
    torch.testing.assert_close(young[0], mixed[0])
    assert (young[1] - mixed[1]).abs().max() > 1e-3
    drawn = [model.sample(torch.arange(2), torch.tensor(ages)) for ages in ([1, 0], [1, 2])]
    torch.testing.assert_close(drawn[0][0], drawn[1][0])
    assert (drawn[0][1] - drawn[1][1]).abs().max() > 1e-3


def test_a_row_of_the_ageing_picture_is_an_example_and_that_person_at_every_age() -> None:
    model = small()
    batch = small_batch(model.config, 2)
    rows = model.pictures(batch)["ageing"]
    assert [len(row) for row in rows] == [4, 4]
    for image, row in zip(batch.images, rows, strict=True):
        assert torch.equal(row[0], image)
        for age in range(3):
            expected = model.age(image[None], torch.tensor([age]))[0]
            torch.testing.assert_close(row[1 + age], expected)
    own = model.shared(batch)["faces"]  # at its own age, an example's reconstruction
    for row, face, label in zip(rows, own, batch.labels, strict=True):  # type: ignore[arg-type]
        torch.testing.assert_close(row[1 + label], face)


def test_a_row_of_the_ageing_picture_shows_some_of_many_ages() -> None:
    model = small(classes=100)
    batch = small_batch(model.config, 2)
    (row, _) = model.pictures(batch)["ageing"]
    assert len(row) == 1 + 16
    for shown, age in ((0, 0), (1, 6), (8, 50), (15, 93)):
        expected = model.age(batch.images[:1], torch.tensor([age]))[0]
        torch.testing.assert_close(row[1 + shown], expected)


def test_samples_use_the_prior_and_random_ages_if_none_are_given() -> None:
    model, seen = small(), []
    model.autoencoder["generator"].register_forward_hook(lambda _, x, y: seen.append(x))
    model.sample(torch.arange(600))
    codes, ages = seen[0]
    assert codes.abs().max() < 1
    assert codes.var().item() == pytest.approx(1 / 3, rel=0.05)
    assert ((ages + 1) / 2).sum(0).min() > 150


@pytest.mark.parametrize("labels", [[0, 3], [-1, 0], [0]])
def test_impossible_ages_are_rejected(labels: list[int]) -> None:
    with pytest.raises(ValueError, match="classes from 0 to 2"):
        small().sample(torch.arange(2), torch.tensor(labels))
    with pytest.raises(ValueError, match="ages"):
        small().age(torch.zeros(2, 3, 16, 16), torch.tensor(labels))


def test_a_batch_without_labels_is_rejected_with_a_suggestion() -> None:
    batch = replace(small_batch(small().config), labels=None)
    with pytest.raises(ValueError, match="use one with classes"):
        small().shared(batch)


def test_sizes_that_do_not_halve_down_to_four_pixels_are_rejected() -> None:
    with pytest.raises(ValidationError, match="use 64 or 128"):
        config(image_size=100)


def test_weights_use_he_initialisation() -> None:
    """Noise of variance 1 then has variance 2 after a layer, away from the border."""
    torch.manual_seed(0)
    model = Model(config(image_size=16, filters=16, latent_size=200))
    images = torch.randn(8, 64, 32, 32)
    for path in ("encoder.2", "generator.layers.3", "generator.layers.5", "generator.layers.7"):
        convolution = model.autoencoder.get_submodule(path)
        assert isinstance(convolution, nn.Conv2d | nn.ConvTranspose2d)
        outputs = convolution(images[:, : convolution.in_channels])[:, :, 4:-4, 4:-4]
        assert outputs.var().item() == pytest.approx(2, rel=0.15)
    dense = model.autoencoder.get_submodule("generator.layers.0")
    assert dense(torch.randn(8, 400)).var().item() == pytest.approx(2, rel=0.15)

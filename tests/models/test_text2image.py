"""GAN-CLS against the counts of its code and a second, slow writing of its formulas."""

import math
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn import functional as F

from orchestrator.config.job import TrainSection
from orchestrator.models.base import Batch, Clock
from orchestrator.models.parts.text import caption_bytes
from orchestrator.models.text2image import Config, Model, halving
from orchestrator.training.step import TrainingStep
from support.layers import layer_at
from support.small import small_batch, small_config

TEXTS = ["a face with red hair", "a face with a blue shirt", "glasses", "an old person, smiling"]


def config(**options: object) -> Config:
    return Config.model_validate({"name": "text2image", **options})


def small(**options: object) -> Model:
    torch.manual_seed(0)
    given = small_config("text2image", **{"interpolation_weight": 0.0, **options})
    assert isinstance(given, Config)
    return Model(given)


def captions(*texts: str) -> torch.Tensor:
    return torch.stack([caption_bytes(text) for text in texts])


def written(size: int = 4) -> Batch:
    """Return a small batch with different texts."""
    return replace(small_batch(small().config, size), captions=captions(*TEXTS[:size]))


def in_float64(model: Model) -> Batch:
    model.double()
    batch = written()
    return replace(batch, images=batch.images.double())


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_networks_have_the_published_number_of_parameters() -> None:
    """Including the projections of a 1024-d text code, without the text encoder."""
    with torch.device("meta"):
        model = Model(config())
    assert (count(model.generator), count(model.discriminator)) == (21_133_824, 4_226_560)


def test_maps_have_the_published_sizes() -> None:
    with torch.device("meta"):
        model = Model(config())
        z, codes = torch.empty(2, 100), torch.empty(2, 1024)
    shapes: list[tuple[int, ...]] = []
    convolutions = [*model.generator.layers, *model.discriminator.image, *model.discriminator.judge]
    for layer in convolutions:
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            layer.register_forward_hook(lambda _, x, y: shapes.append(tuple(y.shape[1:])))
    model.discriminator(model.generator(z, codes), codes)
    up = [(1024, 4, 4), (512, 8, 8), (256, 16, 16), (128, 32, 32), (3, 64, 64)]
    down = [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4)]
    assert shapes == [*up, *down, (512, 4, 4), (1, 1, 1)]


def test_weights_of_the_image_networks_are_initialised_as_in_the_authors_code() -> None:
    torch.manual_seed(0)
    model = Model(config(filters=16, discriminator_filters=16))
    kinds = nn.Conv2d | nn.ConvTranspose2d
    weights = torch.cat([m.weight.flatten() for m in model.modules() if isinstance(m, kinds)])
    gains = torch.cat([m.weight for m in model.modules() if isinstance(m, nn.BatchNorm2d)])
    assert weights.std().item() == pytest.approx(0.02, rel=0.01)
    assert gains.mean().item() == pytest.approx(1, abs=0.005)
    assert gains.std().item() == pytest.approx(0.02, rel=0.1)


def normalised(x: torch.Tensor, norm: nn.BatchNorm2d) -> torch.Tensor:
    mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), correction=0, keepdim=True)
    gain, bias = norm.weight[:, None, None], norm.bias[:, None, None]
    return (x - mean) / (var + norm.eps).sqrt() * gain + bias


def probability(model: Model, images: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Compute the 16 px discriminator layer by layer."""
    d = model.discriminator

    def weight(path: str) -> torch.Tensor:
        return d.get_parameter(f"{path}.weight")

    def norm(path: str) -> nn.BatchNorm2d:
        return layer_at(d, path, nn.BatchNorm2d)

    x = F.leaky_relu(F.conv2d(images, weight("image.0"), stride=2, padding=1), 0.2)
    x = normalised(F.conv2d(x, weight("image.2"), stride=2, padding=1), norm("image.3"))
    y, residual = x, "image.4.bottleneck"
    for number, padding in ((0, 0), (3, 1), (6, 1)):
        y = F.conv2d(y, weight(f"{residual}.{number}"), padding=padding)
        y = normalised(y, norm(f"{residual}.{number + 1}"))
        y = F.leaky_relu(y, 0.2) if number < 6 else y
    x = F.leaky_relu(x + y, 0.2)
    projection = layer_at(d, "projection.0", nn.Linear)
    text = F.leaky_relu(codes @ projection.weight.T + projection.bias, 0.2)
    x = torch.cat([x, text[:, :, None, None].repeat(1, 1, 4, 4)], 1)
    x = normalised(F.conv2d(x, weight("judge.0")), norm("judge.1"))
    logits = (F.leaky_relu(x, 0.2) * weight("judge.3")).sum((1, 2, 3))
    return 1 / (1 + torch.exp(-logits))


def test_losses_equal_the_formulas_in_float64() -> None:
    model = small(interpolation_weight=0.5)
    for p in model.discriminator.parameters():
        if p.dim() == 4:
            nn.init.normal_(p, std=0.3)  # so that probabilities differ from one half
    nn.init.normal_(model.text.code.weight, std=3.0)
    batch = in_float64(model)
    shared = model.shared(batch)
    codes = torch.cat([model.text(caption[None]) for caption in batch.captions])  # type: ignore[union-attr]
    wrong = torch.stack([codes[3], codes[0], codes[1], codes[2]])
    fake = shared["fake"]

    d = -probability(model, batch.images, codes).log().mean()
    d = d - 0.5 * (1 - probability(model, batch.images, wrong)).log().mean()
    d = d - 0.5 * (1 - probability(model, fake, codes)).log().mean()
    found = model.discriminator_loss(batch, shared)
    assert found.value.item() == pytest.approx(d.item(), rel=1e-6)
    assert abs(found.metrics["wrong"] - found.metrics["right"]) > 0.01

    between = (codes + wrong) / 2
    z = batch.normal("interpolated latent", model.config.latent_size).double()
    g = -probability(model, fake, codes).log().mean()
    g = g - 0.5 * probability(model, model.generator(z, between), between).log().mean()
    found = model.generator_loss(batch, shared)
    assert found.value.item() == pytest.approx(g.item(), rel=1e-6)


def test_an_undecided_discriminator_costs_2_ln_2_and_the_generator_ln_2() -> None:
    model = small()
    for p in model.discriminator.parameters():
        nn.init.zeros_(p)
    shared = model.shared(written())
    d = model.discriminator_loss(written(), shared).value.item()
    assert d == pytest.approx(2 * math.log(2))
    assert model.generator_loss(written(), shared).value.item() == pytest.approx(math.log(2))


def test_real_images_are_paired_with_both_texts_and_fakes_with_their_own() -> None:
    model, seen = small(), []
    batch, shared = written(), model.shared(written())
    model.discriminator.projection.register_forward_hook(lambda _, x, y: seen.append(x[0]))
    model.discriminator_loss(batch, shared)
    right, wrong, fake = seen
    assert torch.equal(right, shared["codes"])
    assert torch.equal(fake, right)
    own = (wrong[:, None] == right[None]).all(2)  # whose text each image met as the wrong one
    assert own.int().tolist() == [[0, 0, 0, 1], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]


def test_a_single_image_is_rejected_with_a_suggestion() -> None:
    batch = written(1)
    model = small().eval()
    with pytest.raises(ValueError, match=r"train\.microbatch_size"):
        model.discriminator_loss(batch, model.shared(batch))


@pytest.mark.parametrize("text", ["", "x", "a face", "x" * 62, "é" * 31])
def test_a_text_code_does_not_depend_on_padding(text: str) -> None:
    model = small().double()
    long = captions(text)
    code = model.text(long)
    shortest = long[:, : max(1, int((long != 0).sum()))]
    torch.testing.assert_close(model.text(long[:, :64]), code)
    torch.testing.assert_close(model.text(shortest), code)
    beside = captions(text, "y" * 256)
    torch.testing.assert_close(model.text(beside)[:1], code)


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("red hair and a blue shirt", "blue hair and a red shirt"),
        ("a face with a smile", "a face with a smirk"),
        ("x" * 9, "x" * 10),
    ],
)
def test_different_texts_have_different_codes(text: str, other: str) -> None:
    codes = small(text_filters=64).double().text(captions(text, other, text))
    assert torch.equal(codes[0], codes[2])
    assert (codes[0] - codes[1]).abs().max() > 1e-3


def test_images_from_the_same_noise_differ_only_by_their_text() -> None:
    model = small()
    images = [model.sample(torch.arange(2), captions(TEXTS[0], second)) for second in TEXTS[1:3]]
    torch.testing.assert_close(images[0][0], images[1][0])
    assert (images[0][1] - images[1][1]).abs().max() > 1e-6


def test_no_phase_leaves_gradients_in_other_networks() -> None:
    model = small(interpolation_weight=1.0)
    batch = written()
    model.discriminator_loss(batch, model.shared(batch)).value.backward()
    assert all(p.grad is None for p in model.generator.parameters())
    trained = [*model.text.parameters(), *model.discriminator.parameters()]
    assert all(p.grad is not None for p in trained)
    model.zero_grad()
    model.generator_loss(batch, model.shared(batch)).value.backward()
    assert all(p.grad is None for p in model.text.parameters())
    assert all(p.grad is not None for p in model.generator.parameters())


def test_the_text_encoder_and_the_generator_run_once_per_step() -> None:
    model = small()
    calls = {"text": 0, "generator": 0, "discriminator.image": 0}
    for name in calls:

        def count_call(*_: object, name: str = name) -> None:
            calls[name] += 1

        model.get_submodule(name).register_forward_hook(count_call)
    TrainingStep(model, model.phases(), TrainSection(images=4, batch_size=4))(written(), 0, 0.0)
    # A real image is looked at once for both texts; the fake one once for each phase.
    assert calls == {"text": 1, "generator": 1, "discriminator.image": 3}


def test_the_learning_rate_is_halved_every_100_of_600_epochs() -> None:
    factor = halving(5)
    found = [factor(Clock(0, epoch / 600)) for epoch in (0, 99, 101, 199, 201, 499, 501, 599)]
    assert found == [1, 1, 1 / 2, 1 / 2, 1 / 4, 1 / 16, 1 / 32, 1 / 32]
    assert halving(0)(Clock(0, 0.999)) == 1
    model = small()
    phases = model.phases()
    TrainingStep(model, phases, TrainSection(images=4, batch_size=4))(written(), 3, 0.4)
    assert [p.optimizer.param_groups[0]["lr"] for p in phases] == [5e-5, 5e-5]


def test_an_interpolation_row_goes_from_one_text_to_another_with_the_same_noise() -> None:
    model, seen = small(), []
    model.generator.register_forward_hook(lambda _, x, y: seen.append(x))
    batch = written()
    rows = model.pictures(batch)["interpolation"]
    assert [len(row) for row in rows] == [8, 8]
    noise, codes = seen[0][0].unflatten(0, (2, 8)), seen[0][1].unflatten(0, (2, 8))
    assert torch.equal(noise, noise[:, :1].expand_as(noise))
    assert not torch.equal(noise[0], noise[1])
    ends = model.text(batch.captions)
    torch.testing.assert_close(codes[:, 0], ends[:2])
    torch.testing.assert_close(codes[:, 7], ends[2:])
    torch.testing.assert_close(codes[:, 2], ends[:2] + 2 / 7 * (ends[2:] - ends[:2]))
    assert model.pictures(written(1)) == {}


def test_a_sample_does_not_depend_on_others_in_its_batch() -> None:
    model = small()
    model.shared(written())  # running statistics that are not the first ones
    whole = model.sample(torch.arange(2), captions(*TEXTS[:2]))
    other = model.sample(torch.arange(2), captions(TEXTS[0], "x"))
    torch.testing.assert_close(whole[0], other[0])
    assert model.training


@pytest.mark.parametrize("given", [None, captions("one text"), caption_bytes("flat")])
def test_sampling_with_a_wrong_number_of_captions_is_rejected(given: torch.Tensor | None) -> None:
    with pytest.raises(ValueError, match="captions"):
        small().sample(torch.arange(2), given)


def test_a_batch_without_captions_is_rejected_with_a_suggestion() -> None:
    with pytest.raises(ValueError, match="use a data set with captions"):
        small().shared(replace(written(), captions=None))


def test_sizes_that_do_not_halve_down_to_four_pixels_are_rejected() -> None:
    with pytest.raises(ValidationError, match="use 64 or 128"):
        config(image_size=100)

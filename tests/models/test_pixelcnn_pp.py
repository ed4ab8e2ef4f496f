"""PixelCNN++ against published counts, slow writings of its formulas, and sums over all images."""

import itertools
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn import functional as F

from orchestrator.config.job import TrainSection
from orchestrator.models.base import Batch, Clock
from orchestrator.models.parts import logistic
from orchestrator.models.parts.autoregressive import from_levels
from orchestrator.models.parts.sampler import evaluating
from orchestrator.models.parts.weight_norm import Conv2d, ConvTranspose2d, WeightNorm
from orchestrator.models.pixelcnn_pp import Config, Model, concat_elu, exponential_decay
from orchestrator.training.step import TrainingStep

TINY = {"filters": 4, "resnets": 1, "mixtures": 2}


def config(**options: object) -> Config:
    return Config.model_validate({"name": "pixelcnn_pp", **options})


def examples(model: Model, count: int = 8) -> Batch:
    c = model.config
    shape = (count, c.channels, c.image_size, c.image_size)
    values = torch.randint(c.levels, shape, generator=torch.Generator().manual_seed(7))
    labels = torch.arange(count) % c.classes if c.classes else None
    images = values.to(torch.get_default_dtype()) * (2 / (c.levels - 1)) - 1
    return Batch(images, torch.arange(count), labels=labels)


def prepared(seed: int = 0, **options: Any) -> Model:
    torch.manual_seed(seed)
    model = Model(config(**{**TINY, **options}))
    model.prepare(examples(model))
    return model


@pytest.fixture
def float64() -> Iterator[None]:
    """Use float64, so that rounding cannot change a drawn level."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(("channels", "parameters"), [(3, 53_659_080), (1, 53_644_220)])
def test_the_network_has_the_published_number_of_parameters(channels: int, parameters: int) -> None:
    with torch.device("meta"):
        model = Model(config(channels=channels))
    assert sum(p.numel() for p in model.parameters()) == parameters


# The distribution of one pixel.


def random_numbers(batch: int, channels: int, mixtures: int, *size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(channels)
    numbers = logistic.numbers_for_pixel(channels, mixtures)
    return torch.randn(batch, numbers, *size, generator=generator, dtype=torch.float64)


def slow_log_likelihood(
    numbers: list[float], colours: list[int], mixtures: int, levels: int
) -> float:
    """Section 2.1, equations 2 and 3, in plain Python: a pixel's numbers and its colours."""
    count = len(colours)
    table = [numbers[row * mixtures : (row + 1) * mixtures] for row in range(len(numbers))]
    x = [2 * k / (levels - 1) - 1 for k in colours]
    total = 0.0
    weights = sum(math.exp(a) for a in table[0])
    for m in range(mixtures):
        p = math.exp(table[0][m]) / weights
        pair = 1 + 2 * count
        for c in range(count):
            mean = table[1 + c][m]
            scale = math.exp(max(table[1 + count + c][m], -7.0))
            for k in range(c):
                mean += math.tanh(table[pair][m]) * x[k]
                pair += 1
            half = 1 / (levels - 1)
            above = 1.0 if colours[c] == levels - 1 else sigmoid((x[c] + half - mean) / scale)
            below = 0.0 if colours[c] == 0 else sigmoid((x[c] - half - mean) / scale)
            p *= above - below
        total += p
    return math.log(total)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("levels", [2, 256])
def test_likelihood_equals_the_formula_in_explicit_loops(channels: int, levels: int) -> None:
    mixtures, size = 3, 4
    outputs = random_numbers(2, channels, mixtures, size, size)
    generator = torch.Generator().manual_seed(1)
    values = torch.randint(levels, (2, channels, size, size), generator=generator)
    values[:, :, 0, 0], values[:, :, 0, 1] = 0, levels - 1
    values[:, -1, 1, 0], values[:, 0, 1, 1] = 0, levels - 1
    slow = [
        sum(
            slow_log_likelihood(
                outputs[b, :, i, j].tolist(), values[b, :, i, j].tolist(), mixtures, levels
            )
            for i in range(size)
            for j in range(size)
        )
        for b in range(2)
    ]
    fast = logistic.log_likelihood(outputs, from_levels(values, levels), levels)
    assert fast.tolist() == pytest.approx(slow, rel=1e-5)


def all_colours(channels: int, levels: int) -> torch.Tensor:
    """Return all colours of a pixel: integers (levels ** channels, channels)."""
    return torch.tensor(list(itertools.product(range(levels), repeat=channels)))


@pytest.mark.parametrize("log_scale", [-12.0, -3.0, 0.0, 5.0])
def test_the_probabilities_of_all_colours_of_a_pixel_sum_to_1(log_scale: float) -> None:
    colours = all_colours(3, 4)
    outputs = random_numbers(1, 3, 5, 1, 1)
    outputs[:, 4 * 5 : 7 * 5] += log_scale
    images = from_levels(colours, 4)[:, :, None, None]
    nats = logistic.log_likelihood(outputs.expand(len(images), -1, -1, -1), images, 4)
    assert nats.exp().sum().item() == pytest.approx(1, abs=1e-6)


def test_drawn_pixels_are_as_frequent_as_they_are_probable() -> None:
    draws, colours = 200_000, all_colours(3, 4)
    outputs = random_numbers(1, 3, 3)
    uniforms = torch.rand(draws, 4, generator=torch.Generator().manual_seed(0))
    drawn = logistic.pick(outputs.expand(draws, -1), uniforms, torch.zeros(draws, 3), 4)
    numbers = ((drawn + 1) * 1.5).round().long() @ torch.tensor([16, 4, 1])
    assert torch.equal(drawn, from_levels(colours, 4)[numbers]), "each is one of the levels"
    images = from_levels(colours, 4)[:, :, None, None]
    maps = outputs[..., None, None].expand(len(images), -1, -1, -1)
    probable = logistic.log_likelihood(maps, images, 4).exp()
    frequent = numbers.bincount(minlength=64) / draws
    sigma = (probable * (1 - probable) / draws).sqrt()
    assert ((frequent - probable) / sigma).abs().max().item() < 4


def test_uniform_numbers_at_both_ends_still_draw_pixels() -> None:
    for uniforms in (torch.zeros(1, 4), torch.full((1, 4), 1 - 2**-24)):
        pixel = logistic.pick(random_numbers(1, 3, 2), uniforms, torch.zeros(1, 3), 256)
        assert pixel.abs().max() <= 1


def test_values_far_from_a_narrow_logistic_have_finite_nats_and_gradients() -> None:
    outputs = torch.tensor([0.0, 90.0, -50.0]).view(1, 3, 1, 1).requires_grad_()
    nats = logistic.log_likelihood(outputs, torch.full((1, 1, 1, 1), 0.0), 256)
    nats.sum().backward()
    assert outputs.grad is not None
    assert nats.isfinite().all()
    assert outputs.grad.isfinite().all()
    assert outputs.grad[0, 1].abs().item() > 1, "the mean is drawn towards the value"


# The network.


def test_the_likelihoods_of_all_images_sum_to_1() -> None:
    for options in ({"scales": 1}, {"scales": 2}, {"scales": 2, "levels": 3}):
        model = prepared(image_size=2, channels=1, **{"levels": 2, **options})
        values = all_colours(4, model.config.levels).view(-1, 1, 2, 2)
        images = from_levels(values, model.config.levels)
        batch = Batch(images, torch.arange(len(images)))
        nats = model.negative_log_likelihood(batch)["nll_nats"]
        assert (-nats).exp().sum().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.usefixtures("float64")
def test_a_pixel_sees_all_earlier_pixels_and_no_other() -> None:
    """Measured by the gradient of its outputs, which is exactly 0 without a connection."""
    size = 8
    model = prepared(image_size=size, scales=3, resnets=2).eval()
    images = examples(model, 1).images.requires_grad_()
    outputs = model.outputs(images)[0].square().sum(0).flatten()
    seen = torch.stack(
        [
            torch.autograd.grad(out, images, retain_graph=True)[0].abs().sum((0, 1))
            for out in outputs
        ]
    )
    earlier = torch.ones(size**2, size**2).tril(-1).bool()
    assert torch.equal(seen.flatten(1) > 0, earlier)


def test_concat_elu_is_elu_of_both_signs() -> None:
    x = torch.tensor([-2.0, 0.5]).view(1, 2, 1, 1)
    by_hand = [math.exp(-2) - 1, 0.5, 2.0, math.exp(-0.5) - 1]
    assert concat_elu(x).flatten().tolist() == pytest.approx(by_hand)


@pytest.mark.parametrize("transposed", [False, True])
def test_a_weight_is_g_v_over_the_length_of_v(transposed: bool) -> None:
    """Compare with torch's weight normalisation, and with equation 2 for one channel."""
    torch.manual_seed(0)
    layer: WeightNorm = ConvTranspose2d(3, 5, 3) if transposed else Conv2d(3, 5, (2, 3))
    nn.init.normal_(layer.gain)
    nn.init.normal_(layer.bias)
    v = layer.direction[:, 2] if transposed else layer.direction[2]
    w = layer.weight[:, 2] if transposed else layer.weight[2]
    torch.testing.assert_close(w, layer.gain[2] * v / v.square().sum().sqrt())

    plain: nn.Module = nn.Conv2d(3, 5, (2, 3))
    if transposed:
        plain = nn.ConvTranspose2d(3, 5, (2, 3), 2, (0, 1), (0, 1))
    normal = nn.utils.parametrizations.weight_norm(plain, dim=1 if transposed else 0)
    shape = (1, 5, 1, 1) if transposed else (5, 1, 1, 1)
    with torch.no_grad():
        normal.parametrizations.weight.original0.copy_(layer.gain.view(shape))
        normal.parametrizations.weight.original1.copy_(layer.direction)
        normal.bias.copy_(layer.bias)
    x = torch.randn(2, 3, 4, 6)
    torch.testing.assert_close(layer(x), normal(x))
    if transposed:
        assert layer(x).shape == (2, 5, 8, 12)


def layer_outputs(model: Model, batch: Batch) -> dict[WeightNorm, torch.Tensor]:
    found: dict[WeightNorm, torch.Tensor] = {}
    for layer in model.modules():
        if isinstance(layer, WeightNorm):
            layer.register_forward_hook(lambda one, _, output: found.update({one: output}))
    with evaluating(model):
        model.outputs(batch.images, batch.labels)
    return found


def test_after_prepare_every_layer_has_mean_0_and_the_given_variance() -> None:
    model = prepared(image_size=8, scales=3, resnets=2)
    outputs = layer_outputs(model, examples(model))
    vertical, horizontal = 14 * 2 + 8, 14 * 3  # 6 layers in the encoder, 8 in the decoder
    assert len(outputs) == vertical + horizontal + 2 * 4 + 4
    scales = set()
    for layer, x in outputs.items():
        variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
        scales.add(layer.init_scale)
        torch.testing.assert_close(mean, torch.zeros_like(mean), atol=2e-5, rtol=0)
        expected = torch.full_like(variance, layer.init_scale**2)
        torch.testing.assert_close(variance, expected, rtol=1e-3, atol=0)
    assert scales == {1.0, 0.1}


def test_prepare_does_not_depend_on_the_random_state_and_restores_it_and_the_mode() -> None:
    first = prepared(image_size=8)
    torch.manual_seed(0)
    second = Model(first.config)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    second.prepare(examples(second))
    assert torch.equal(state, torch.get_rng_state())
    assert second.training
    assert second.network.head.training
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


def test_prepare_handles_identical_examples() -> None:
    torch.manual_seed(0)
    model = Model(config(**TINY, image_size=4, scales=2))
    blank = Batch(torch.full((4, 3, 4, 4), -1.0), torch.arange(4))
    model.prepare(blank)
    assert all(p.isfinite().all() for p in model.parameters())
    nats = model.negative_log_likelihood(examples(model))["nll_nats"]
    assert nats.isfinite().all()
    assert nats.max().item() < 100 * math.log(256) * 48


def test_a_residual_layer_adds_value_times_gate() -> None:
    """Compare a layer of the horizontal stream with section 2.4 and the authors' code."""
    model = prepared(image_size=8).eval()
    block = model.network.horizontal.decoder[0][0]
    x, own, other = torch.randn(3, 2, 4, 8, 8)

    def conv(layer: Conv2d, y: torch.Tensor) -> torch.Tensor:
        top, left = (1, 1) if layer.kernel == (2, 2) else (0, 0)
        return F.conv2d(F.pad(y, (left, 0, top, 0)), layer.weight, layer.bias)

    def double(y: torch.Tensor) -> torch.Tensor:
        return torch.cat([F.elu(y), F.elu(-y)], 1)

    y = conv(block.conv_in, double(x)) + conv(block.skip, double(torch.cat([other, own], 1)))
    value, gate = conv(block.conv_out, double(y)).split(4, 1)
    with torch.no_grad():
        given = block(x, [other, own], None, lambda layer, z: layer(z))
    torch.testing.assert_close(given, x + value * torch.sigmoid(gate))


def test_classes_change_the_outputs_and_are_required() -> None:
    model = prepared(image_size=4, classes=3, scales=2)
    with evaluating(model):
        images = examples(model, 2).images
        outputs = [model.outputs(images, torch.full((2,), k)) for k in range(3)]
    assert not torch.allclose(outputs[0], outputs[1])
    assert not torch.allclose(outputs[1], outputs[2])
    with pytest.raises(ValueError, match="needs labels"):
        model.outputs(images)


# Sampling.


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    "options",
    [
        {"image_size": 8, "scales": 3},
        {"image_size": 6, "scales": 2, "resnets": 2, "classes": 3},
        {"image_size": 5, "scales": 1, "channels": 1, "levels": 2},
    ],
    ids=["colour, 3 scales", "classes, 2 scales", "binary, 1 scale"],
)
def test_cached_sampling_equals_naive_sampling(options: dict[str, Any]) -> None:
    model = prepared(**options)
    fast, slow = (sampler(torch.arange(3)) for sampler in (model.sample, model.sample_naively))
    assert torch.equal(fast, slow)
    assert fast.unique().numel() > 1


@pytest.mark.usefixtures("float64")
def test_cached_outputs_equal_those_of_the_whole_image() -> None:
    model = prepared(image_size=12, scales=3, resnets=2)
    images = examples(model, 2).images
    with evaluating(model):
        whole, cached = model.outputs(images), model.cached_outputs(2)
        for i, j in itertools.product(range(12), repeat=2):
            earlier = images.clone()
            earlier[:, :, i, j:] = 0
            earlier[:, :, i + 1 :] = 0
            torch.testing.assert_close(cached(earlier, i, j, 0), whole[:, :, i, j])


# Training.


def test_the_learning_rate_falls_by_its_factor_each_step() -> None:
    factor = exponential_decay(0.999995)
    rates = [1e-3 * factor(Clock(step, 0.0)) for step in (0, 1, 100_000, 1_000_000)]
    by_hand = [1e-3, 9.99995e-4, 6.065299e-4, 6.737863e-6]
    assert rates == pytest.approx(by_hand, rel=1e-5)
    model = prepared(image_size=4)
    (phase,) = model.phases()
    TrainingStep(model, [phase], TrainSection(images=4, batch_size=4))(
        examples(model, 4), 100_000, 0.5
    )
    (group,) = phase.optimizer.param_groups
    assert group["lr"] == pytest.approx(6.065299e-4, rel=1e-5)
    assert group["betas"] == (0.95, 0.9995)


def test_training_approaches_the_entropy_of_two_images_and_stays_above_it() -> None:
    """Two equally frequent images have an entropy of ln 2 nats."""
    model = prepared(image_size=2, channels=1, levels=2, scales=1, dropout=0.0, filters=8)
    images = torch.tensor([[1.0, -1, -1, 1], [-1, 1, -1, -1]]).view(2, 1, 2, 2)
    batch = Batch(images, torch.arange(2))
    step = TrainingStep(model, model.phases(), TrainSection(images=2, batch_size=2))
    losses = [step(batch, n, 0.0)["likelihood/nll_nats"].item() for n in range(150)]
    assert min(losses) >= math.log(2)
    assert losses[-1] == pytest.approx(math.log(2), abs=0.05)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 30}, "needs an image_size that halves evenly; at 30 use 1 to 2"),
        ({"image_size": 28, "scales": 4}, "at 28 use 1 to 3"),
        ({"levels": 1}, "greater than or equal to 2"),
        ({"dropout": 1.0}, "less than 1"),
    ],
)
def test_impossible_options_are_rejected(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError) as error:
        config(**options)
    assert message in str(error.value)

"""Every autoregressive model in models/ is a distribution, and its samplers draw from it."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from orchestrator.models.base import Batch, build_model, model_module, model_names
from orchestrator.models.parts.autoregressive import Autoregressive, from_levels, to_levels
from orchestrator.models.parts.sampler import evaluating
from support.small import condition_for, small_batch, small_config

NAMES = [name for name in model_names() if issubclass(model_module(name).Model, Autoregressive)]
CLASSES = [name for name in NAMES if "classes" in model_module(name).Config.model_fields]

AT_SIZE: dict[tuple[str, int], dict[str, object]] = {
    ("pixelcnn_pp", 1): {"scales": 1},
    ("pixelcnn_pp", 2): {"scales": 2},
    ("pixelcnn_pp", 5): {"scales": 1},
    ("pixelcnn_pp", 6): {"scales": 2},
}
"""Options that a model needs at an image size other than that of its small config."""

SIZES = [(5, 1, 2), (6, 3, 4), (6, 2, 256)]
"""Image size, channels and levels."""


def tiny(
    name: str, size: int = 2, channels: int = 1, levels: int = 2, **options: object
) -> Autoregressive:
    """Build a model with outputs that depend on its inputs more than at initialisation."""
    shape = {"image_size": size, "channels": channels, "levels": levels}
    torch.manual_seed(0)
    model = build_model(small_config(name, **{**shape, **AT_SIZE.get((name, size), {}), **options}))
    assert isinstance(model, Autoregressive)
    model.prepare(small_batch(model.config, 8))
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=noise) * 0.15)
    return model


def levels_of(model: Autoregressive) -> int:
    """Number of values of a colour."""
    levels = model.config.model_dump()["levels"]
    assert isinstance(levels, int)
    return levels


def all_images(model: Autoregressive) -> Batch:
    """Return all possible images, with labels 0."""
    config = model.config
    shape = (config.channels, config.image_size, config.image_size)
    values = itertools.product(range(levels_of(model)), repeat=math.prod(shape))
    images = from_levels(torch.tensor(list(values)).view(-1, *shape), levels_of(model))
    labels = torch.zeros(len(images), dtype=torch.int64) if config.num_classes else None
    return Batch(images, torch.arange(len(images)), labels=labels)


def random_batch(model: Autoregressive, size: int = 3) -> Batch:
    """Return images with values among the model's levels."""
    batch, levels = small_batch(model.config, size), levels_of(model)
    return replace(batch, images=from_levels(to_levels(batch.images, levels), levels))


def turn_of(model: Autoregressive, numbers: int) -> Tensor:
    """Return the turn in which each output of a pixel is used."""
    return torch.arange(numbers) // (numbers // model.turns)


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize(("size", "channels", "levels"), SIZES)
def test_no_output_depends_on_a_value_that_comes_later(
    name: str, size: int, channels: int, levels: int
) -> None:
    """Check the gradient of every output of every pixel, summed with random weights."""
    model = tiny(name, size, channels, levels).double().eval()
    batch = random_batch(model, 1)
    images = batch.images.double().requires_grad_()
    outputs = model.outputs(images, batch.labels)
    turns = turn_of(model, outputs.shape[1])
    # Position in the order of drawing: a model of one turn draws all colours of a pixel at once.
    pixels = torch.arange(size * size).view(1, size, size) * model.turns
    order = pixels + torch.arange(channels)[:, None, None] % model.turns
    used = torch.zeros(channels, size, size, dtype=torch.bool)
    for i, j, turn in itertools.product(range(size), range(size), range(model.turns)):
        chosen = outputs[0, turns == turn, i, j]
        weights = torch.rand(len(chosen), dtype=chosen.dtype) + 0.5
        (gradient,) = torch.autograd.grad((chosen * weights).sum(), images, retain_graph=True)
        now = int(pixels[0, i, j]) + turn
        assert gradient[0][order >= now].abs().max() == 0, (i, j, turn)
        used |= gradient[0] != 0
    assert used[order < order.max()].all(), "all values but the last have a say"


@pytest.mark.parametrize(("size", "channels"), [(2, 1), (1, 3)])
def test_the_likelihood_of_all_images_sums_to_one(name: str, size: int, channels: int) -> None:
    model = tiny(name, size, channels).double()
    batch = all_images(model)
    assert len(batch) == 2 ** (size * size * channels)
    nats = model.negative_log_likelihood(replace(batch, images=batch.images.double()))["nll_nats"]
    assert nats.shape == (len(batch),)
    assert nats.std() > 0.05, "a test with a uniform distribution would show little"
    assert (-nats.double()).exp().sum().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(("size", "channels"), [(2, 1), (1, 3)])
def test_sample_frequencies_match_the_likelihood(name: str, size: int, channels: int) -> None:
    model, draws = tiny(name, size, channels), 20_000
    batch = all_images(model)
    condition = torch.zeros(draws, dtype=torch.int64) if model.config.num_classes else None
    images = model.sample(torch.arange(draws), condition)
    bits = 2 ** torch.arange(images[0].numel() - 1, -1, -1)
    numbers = (to_levels(images, 2).flatten(1) * bits).sum(1)
    counts = torch.bincount(numbers, minlength=len(batch)).double()
    p = (-model.negative_log_likelihood(batch)["nll_nats"].double()).exp()
    sigmas = (counts - draws * p).abs() / (draws * p * (1 - p)).sqrt()
    assert sigmas.max() < 4
    uniform = (counts - draws / len(p)).abs() / (draws / len(p)) ** 0.5
    assert uniform.max() > 8, "a test with a uniform distribution would show little"


@pytest.mark.parametrize(("size", "channels", "levels"), SIZES)
def test_cached_sampling_equals_naive_sampling(
    name: str, size: int, channels: int, levels: int
) -> None:
    model = tiny(name, size, channels, levels)
    given = condition_for(model.config, small_batch(model.config, 4))
    cached = model.sample(torch.arange(4), given)
    naive = model.sample_naively(torch.arange(4), given)
    assert torch.equal(cached, naive)
    assert len(cached.unique()) > 1
    assert cached.dtype == torch.float32
    on_a_level = from_levels(to_levels(cached, levels), levels)
    torch.testing.assert_close(cached, on_a_level, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("size", "channels", "levels"), SIZES)
def test_cached_outputs_equal_the_outputs(name: str, size: int, channels: int, levels: int) -> None:
    model = tiny(name, size, channels, levels)
    batch = random_batch(model)
    with evaluating(model):
        wanted = model.outputs(batch.images, batch.labels)
        cached = model.cached_outputs(len(batch), batch.labels)
        known = torch.zeros_like(batch.images)
        turns = turn_of(model, wanted.shape[1])
        for i, j, turn in itertools.product(range(size), range(size), range(model.turns)):
            now = turns == turn
            got = cached(known, i, j, turn)
            torch.testing.assert_close(got[:, now], wanted[:, now, i, j], rtol=1e-4, atol=1e-4)
            colours = turn if model.turns > 1 else slice(None)
            known[:, colours, i, j] = batch.images[:, colours, i, j]


@pytest.mark.parametrize("name", CLASSES)
def test_a_class_changes_likelihood_and_samples_and_both_samplers_agree(name: str) -> None:
    model = tiny(name, 6, 3, 4, classes=3)
    batch = random_batch(model, 3)
    first, second = (torch.full((3,), label) for label in (0, 2))
    nats = [
        model.negative_log_likelihood(replace(batch, labels=labels))["nll_nats"]
        for labels in (first, second)
    ]
    assert (nats[0] != nats[1]).all()
    images = [model.sample(torch.arange(3), x) for x in (first, second)]
    assert not torch.equal(*images)
    mixed = torch.tensor([0, 2, 1])
    for condition in (mixed, None):
        draws = [draw(torch.arange(3), condition) for draw in (model.sample, model.sample_naively)]
        assert torch.equal(*draws)
    with pytest.raises(ValueError, match="3 images need classes from 0 to 2"):
        model.sample(torch.arange(3), torch.tensor([1]))
    with pytest.raises(ValueError, match="needs labels"):
        model.negative_log_likelihood(replace(batch, labels=None))


@pytest.mark.parametrize("levels", [2, 5])
def test_the_likelihood_is_a_sum_of_log_softmaxes(name: str, levels: int) -> None:
    """Compare with explicit loops, for models that draw colours in turns."""
    model = tiny(name, 4, 3, levels).double()
    if model.turns == 1:
        pytest.skip("it gives the colours of a pixel a joint distribution; see its own tests")
    batch = random_batch(model, 2)
    batch = replace(batch, images=batch.images.double())
    outputs = model.outputs(batch.images, batch.labels).detach()
    numbers = outputs.shape[1] // 3
    wanted = [0.0, 0.0]
    for b, c, i, j in itertools.product(range(2), range(3), range(4), range(4)):
        logits = outputs[b, c * numbers : (c + 1) * numbers, i, j].tolist()
        if numbers == 1:
            assert levels == 2
            logits = [0.0, *logits]
        assert len(logits) == levels
        value = round((batch.images[b, c, i, j].item() + 1) / 2 * (levels - 1))
        wanted[b] -= logits[value] - math.log(sum(math.exp(x) for x in logits))
    nats = model.negative_log_likelihood(batch)["nll_nats"]
    assert nats.tolist() == pytest.approx(wanted, rel=1e-5)
    loss = model.likelihood_loss(batch, {})
    assert loss.value.item() == pytest.approx(sum(wanted) / 2 / 48, rel=1e-5)
    assert loss.metrics["nll_nats"].item() == pytest.approx(sum(wanted) / 2, rel=1e-5)
    bits = sum(wanted) / 2 / 48 / math.log(2)
    assert loss.metrics["bits_per_dim"].item() == pytest.approx(bits, rel=1e-5)


def masked(model: torch.nn.Module) -> Iterator[tuple[torch.nn.Parameter, Tensor]]:
    """Yield weights and their masks."""
    for part in model.modules():
        mask = getattr(part, "mask", None)
        if isinstance(mask, Tensor):
            yield part.get_parameter("weight"), mask == 0


@pytest.mark.parametrize("channels", [1, 3])
def test_masked_weights_get_no_gradient_and_have_no_effect(name: str, channels: int) -> None:
    model = tiny(name, 6, channels, 4)
    batch = random_batch(model)
    model.likelihood_loss(batch, {}).value.backward()
    with evaluating(model):
        before = model.outputs(batch.images, batch.labels)
        for weight, hidden in masked(model):
            assert weight.grad is not None
            assert (weight.grad[hidden] == 0).all()
            weight[hidden] = 1e3
        assert torch.equal(model.outputs(batch.images, batch.labels), before)


@pytest.mark.parametrize("training", [True, False])
def test_likelihood_and_samplers_disable_dropout_and_restore_the_mode(
    name: str, training: bool
) -> None:
    dropout = {"dropout": 0.5} if "dropout" in model_module(name).Config.model_fields else {}
    model = tiny(name, 6, 1, 4, **dropout).train(training)
    parts = list(model.modules())
    parts[-1].train(not training)
    modes = [part.training for part in parts]
    batch = random_batch(model)
    given = condition_for(model.config, batch)
    nats = [model.negative_log_likelihood(batch)["nll_nats"] for _ in range(2)]
    assert torch.equal(*nats)
    assert not nats[0].requires_grad
    for draw in (model.sample, model.sample_naively):
        draw(torch.arange(3), given)
        assert [part.training for part in parts] == modes

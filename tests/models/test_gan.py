"""The GAN of 2014 against hand numbers and a second, slow writing of its formulas."""

import math

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from orchestrator.config.job import TrainSection
from orchestrator.models.base import Batch, Clock
from orchestrator.models.gan import Config, Model, _Maxout
from orchestrator.training.step import TrainingStep
from support.layers import layer_at
from support.small import small_batch

SMALL = {"image_size": 8, "generator_units": 16, "maxout_units": 6, "latent_size": 5}


def config(**options: object) -> Config:
    return Config.model_validate({"name": "gan", **options})


def small(**options: object) -> Model:
    torch.manual_seed(0)
    return Model(config(**{**SMALL, **options}))


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


CIFAR = {
    "image_size": 32,
    "channels": 3,
    "generator_units": 8000,
    "second_activation": "sigmoid",
    "output": "linear",
    "latent_distribution": "normal",
    "maxout_units": 1600,
}


@pytest.mark.parametrize(
    ("options", "generator", "discriminator"),
    [({}, 2_503_984, 1_231_441), (CIFAR, 89_395_072, 37_393_601)],
    ids=["MNIST", "CIFAR-10"],
)
def test_networks_have_the_published_number_of_parameters(
    options: dict[str, object], generator: int, discriminator: int
) -> None:
    with torch.device("meta"):
        model = Model(config(**options))
    assert (count(model.generator), count(model.discriminator)) == (generator, discriminator)


def test_maxout_is_the_largest_piece_of_each_unit() -> None:
    torch.manual_seed(0)
    maxout, x = _Maxout(3, 4, 5), torch.randn(2, 3)
    weight, bias = maxout.linear.weight.view(4, 5, 3), maxout.linear.bias.view(4, 5)
    slow = [
        [max((weight[u, p] @ row + bias[u, p]).item() for p in range(5)) for u in range(4)]
        for row in x
    ]
    torch.testing.assert_close(maxout(x), torch.tensor(slow))


@pytest.mark.parametrize("output", ["sigmoid", "linear"])
def test_networks_equal_the_explicit_layers_of_the_paper(output: str) -> None:
    model = small(output=output, second_activation="sigmoid").eval()
    g, z = model.generator, torch.randn(3, 5)
    first, second = (layer_at(g.hidden, path, nn.Linear) for path in "02")
    h = torch.relu(z @ first.weight.T + first.bias)
    h = 1 / (1 + torch.exp(-(h @ second.weight.T + second.bias)))
    y = h @ g.output.weight.T + g.output.bias
    pixels = 1 / (1 + torch.exp(-y))
    expected = 2 * pixels - 1 if output == "sigmoid" else y
    torch.testing.assert_close(g(z), expected.view(3, 1, 8, 8))

    d = model.discriminator.layers
    h = pixels if output == "sigmoid" else y
    for path in ("2.linear", "4.linear"):
        maxout = layer_at(d, path, nn.Linear)
        h = (h @ maxout.weight.T + maxout.bias).view(3, 6, 5).max(2).values
    last = layer_at(d, "6", nn.Linear)
    torch.testing.assert_close(model.discriminator(g(z)), h @ last.weight.T + last.bias)


def test_dropout_zeroes_a_fifth_of_pixels_and_half_of_units_and_scales_the_rest() -> None:
    torch.manual_seed(0)
    model = small(image_size=64, maxout_units=400)
    seen: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    for place in (1, 3, 5):
        model.discriminator.layers[place].register_forward_hook(
            lambda _, x, y, place=place: seen.update({place: (x[0], y)})
        )
    model.discriminator(torch.rand(8, 1, 64, 64))
    for place, keep in ((1, 0.8), (3, 0.5), (5, 0.5)):
        x, y = seen[place]
        kept = y != 0
        assert kept.float().mean().item() == pytest.approx(keep, abs=0.04)
        torch.testing.assert_close(y[kept], x[kept] / keep)


def test_dropout_is_on_while_the_generator_trains() -> None:
    model = small()
    batch = small_batch(model.config)
    shared = model.shared(batch)
    # The weights of the paper are too small to show a difference in a loss of ln 2.
    for p in model.discriminator.parameters():
        nn.init.normal_(p)
    losses = {model.generator_loss(batch, shared).value.item() for _ in range(3)}
    assert len(losses) == 3


def test_weights_are_initialised_uniformly_and_biases_with_zero() -> None:
    torch.manual_seed(0)
    model = Model(config())
    for network, bound in ((model.generator, 0.05), (model.discriminator, 0.005)):
        for name, p in network.named_parameters():
            if name.endswith("bias"):
                assert not p.any()
            elif p.numel() > 10_000:
                assert p.abs().max().item() == pytest.approx(bound, rel=1e-3)
                assert p.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.01)


def test_the_output_bias_starts_at_the_mean_of_the_images() -> None:
    model = small()
    images = torch.full((7, 1, 8, 8), -1.0)
    images[:3, :, 0, 0] = 1  # white in 3 of 7: with half an image added, 3.5 of 8
    model.prepare(Batch(images, torch.arange(7)))
    pixels = (model.generator.output.bias.sigmoid()).view(8, 8)
    assert pixels[0, 0].item() == pytest.approx(3.5 / 8)
    assert pixels[1, 1].item() == pytest.approx(0.5 / 8)


@pytest.mark.parametrize(("name", "bound"), [("uniform", math.sqrt(3)), ("normal", 6.0)])
def test_latents_have_variance_1_in_training_and_in_sampling(name: str, bound: float) -> None:
    model = small(latent_distribution=name)
    seen: list[torch.Tensor] = []
    model.generator.register_forward_hook(lambda _, x, y: seen.append(x[0]))
    model.shared(Batch(torch.zeros(4000, 1, 8, 8), torch.arange(4000)))
    model.sample(torch.arange(4000))
    for z in seen:
        assert z.mean().item() == pytest.approx(0, abs=0.03)
        assert z.var().item() == pytest.approx(1, abs=0.03)
        assert z.abs().max() <= bound
        assert z.abs().max() > 1.7


def test_losses_equal_the_formulas_in_float64() -> None:
    for loss in ("non_saturating", "minimax"):
        model = small(loss=loss).double().eval()
        for p in model.discriminator.parameters():
            nn.init.normal_(p, std=0.3)
        batch = Batch(torch.rand(3, 1, 8, 8).double() * 2 - 1, torch.arange(3))
        shared = model.shared(batch)
        real = 1 / (1 + torch.exp(-model.discriminator(batch.images)))
        fake = 1 / (1 + torch.exp(-model.discriminator(shared["fake"])))
        d = -(real.log().mean() + (1 - fake).log().mean()) / 2
        g = -fake.log().mean() if loss == "non_saturating" else (1 - fake).log().mean()
        assert model.discriminator_loss(batch, shared).value.item() == pytest.approx(
            d.item(), rel=1e-6
        )
        assert model.generator_loss(batch, shared).value.item() == pytest.approx(g.item(), rel=1e-6)


def test_with_a_confident_discriminator_only_the_non_saturating_loss_has_a_gradient() -> None:
    """d/dy log(1 - s(y)) = -s(y) vanishes at y = -8; d/dy -log s(y) = s(y) - 1 does not."""
    for loss, slope in (("minimax", -1 / (1 + math.exp(8))), ("non_saturating", -0.99966465)):
        model = small(loss=loss).eval()
        output = layer_at(model.discriminator, "layers.6", nn.Linear)
        nn.init.zeros_(output.weight)
        nn.init.constant_(output.bias, -8.0)
        batch = small_batch(model.config)
        model.generator_loss(batch, model.shared(batch)).value.backward()
        assert output.bias.grad is not None
        assert output.bias.grad.item() == pytest.approx(slope, rel=1e-5)


def test_learning_rate_and_momentum_follow_the_authors_schedule() -> None:
    for phase in small().phases():
        assert phase.momentum is not None
        at = [phase.momentum(Clock(s, 0.0)) for s in (0, 62_500, 125_000, 10**6)]
        assert at == pytest.approx([0.5, 0.6, 0.7, 0.7])
        rates = [0.1 * phase.learning_rate_factor(Clock(s, 0.0)) for s in (0, 1, 250_000)]
        # 1.000004 ** 250,000 is e but for 2 millionths
        assert rates == pytest.approx([0.1, 0.1 / 1.000004, 0.1 / math.e], rel=1e-5)
        assert 0.1 * phase.learning_rate_factor(Clock(10**9, 0.0)) == pytest.approx(1e-6)


def test_two_steps_are_sgd_with_momentum_on_one_network_and_then_the_other() -> None:
    """Compare with hand-written steps, accumulated as in the authors' code."""
    options = {"dropout": 0.0, "input_dropout": 0.0, "momentum_steps": 2, "learning_rate": 0.5}
    model, twin = (small(**options).double() for _ in range(2))
    batches = [
        Batch(torch.rand(4, 1, 8, 8).double() * 2 - 1, torch.arange(4 * i, 4 * i + 4))
        for i in range(2)
    ]
    step = TrainingStep(model, model.phases(), TrainSection(images=8, batch_size=4))
    velocity = {p: torch.zeros_like(p) for p in twin.parameters()}
    for number, batch in enumerate(batches):
        step(batch, number, number / 2)
        fake = twin.generator(_latents(batch))
        for network, loss in (
            (twin.discriminator, lambda: _d(twin, batch.images, fake.detach())),  # noqa: B023
            (twin.generator, lambda: -twin.discriminator(fake).sigmoid().log().mean()),  # noqa: B023
        ):
            parameters = list(network.parameters())
            for p, gradient in zip(
                parameters, torch.autograd.grad(loss(), parameters), strict=True
            ):
                velocity[p] = (0.5, 0.6)[number] * velocity[p] - 0.5 / 1.000004**number * gradient
                p.data += velocity[p]
    torch.testing.assert_close(model.state_dict(), twin.state_dict(), rtol=1e-5, atol=1e-6)


def _latents(batch: Batch) -> torch.Tensor:
    return ((2 * batch.uniform("latent", 5) - 1) * math.sqrt(3)).double()


def _d(model: Model, real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    yes, no = model.discriminator(real).sigmoid(), model.discriminator(fake).sigmoid()
    loss: torch.Tensor = -(yes.log().mean() + (1 - no).log().mean()) / 2
    return loss


def test_the_generator_runs_once_per_step() -> None:
    model, calls = small(), []
    model.generator.register_forward_hook(lambda *_: calls.append(1))
    batch = small_batch(model.config)
    TrainingStep(model, model.phases(), TrainSection(images=4, batch_size=4))(batch, 0, 0.0)
    assert len(calls) == 1


def test_an_interpolation_goes_in_equal_steps_from_one_latent_to_another() -> None:
    model, seen = small(), []
    model.generator.register_forward_hook(lambda _, x, y: seen.append((x[0], y)))
    rows = model.pictures(small_batch(model.config))
    z_RCZ, images = seen[0][0].view(8, 8, 5), seen[0][1]
    steps = z_RCZ.diff(dim=1)
    torch.testing.assert_close(steps, (z_RCZ[:, -1:] - z_RCZ[:, :1]).expand_as(steps) / 7)
    assert z_RCZ[:, [0, -1]].flatten(0, 1).unique(dim=0).shape == (16, 5)
    assert torch.equal(
        torch.stack([torch.stack(list(r)) for r in rows["interpolation"]]).flatten(0, 1), images
    )


def test_a_minimum_learning_rate_above_the_initial_one_is_rejected() -> None:
    with pytest.raises(ValidationError, match=r"use at most 0\.1"):
        config(minimum_learning_rate=0.2)

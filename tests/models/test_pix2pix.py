"""pix2pix against the numbers of its paper and of a second, slow writing of its formulas."""

import math

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from orchestrator.config.job import TrainSection
from orchestrator.models.base import Batch, Clock
from orchestrator.models.parts.adversarial import linear_decay
from orchestrator.models.pix2pix import Config, Model
from orchestrator.training.step import TrainingStep
from support.layers import layer_at


def config(**options: object) -> Config:
    return Config.model_validate({"name": "pix2pix", **options})


def small(**options: object) -> Config:
    defaults = {"image_size": 16, "filters": 4, "discriminator_filters": 4, "receptive_field": 16}
    return config(**{**defaults, "norm": "instance", **options})


def on_meta(**options: object) -> Model:
    with torch.device("meta"):
        return Model(config(**options))


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("options", "parameters"),
    [
        ({}, 54_413_955),
        ({"norm": "instance"}, 54_409_603),
        ({"image_size": 128}, 41_828_995),
        ({"generator": "encoder_decoder"}, 39_075_459),
    ],
    ids=["U-Net-256", "U-Net-256 with instance norm", "U-Net-128", "encoder-decoder-256"],
)
def test_generators_have_the_published_number_of_parameters(
    options: dict[str, object], parameters: int
) -> None:
    assert count(on_meta(**options).generator) == parameters


@pytest.mark.parametrize(
    ("field", "map_size", "parameters"),
    [
        (1, 256, 9_024),
        (16, 126, 139_585),
        (34, 62, 666_433),
        (70, 30, 2_768_705),
        (142, 14, 6_964_033),
        (286, 6, 11_159_361),
    ],
)
def test_discriminators_have_the_published_size_and_map(
    field: int, map_size: int, parameters: int
) -> None:
    model = on_meta(receptive_field=field)
    assert count(model.discriminator) == parameters
    pair = torch.empty(1, 6, 256, 256, device="meta")
    assert model.discriminator(pair).shape == (1, 1, map_size, map_size)


@pytest.mark.parametrize("field", [1, 16, 34, 70])
def test_a_logit_sees_its_receptive_field_and_nothing_else(field: int) -> None:
    """Measured by the gradient of one logit, without norms, which mix the whole map."""
    model = Model(config(image_size=128, receptive_field=field, discriminator_filters=2))
    layers = [m for m in model.discriminator if not isinstance(m, nn.BatchNorm2d)]
    pair = torch.rand(1, 6, 128, 128, requires_grad=True)
    logits = nn.Sequential(*layers)(pair)
    middle = logits.shape[-1] // 2
    logits[0, 0, middle, middle].backward()
    assert pair.grad is not None
    seen = pair.grad[0].abs().sum(0).nonzero()
    height, width = (seen.max(0).values - seen.min(0).values + 1).tolist()
    assert (height, width) == (field, field)


def test_the_bottleneck_is_one_pixel_and_has_no_norm() -> None:
    model = Model(config(filters=2))
    maps = []
    bottleneck = model.generator.down[-1]
    bottleneck.register_forward_hook(lambda *call: maps.append(call[2].shape))
    with torch.no_grad():
        model.generator(torch.rand(1, 3, 256, 256))
    assert maps == [(1, 16, 1, 1)]
    assert not any(isinstance(m, nn.BatchNorm2d) for m in bottleneck.children())


def test_dropout_is_on_the_three_decoder_levels_next_to_the_bottleneck() -> None:
    """Half of the values that a level hands to the next one are 0, in training and in sampling."""
    model, shares = Model(config(filters=2)), list[float]()
    for depth, block in enumerate(model.generator.up):
        if depth:
            width = layer_at(model.generator, f"up.{depth - 1}.1", nn.ConvTranspose2d).out_channels
            block.register_forward_pre_hook(
                lambda _, x, width=width: shares.append((x[0][:, :width] == 0).double().mean())
            )
    a = torch.rand(4, 3, 256, 256)
    for draw in (model.generator, lambda a: model.sample(torch.arange(4), a)):
        shares.clear()
        draw(a)
        assert shares == pytest.approx([0.5, 0.5, 0.5, 0, 0, 0, 0], abs=0.1)


def test_weights_are_initialised_as_in_the_paper() -> None:
    torch.manual_seed(0)
    model = Model(config(filters=16))
    weights = torch.cat(
        [
            m.weight.flatten()
            for m in model.generator.modules()
            if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)
        ]
    )
    gains = torch.cat(
        [m.weight for m in model.generator.modules() if isinstance(m, nn.BatchNorm2d)]
    )
    assert weights.mean().item() == pytest.approx(0, abs=1e-4)
    assert weights.std().item() == pytest.approx(0.02, rel=0.01)
    assert gains.mean().item() == pytest.approx(1, abs=0.005)
    assert gains.std().item() == pytest.approx(0.02, rel=0.1)


def test_losses_equal_the_formulas_in_float64() -> None:
    torch.manual_seed(0)
    model = Model(small(dropout=0.0)).double()
    a, y = torch.rand(2, 3, 3, 16, 16, dtype=torch.float64) * 2 - 1
    batch = Batch(y, torch.arange(3), a)
    shared = model.shared(batch)
    fake = shared["fake"].detach()

    def probability(image: torch.Tensor) -> torch.Tensor:
        return 1 / (1 + torch.exp(-model.discriminator(torch.cat([a, image], 1)).detach()))

    d = model.discriminator_loss(batch, shared).value.item()
    by_hand = -0.5 * (probability(y).log().mean() + (1 - probability(fake)).log().mean())
    assert d == pytest.approx(by_hand.item(), rel=1e-6)
    g = model.generator_loss(batch, shared).value.item()
    by_hand = -probability(fake).log().mean() + 100 * (y - fake).abs().mean()
    assert g == pytest.approx(by_hand.item(), rel=1e-6)


def test_an_undecided_discriminator_costs_ln_2() -> None:
    """With D = 1/2 everywhere both adversarial losses are ln 2; D's is halved after the sum."""
    model = Model(small(l1_weight=0.0))
    for p in model.discriminator.parameters():
        nn.init.zeros_(p)
    batch = Batch(torch.rand(2, 3, 16, 16), torch.arange(2), torch.rand(2, 3, 16, 16))
    shared = model.shared(batch)
    assert model.discriminator_loss(batch, shared).value.item() == pytest.approx(math.log(2))
    assert model.generator_loss(batch, shared).value.item() == pytest.approx(math.log(2))


def test_the_generator_runs_once_per_step_and_the_discriminator_three_times() -> None:
    model = Model(small())
    calls = {"generator": 0, "discriminator": 0}
    for name in calls:

        def count_call(*_: object, name: str = name) -> None:
            calls[name] += 1

        model.get_submodule(name).register_forward_hook(count_call)
    batch = Batch(torch.rand(2, 3, 16, 16), torch.arange(2), torch.rand(2, 3, 16, 16))
    TrainingStep(model, model.phases(), TrainSection(images=2, batch_size=2))(batch, 0, 0.0)
    assert calls == {"generator": 1, "discriminator": 3}


def test_a_step_is_adam_on_the_discriminator_and_then_on_the_generator() -> None:
    """Compare with a hand-written step with two plain optimizers."""
    torch.manual_seed(0)
    model, twin = (Model(small(dropout=0.0)).double() for _ in range(2))
    twin.load_state_dict(model.state_dict())
    a, y = torch.rand(2, 2, 3, 16, 16, dtype=torch.float64) * 2 - 1
    TrainingStep(model, model.phases(), TrainSection(images=2, batch_size=2))(
        Batch(y, torch.arange(2), a), 0, 0.0
    )

    bce = nn.BCEWithLogitsLoss()
    adam_d, adam_g = (
        torch.optim.Adam(net.parameters(), 2e-4, (0.5, 0.999), foreach=False)
        for net in (twin.discriminator, twin.generator)
    )
    fake = twin.generator(a)
    real_logits = twin.discriminator(torch.cat([a, y], 1))
    fake_logits = twin.discriminator(torch.cat([a, fake.detach()], 1))
    loss = bce(real_logits, torch.ones_like(real_logits))
    loss = (loss + bce(fake_logits, torch.zeros_like(fake_logits))) / 2
    loss.backward()
    adam_d.step()
    logits = twin.discriminator(torch.cat([a, fake], 1))
    loss = bce(logits, torch.ones_like(logits)) + 100 * (fake - y).abs().mean()
    adam_g.zero_grad()
    loss.backward()
    adam_g.step()
    torch.testing.assert_close(model.state_dict(), twin.state_dict(), rtol=1e-5, atol=1e-6)


def test_linear_decay_is_constant_then_falls_to_zero() -> None:
    factor = linear_decay(0.5)
    assert [factor(Clock(0, p)) for p in (0.0, 0.5, 0.75, 1.0)] == [1.0, 1.0, 0.5, 0.0]
    model = Model(small(decay_from=0.5))
    batch = Batch(torch.rand(2, 3, 16, 16), torch.arange(2), torch.rand(2, 3, 16, 16))
    phases = model.phases()
    TrainingStep(model, phases, TrainSection(images=2, batch_size=2))(batch, 3, 0.75)
    assert [p.optimizer.param_groups[0]["lr"] for p in phases] == [1e-4, 1e-4]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 100}, "must be a power of two, at least 16; use 64 or 128"),
        ({"image_size": 64, "receptive_field": 286}, "use one of [1, 16, 34, 70, 142]"),
        ({"dropout": 1.0}, "less than 1"),
    ],
)
def test_impossible_options_are_rejected(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError) as error:
        config(**options)
    assert message in str(error.value)

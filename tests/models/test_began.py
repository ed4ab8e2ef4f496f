"""BEGAN against published counts, sequences worked out by hand and a second writing in float64."""

import re
from collections.abc import Callable, Iterable

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from orchestrator.config.job import TrainSection
from orchestrator.models.base import Batch, Clock
from orchestrator.models.began import Config, Model
from orchestrator.models.parts import noise
from orchestrator.training.step import TrainingStep
from support.layers import layer_at


def config(**options: object) -> Config:
    return Config.model_validate({"name": "began", **options})


def small(**options: object) -> Model:
    torch.manual_seed(0)
    return Model(config(**{"image_size": 16, "filters": 4, "latent": 8, **options}))


def on_meta(**options: object) -> Model:
    with torch.device("meta"):
        return Model(config(**options))


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def batch(size: int = 3, pixels: int = 16) -> Batch:
    images = torch.rand(size, 3, pixels, pixels, generator=torch.Generator().manual_seed(3))
    return Batch(images.double() * 2 - 1, torch.arange(size))


def shapes(module: nn.Module, input: torch.Tensor) -> list[tuple[tuple[int, ...], ...]]:
    """Return (input, output) shapes of every convolution in order, without the batch."""
    seen: list[tuple[tuple[int, ...], ...]] = []
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(
                lambda _, x, y: seen.append((tuple(x[0].shape[1:]), tuple(y.shape[1:])))
            )
    module(input)
    return seen


def follow(
    model: Model, losses: Iterable[tuple[float, float]], first: int = 0
) -> list[list[float]]:
    """Return [k_t, M_global, next learning-rate factor] after each (real, fake)."""
    rate = model.phases()[0].learning_rate_factor
    rows = []
    for step, (real, fake) in enumerate(losses, first):
        means = {"discriminator/real": torch.tensor(real), "generator/fake": torch.tensor(fake)}
        given = model.after_step(means, Clock(step, 0.0))
        assert given["began/learning_rate_factor"].item() == rate(Clock(step + 1, 0.0))
        assert given["began/k_t"].item() == model.k_t.item()
        rows.append(
            [given["began/k_t"].item(), given["began/m_global"].item(), rate(Clock(step + 1, 0.0))]
        )
    return rows


# Counts and maps


@pytest.mark.parametrize(
    ("options", "parameters"),
    [
        ({}, 1_716_611),
        ({"encoder": "input_conv_stride"}, 1_716_611),
        ({"skip_connections": True}, 2_158_979),
        ({"vanishing_residuals": 16_000}, 1_716_611),
        ({"image_size": 128}, 2_011_779),
    ],
)
def test_generators_have_the_known_number_of_parameters(
    options: dict[str, object], parameters: int
) -> None:
    assert count(on_meta(**options).generator) == parameters


@pytest.mark.parametrize(
    ("size", "encoder", "parameters"),
    [
        (64, "conv_stride", 11_192_643),
        (64, "input_conv_stride", 11_340_227),
        (64, "input_conv_conv_stride", 13_405_379),
        (128, "input_conv_stride", 18_796_483),
        (128, "input_conv_conv_stride", 23_221_443),
    ],
)
def test_discriminators_have_the_known_number_of_parameters(
    size: int, encoder: str, parameters: int
) -> None:
    assert count(on_meta(image_size=size, encoder=encoder).discriminator) == parameters


def test_encoder_levels_grow_by_n_channels_and_halve_the_map_down_to_8() -> None:
    encoder = on_meta().discriminator[0]
    out = [y for _, y in shapes(encoder, torch.empty(1, 3, 64, 64, device="meta"))]
    assert out == [
        (128, 64, 64), (128, 32, 32),
        (256, 32, 32), (256, 16, 16),
        (384, 16, 16), (384, 8, 8),
        (512, 8, 8), (512, 8, 8),
    ]  # fmt: skip


def test_decoder_levels_double_the_map_and_skips_double_the_input_channels() -> None:
    z = torch.empty(1, 64, device="meta")
    expected = [
        ((128, 8, 8), (128, 8, 8)), ((128, 8, 8), (128, 8, 8)),
        ((128, 16, 16), (128, 16, 16)), ((128, 16, 16), (128, 16, 16)),
        ((128, 32, 32), (128, 32, 32)), ((128, 32, 32), (128, 32, 32)),
        ((128, 64, 64), (128, 64, 64)), ((128, 64, 64), (128, 64, 64)),
        ((128, 64, 64), (3, 64, 64)),
    ]  # fmt: skip
    assert shapes(on_meta().generator, z) == expected
    for first in (2, 4, 6):
        (_, height, width), out = expected[first]
        expected[first] = ((256, height, width), out)
    assert shapes(on_meta(skip_connections=True).generator, z) == expected


def test_every_level_with_skips_gets_the_innermost_map() -> None:
    model = small(image_size=32, skip_connections=True)
    z, inputs = torch.rand(2, 8), []
    for layer in model.generator.modules():
        if isinstance(layer, nn.Conv2d) and layer.in_channels == 8:
            layer.register_forward_hook(lambda _, x, y: inputs.append(x[0][:, 4:]))
    model.generator(z)
    innermost = model.generator.base(z).view(2, 4, 8, 8)
    assert [x.shape[-1] for x in inputs] == [16, 32]
    for x in inputs:
        times = x.shape[-1] // 8
        assert torch.equal(x, innermost.repeat_interleave(times, 2).repeat_interleave(times, 3))


def test_generator_outputs_are_unbounded_but_samples_are_clamped() -> None:
    model = small()
    nn.init.constant_(model.generator.get_parameter("image.bias"), 7.0)
    assert model.generator(torch.rand(1, 8)).max() > 5
    sample = model.sample(torch.arange(4))
    assert sample.max() == 1


def test_weights_use_glorot_initialisation() -> None:
    torch.manual_seed(0)
    model = Model(config(image_size=16, filters=32))
    convolution = layer_at(model.generator, "convolutions.0", nn.Conv2d)
    bound = (6 / (32 * 9 + 32 * 9)) ** 0.5
    assert convolution.weight.abs().max().item() == pytest.approx(bound, rel=0.01)
    assert convolution.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.03)
    assert not convolution.get_parameter("bias").any()


# Vanishing residuals


def test_a_layer_is_the_identity_at_carry_1_and_unchanged_at_carry_0() -> None:
    model = small(vanishing_residuals=10)
    generator, x = model.generator, torch.randn(2, 4, 8, 8)
    convolution, carry = generator.convolutions[0], generator.get_buffer("carry")
    assert torch.equal(generator.layer(convolution, x), x)
    carry.fill_(0.0)
    torch.testing.assert_close(generator.layer(convolution, x), F.elu(convolution(x)))
    carry.fill_(0.25)
    by_hand = 0.25 * x + 0.75 * F.elu(convolution(x))
    torch.testing.assert_close(generator.layer(convolution, x), by_hand)


def test_at_carry_1_the_whole_generator_is_its_first_map_upsampled() -> None:
    model, z = small(image_size=32, vanishing_residuals=10), torch.rand(2, 8)
    innermost = model.generator.base(z).view(2, 4, 8, 8)
    upsampled = innermost.repeat_interleave(4, 2).repeat_interleave(4, 3)
    torch.testing.assert_close(model.generator(z), model.generator.image(upsampled))


def test_the_carry_falls_linearly_to_0_in_all_networks() -> None:
    model = small(vanishing_residuals=4)
    names = ["generator.carry", "discriminator.0.carry", "discriminator.1.carry"]
    seen = [model.state_dict()["generator.carry"].item()]
    for step in range(6):
        model.after_step({}, Clock(step, 0.0))
        values = {model.state_dict()[name].item() for name in names}
        assert len(values) == 1
        seen.append(values.pop())
    assert seen == [1.0, 0.75, 0.5, 0.25, 0.0, 0.0, 0.0]
    assert not any("carry" in name for name in small().state_dict())


# Losses


@pytest.mark.parametrize("eta", [1, 2])
def test_each_network_gets_only_the_gradient_of_its_own_loss(eta: int) -> None:
    """With SGD at a learning rate of 1 the change of a parameter is its gradient."""
    model = small(eta=eta, filters=3).double()
    model.k_t.fill_(0.3)
    given = batch()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}

    def distance(v: torch.Tensor) -> torch.Tensor:
        per_image = [
            ((a - b).abs() ** eta).mean() for a, b in zip(v, model.discriminator(v), strict=True)
        ]
        return torch.stack(per_image).mean()

    z = 2 * given.uniform("z", 8).double() - 1
    fake = model.generator(z)
    loss_d = distance(given.images) - 0.3 * distance(fake.detach())
    expected = dict(zip(
        [f"discriminator.{name}" for name, _ in model.discriminator.named_parameters()],
        torch.autograd.grad(loss_d, list(model.discriminator.parameters())),
        strict=True,
    ))  # fmt: skip

    phases = model.phases()
    for phase in phases:
        object.__setattr__(phase, "optimizer", torch.optim.SGD(phase.module.parameters(), lr=1.0))
    train = TrainSection(images=3, batch_size=3)
    TrainingStep(model, phases[:1], train)(given, 0, 0.0)
    moved = {name: before[name] - p.detach() for name, p in model.named_parameters()}
    for name, change in moved.items():
        wanted = expected.get(name, torch.zeros_like(change))
        torch.testing.assert_close(change, wanted, rtol=1e-4, atol=1e-7)

    middle = {name: p.detach().clone() for name, p in model.named_parameters()}
    loss_g = distance(model.generator(z))
    gradients = torch.autograd.grad(loss_g, list(model.generator.parameters()))
    TrainingStep(model, phases[1:], train)(given, 0, 0.0)
    for (name, p), gradient in zip(model.generator.named_parameters(), gradients, strict=True):
        change = middle[f"generator.{name}"] - p.detach()
        torch.testing.assert_close(change, gradient, rtol=1e-4, atol=1e-7)
    for name, p in model.discriminator.named_parameters():
        assert torch.equal(middle[f"discriminator.{name}"], p)


def test_the_generators_loss_does_not_change_the_discriminator() -> None:
    """After a step of both phases the discriminator equals one that is trained alone."""
    alone, both = small().double(), small().double()
    for model in (alone, both):
        model.k_t.fill_(0.3)
    train = TrainSection(images=3, batch_size=3)
    TrainingStep(alone, alone.phases()[:1], train)(batch(), 0, 0.0)
    step = TrainingStep(both, both.phases(), train)
    step(batch(), 0, 0.0)
    for name, p in both.discriminator.named_parameters():
        assert torch.equal(p, alone.discriminator.get_parameter(name))
        assert p.grad is None


def test_losses_equal_the_formulas_and_the_step_reports_them() -> None:
    model = small(gamma=0.7, lambda_k=0.1).double()
    model.k_t.fill_(0.25)
    given = batch()
    shared = model.shared(given)

    def distance(v: torch.Tensor) -> float:
        return float((v - model.discriminator(v)).abs().mean())

    real, fake = distance(given.images), distance(shared["fake"])
    d, g = model.discriminator_loss(given, shared), model.generator_loss(given, shared)
    assert d.value.item() == pytest.approx(real - 0.25 * fake, rel=1e-6)
    assert d.metrics["real"].item() == pytest.approx(real, rel=1e-6)
    assert g.value.item() == pytest.approx(fake, rel=1e-6)
    metrics = TrainingStep(model, model.phases(), TrainSection(images=3, batch_size=3))(given, 0, 0)
    real, fake = metrics["discriminator/real"].item(), metrics["generator/fake"].item()
    assert metrics["began/m_global"].item() == pytest.approx(real + abs(0.7 * real - fake))
    assert metrics["began/k_t"].item() == pytest.approx(
        min(1, max(0, 0.25 + 0.1 * (0.7 * real - fake)))
    )
    assert (metrics["began/real"].item(), metrics["began/fake"].item()) == (real, fake)
    assert metrics["began/gamma_real"].item() == pytest.approx(0.7 * real)


def test_z_is_uniform_in_minus_1_to_1_and_the_generator_runs_once_per_step() -> None:
    model, seen, judged = small().float(), [], []
    model.generator.register_forward_hook(lambda _, z, y: seen.append(z[0].detach()))
    model.discriminator.register_forward_hook(lambda _, v, y: judged.append(len(v[0])))
    given = Batch(torch.rand(500, 3, 16, 16), torch.arange(500))
    TrainingStep(model, model.phases(), TrainSection(images=500, batch_size=500))(given, 0, 0.0)
    model.sample(torch.arange(500))
    assert [len(z) for z in seen] == [500, 500]
    assert judged == [1000, 500]
    for z in seen:
        assert z.mean().item() == pytest.approx(0, abs=0.03)
        assert z.var().item() == pytest.approx(1 / 3, rel=0.03)
        assert -1 <= z.min() < -0.99
        assert 0.99 < z.max() <= 1


# The control loop


def test_k_t_and_m_global_follow_a_sequence_computed_by_hand() -> None:
    """gamma 0.5, lambda_k 0.1. k: 0 + .1(.5 - .1), ... ; M: 1 + |.5 - .1|, ..."""
    rows = follow(small(lambda_k=0.1), [(1.0, 0.1), (0.8, 0.3), (0.6, 0.5), (2.0, 0.0), (0.2, 1.1)])
    assert [k for k, _, _ in rows] == pytest.approx([0.04, 0.05, 0.03, 0.13, 0.03])
    assert [m for _, m, _ in rows] == pytest.approx([1.4, 0.9, 0.8, 3.0, 1.2])


def test_k_t_stays_between_0_and_1() -> None:
    rows = follow(
        small(lambda_k=1.0),
        [(0.2, 0.9), (1.0, 0.1), (1.0, 0.1), (1.0, 0.1), (1.0, 0.75), (0.0, 0.9)],
    )
    assert [k for k, _, _ in rows] == pytest.approx([0.0, 0.4, 0.8, 1.0, 0.75, 0.0])


def test_the_learning_rate_is_halved_when_a_windows_mean_is_not_lower_and_only_then() -> None:
    """Windows of 2 steps; fake = gamma real, so that M_global is real.

    Means 1.0, 0.75 (lower), 0.75 (stalled), 0.875 (higher), 0.5, 2.0 (floor 0.2), 2.0.
    """
    model = small(patience_steps=2, learning_rate=1e-3, min_learning_rate=2e-4)
    reals = [0.5, 1.5, 1.0, 0.5, 0.25, 1.25, 1.0, 0.75, 0.5, 0.5, 1.0, 3.0, 2.0, 2.0]
    factors = [factor for _, _, factor in follow(model, [(r, r / 2) for r in reals])]
    assert factors == pytest.approx(
        [1, 1, 1, 1, 1, 0.5, 0.5, 0.25, 0.25, 0.25, 0.25, 0.2, 0.2, 0.2]
    )


def test_no_progress_at_the_minimum_rate_is_a_stall_until_a_window_with_progress() -> None:
    """Windows of 2 steps: 1, then halved by 2 (to the lowest), 3 stalls, 0.5 does not."""
    model = small(patience_steps=2, learning_rate=1e-3, min_learning_rate=5e-4)
    stalled = []
    for step, real in enumerate([1.0, 1.0, 2.0, 2.0, 3.0, 3.0, 3.0, 0.1, 0.1]):
        means = {"discriminator/real": torch.tensor(real), "generator/fake": torch.tensor(0.0)}
        stalled.append(model.after_step(means, Clock(step, 0.0))["began/stalled"].item())
    assert stalled == [0, 0, 0, 0, 0, 1, 1, 0, 0]


def test_an_old_state_without_the_stalled_buffer_loads_as_not_stalled() -> None:
    model, state = small(), small().state_dict()
    del state["stalled"]
    model.load_state_dict(state)
    assert model.stalled.item() == 0
    assert "stalled" not in state


def test_the_optimizers_get_the_halved_rate() -> None:
    model = small(patience_steps=1, learning_rate=1e-3)
    follow(model, [(1.0, 0.5), (2.0, 1.0)])
    phases = model.phases()
    step = TrainingStep(model.double(), phases, TrainSection(images=3, batch_size=3))
    step(batch(), 2, 0.0)
    assert [p.optimizer.param_groups[0]["lr"] for p in phases] == [5e-4, 5e-4]


@pytest.mark.parametrize("cut", [3, 4, 7, 9])
def test_a_model_restored_within_a_window_continues_identically(cut: int) -> None:
    """Restoring also works in a model that has already used another learning rate."""
    options = {"patience_steps": 4, "lambda_k": 0.05, "vanishing_residuals": 10}
    losses = torch.rand(20, 2, generator=torch.Generator().manual_seed(4)).tolist()
    whole = small(**options)
    rows = follow(whole, losses)
    stopped, resumed = small(**options), small(**options)
    follow(stopped, losses[:cut])
    follow(resumed, [(1.0, 0.5)] * 8)
    assert resumed.phases()[0].learning_rate_factor(Clock(8, 0.0)) == 0.5
    resumed.load_state_dict(stopped.state_dict())
    assert follow(resumed, losses[cut:], cut) == rows[cut:]
    assert len({factor for _, _, factor in rows}) > 2
    torch.testing.assert_close(resumed.state_dict(), whole.state_dict(), rtol=0, atol=0)


def test_all_state_is_finite_from_the_start_as_checkpoints_require() -> None:
    for name, value in small(vanishing_residuals=5).state_dict().items():
        assert value.isfinite().all(), name


def test_the_host_reads_the_device_at_most_once_per_window() -> None:
    model, reads = small(patience_steps=5), []

    class Counting(TorchDispatchMode):
        def __torch_dispatch__(
            self,
            func: Callable[..., object],
            types: object,
            args: tuple[object, ...] = (),
            kwargs: dict[str, object] | None = None,
        ) -> object:
            if func is torch.ops.aten._local_scalar_dense.default:
                reads.append(func)
            return func(*args, **(kwargs or {}))

    real, fake = torch.tensor(0.5), torch.tensor(0.2)
    rate = model.phases()[0].learning_rate_factor
    with Counting():  # type: ignore[no-untyped-call]
        for step in range(20):
            rate(Clock(step, 0.0))
            model.after_step({"discriminator/real": real, "generator/fake": fake}, Clock(step, 0.0))
    assert 1 <= len(reads) <= 4


# Pictures and options


def test_pictures_show_reconstructions_and_interpolations() -> None:
    model = small()
    given = Batch(torch.rand(3, 3, 16, 16) * 2 - 1, torch.arange(3))
    pictures = model.pictures(given)
    real, copies, fake, fake_copies = (torch.stack(list(r)) for r in pictures["autoencoded"])
    assert torch.equal(real, given.images)
    torch.testing.assert_close(copies, model.discriminator(real).clamp(-1, 1))
    torch.testing.assert_close(fake_copies, model.discriminator(fake).clamp(-1, 1))
    lines = [torch.stack(list(row)) for row in pictures["interpolation"]]
    assert [len(line) for line in lines] == [8, 8, 8]
    for line, following, image in zip(lines, lines[1:] + lines[:1], fake, strict=True):
        torch.testing.assert_close(line[0], image)
        torch.testing.assert_close(line[-1], following[0])
    z = 2 * noise.uniform(torch.arange(3), "latent", (8,)) - 1
    between = model.generator((z[0] * 4 + z[1] * 3)[None] / 7).clamp(-1, 1)
    torch.testing.assert_close(lines[0][3], between[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 100}, "must be a power of two, at least 16; use 64 or 128"),
        ({"image_size": 8}, "must be a power of two, at least 16; use 16 or 32"),
        ({"gamma": 0.0}, "above 0 and at most 1"),
        ({"gamma": 1.2}, "use 0.3 for sharper images"),
        ({"learning_rate": 1e-5}, "must not be above learning_rate; use 1e-05"),
        ({"eta": 3}, "1 or 2"),
    ],
)
def test_impossible_options_are_rejected(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(message)):
        config(**options)


def test_gamma_1_is_allowed() -> None:
    assert config(gamma=1.0).gamma == 1

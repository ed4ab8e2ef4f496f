"""CycleGAN against the counts of its paper and a second, slow writing of its losses and pool."""

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from orchestrator.config.job import TrainSection
from orchestrator.models.base import Batch, Clock, GenerativeModel, build_model
from orchestrator.models.cyclegan import Config, Model
from orchestrator.models.parts.image_pool import ImagePool
from orchestrator.training.step import TrainingStep
from support.layers import layer_at
from support.small import small_batch, small_config


def config(**options: object) -> Config:
    return Config.model_validate({"name": "cyclegan", **options})


def small(**options: object) -> Model:
    torch.manual_seed(0)
    model = build_model(small_config("cyclegan", **options))
    assert isinstance(model, Model)
    return model


def on_meta(**options: object) -> Model:
    with torch.device("meta"):
        return Model(config(**options))


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(("blocks", "parameters"), [(9, 11_378_179), (6, 7_837_699)])
def test_networks_have_the_published_number_of_parameters(blocks: int, parameters: int) -> None:
    model = on_meta(blocks=blocks)
    assert [count(g) for g in model.generators.values()] == [parameters] * 2
    assert [count(d) for d in model.discriminators.values()] == [2_764_737] * 2
    if blocks == 9:
        assert count(model) == 28_285_832


def test_a_generator_halves_its_map_twice_and_doubles_it_back() -> None:
    model, shapes = on_meta(), []
    generator = model.inference_module()
    for layer in generator.children():
        layer.register_forward_hook(lambda *call: shapes.append(tuple(call[2].shape[1:])))
    generator(torch.empty(1, 3, 256, 256, device="meta"))
    changes = [shape for i, shape in enumerate(shapes) if not i or shape != shapes[i - 1]]
    assert changes == [
        (64, 256, 256),
        (128, 128, 128),
        (256, 64, 64),
        (128, 128, 128),
        (64, 256, 256),
        (3, 256, 256),
    ]


def test_the_discriminator_gives_30x30_scores_of_70x70_pixels() -> None:
    """Measured by the gradient of one score, without norms, which mix the whole map."""
    model = Model(config(image_size=256, filters=1, blocks=1, discriminator_filters=2))
    discriminator = layer_at(model.discriminators, "a", nn.Sequential)
    layers = [m for m in discriminator if not isinstance(m, nn.InstanceNorm2d)]
    image = torch.rand(1, 3, 256, 256, requires_grad=True)
    scores = nn.Sequential(*layers)(image)
    assert scores.shape == (1, 1, 30, 30)
    scores[0, 0, 15, 15].backward()
    assert image.grad is not None
    seen = image.grad[0].abs().sum(0).nonzero()
    assert (seen.max(0).values - seen.min(0).values + 1).tolist() == [70, 70]


def test_residual_blocks_and_7x7_convolutions_reflect_at_the_border() -> None:
    """A constant image stays constant up to the border, unlike with zero padding."""
    first = small().inference_module()[0]  # type: ignore[index]
    block = small().inference_module()[9].layers[0]  # type: ignore[index]
    for conv in (first, block):
        out = conv(torch.ones(1, conv.in_channels, 8, 8))
        torch.testing.assert_close(out, out[:, :, 4:5, 4:5].expand_as(out))


def test_losses_equal_the_formulas_in_float64() -> None:
    model = small(pool_size=0).double()
    a, b = torch.rand(2, 3, 3, 16, 16, dtype=torch.float64) * 2 - 1
    batch = Batch(b, torch.arange(3), a)
    with torch.no_grad():
        g, f = model.generators["a_to_b"], model.generators["b_to_a"]
        d_a, d_b = model.discriminators["a"], model.discriminators["b"]
        gan = ((d_b(g(a)) - 1) ** 2).mean() + ((d_a(f(b)) - 1) ** 2).mean()
        cycle = (f(g(a)) - a).abs().mean() + (g(f(b)) - b).abs().mean()
        identity = (f(a) - a).abs().mean() + (g(b) - b).abs().mean()
        loss_a = ((d_a(a) - 1) ** 2).mean() / 2 + (d_a(f(b)) ** 2).mean() / 2
        loss_b = ((d_b(b) - 1) ** 2).mean() / 2 + (d_b(g(a)) ** 2).mean() / 2
    generators = model.generators_loss(batch, {}).value.item()
    assert generators == pytest.approx((gan + 10 * cycle + 5 * identity).item(), rel=1e-6)
    discriminators = model.discriminators_loss(batch, {}).value.item()
    assert discriminators == pytest.approx((loss_a + loss_b).item(), rel=1e-6)


def test_generators_are_trained_first_and_get_no_gradient_from_the_discriminators_phase() -> None:
    model = small(pool_size=0)  # a pool lets no gradient through in any case
    assert [phase.name for phase in model.phases()] == ["generators", "discriminators"]
    batch = small_batch(model.config)
    model.discriminators_loss(batch, {}).value.backward()
    assert all(p.grad is None for p in model.generators.parameters())
    assert all(p.grad is not None for p in model.discriminators.parameters())


def test_discriminators_are_trained_on_images_from_the_pools() -> None:
    """A full pool with a draw below 1/2 returns a stored image instead of the newest."""
    model = small(pool_size=1)
    batch = small_batch(model.config, 8)
    draws = batch.uniform("pool b", 2)[:, 0]
    old = next(i for i in range(8) if draws[i] < 0.5)
    part = batch.split(1)[old]
    pool = layer_at(model.pools, "b", ImagePool)
    pool.stored.fill_(1)
    pool.images.fill_(0.25)
    judged: list[torch.Tensor] = []
    model.discriminators["b"].register_forward_hook(lambda *call: judged.append(call[1][0]))
    model.discriminators_loss(part, {})
    assert any(torch.equal(image, torch.full_like(image, 0.25)) for image in judged)
    translation = model.sample(part.positions, part.condition)
    torch.testing.assert_close(pool.images, translation)


def by_hand(pool: list[int], size: int, new: int, draws: list[float]) -> int:
    """The paper's pool on plain numbers."""
    if len(pool) < size:
        pool.append(new)
        return new
    if draws[0] >= 0.5:
        return new
    place = int(draws[1] * size)
    old, pool[place] = pool[place], new
    return old


def shown(pool: ImagePool, numbers: range, draws: torch.Tensor) -> list[int]:
    images = torch.tensor(list(numbers), dtype=torch.float32).view(-1, 1, 1, 1)
    back = pool.exchange(images.expand(-1, 1, 2, 2), draws[numbers.start : numbers.stop])
    return [int(value) for value in back[:, 0, 0, 0]]


@pytest.mark.parametrize("part", [1, 3, 40])
def test_a_pool_matches_a_hand_written_one_for_any_microbatch(part: int) -> None:
    size, total = 5, 40
    draws = Batch(torch.empty(total, 0), torch.arange(total)).uniform("pool", 2)
    pool, expected = ImagePool(size, 1, 2), []
    stored: list[int] = []
    for number in range(total):
        expected.append(by_hand(stored, size, number, draws[number].tolist()))
    got = [
        n for i in range(0, total, part) for n in shown(pool, range(i, min(i + part, 40)), draws)
    ]
    assert got == expected
    assert got[:size] == list(range(size))
    assert pool.images[:, 0, 0, 0].tolist() == stored
    assert pool.stored.item() == size


def test_a_full_pool_returns_an_older_image_half_the_time_and_uniformly() -> None:
    total, size = 2000, 50
    draws = Batch(torch.empty(total, 0), torch.arange(total)).uniform("pool", 2)
    back = shown(ImagePool(size, 1, 2), range(total), draws)
    ages = [number - got for number, got in enumerate(back)][size:]
    exchanged = [age for age in ages if age]
    assert len(exchanged) / len(ages) == pytest.approx(0.5, abs=0.04)  # 3.5 deviations
    # A stored image waits for an exchange (1/2) of its own place (1/50): 100 images on average.
    assert sum(exchanged) / len(exchanged) == pytest.approx(100, rel=0.15)


def train(model: GenerativeModel, steps: range) -> None:
    """Train with fresh optimizers, so that only the model's state matters."""
    for step in steps:
        section = TrainSection(images=4, batch_size=4)
        batch = small_batch(model.config, 4, first=4 * step)
        TrainingStep(model, model.phases(), section)(batch, step, 0.0)


def test_training_continues_exactly_from_a_state_dict_with_the_pools() -> None:
    model = small(pool_size=3)
    train(model, range(2))
    assert [layer_at(model.pools, side, ImagePool).stored.item() for side in "ab"] == [3, 3]
    twin = small(pool_size=3)
    twin.load_state_dict({name: value.clone() for name, value in model.state_dict().items()})
    for one in (model, twin):
        train(one, range(2, 4))
    for name, value in model.state_dict().items():
        assert torch.equal(value, twin.state_dict()[name]), name


def test_the_pools_draws_differ_by_set_and_do_not_depend_on_the_microbatch() -> None:
    batch = small_batch(small_config("cyclegan"), 8)
    a, b = batch.uniform("pool a", 2), batch.uniform("pool b", 2)
    assert not torch.equal(a, b)
    states = []
    for size in (8, 3):
        model = small(pool_size=2).double()
        for part in batch.split(size):
            model._past("a", part.images.double(), part)
        states.append(model.pools["a"].images)
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)


def test_a_sample_is_from_the_generator_from_a_to_b_and_pictures_show_both_cycles() -> None:
    model = small()
    batch = small_batch(model.config, 2)
    a, b = batch.condition, batch.images
    assert a is not None
    g, f = model.generators["a_to_b"], model.generators["b_to_a"]
    with torch.no_grad():
        torch.testing.assert_close(model.sample(torch.arange(len(a)), a), g(a))
        rows = model.pictures(batch)["cycle"]
        wanted = [(a, g(a), f(g(a))), (b, f(b), g(f(b)))]
    assert len(rows) == 4
    for index, row in enumerate(rows):
        expected = [column[index // 2] for column in wanted[index % 2]]
        torch.testing.assert_close(list(row), expected)


def test_the_learning_rate_falls_to_zero_over_the_second_half() -> None:
    for phase in small().phases():
        rates = [phase.learning_rate_factor(Clock(0, share)) for share in (0.0, 0.5, 0.75, 1.0)]
        assert rates == [1.0, 1.0, 0.5, 0.0]
        assert phase.optimizer.param_groups[0]["lr"] == 2e-4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 130}, "must be a multiple of 4, at least 16; use 128 or 132"),
        ({"image_size": 16}, "is too large for image_size 16; use one of [16, 34]"),
    ],
)
def test_impossible_options_are_rejected(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError) as error:
        config(**{"receptive_field": 70, **options})
    assert message in str(error.value)

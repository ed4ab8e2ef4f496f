"""DCGAN against the numbers of its codes and a second, slow writing of its formulas."""

from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn import functional as F

from orchestrator.config.job import TrainSection
from orchestrator.models.base import Batch
from orchestrator.models.dcgan import Config, Model
from orchestrator.training.step import TrainingStep
from support.layers import layer_at
from support.small import small_batch


def config(**options: object) -> Config:
    return Config.model_validate({"name": "dcgan", **options})


def small(**options: object) -> Model:
    torch.manual_seed(0)
    return Model(config(**{"image_size": 16, "filters": 4, "latent_size": 5, **options}))


def on_meta(**options: object) -> Model:
    with torch.device("meta"):
        return Model(config(**options))


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def norms(module: nn.Module) -> list[nn.BatchNorm1d | nn.BatchNorm2d]:
    return [m for m in module.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]


ORIGINAL = {"architecture": "original", "filters": 128}


@pytest.mark.parametrize(
    ("options", "generator", "discriminator"),
    [
        ({}, 3_576_704, 2_765_568),
        ({"channels": 1}, 3_574_656, 2_763_520),
        (ORIGINAL, 18_885_760, 17_232_768),
    ],
    ids=["ports", "ports, grey", "original"],
)
def test_networks_have_the_published_number_of_parameters(
    options: dict[str, object], generator: int, discriminator: int
) -> None:
    model = on_meta(**options)
    assert (count(model.generator), count(model.discriminator)) == (generator, discriminator)


@pytest.mark.parametrize(("options", "width"), [({}, 64), (ORIGINAL, 128)])
def test_maps_have_the_published_sizes(options: dict[str, object], width: int) -> None:
    model = on_meta(**options)
    shapes: list[tuple[int, ...]] = []
    for network in (model.generator, model.discriminator):
        for layer in network.layers:
            layer.register_forward_hook(lambda _, x, y: shapes.append(tuple(y.shape[1:])))
    image = model.generator(torch.empty(2, 100, 1, 1, device="meta"), None)
    model.discriminator(image, None)
    down = [(width, 32, 32), (2 * width, 16, 16), (4 * width, 8, 8), (8 * width, 4, 4)]
    assert shapes == [*reversed(down), (3, 64, 64), *down, (1, 1, 1)]


def test_the_original_normalises_its_stem_per_unit() -> None:
    assert next(n.num_features for n in norms(on_meta(**ORIGINAL).generator)) == 16_384
    assert [n.num_features for n in norms(on_meta().generator)] == [512, 256, 128, 64]
    assert [n.num_features for n in norms(on_meta().discriminator)] == [128, 256, 512]


def test_weights_are_initialised_as_in_the_paper() -> None:
    torch.manual_seed(0)
    model = Model(config(filters=32))
    weights = [m.weight for m in model.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    flat, gains = (
        torch.cat([w.flatten() for w in weights]),
        torch.cat([n.weight for n in norms(model)]),
    )
    assert flat.mean().item() == pytest.approx(0, abs=1e-4)
    assert flat.std().item() == pytest.approx(0.02, rel=0.01)
    assert gains.mean().item() == pytest.approx(1, abs=0.005)
    assert gains.std().item() == pytest.approx(0.02, rel=0.1)
    assert not any(n.bias.any() for n in norms(model))


def normalised(x: torch.Tensor, norm: nn.BatchNorm2d) -> torch.Tensor:
    mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), correction=0, keepdim=True)
    gain, bias = norm.weight[:, None, None], norm.bias[:, None, None]
    return (x - mean) / (var + norm.eps).sqrt() * gain + bias


def by_hand(model: Model, x: torch.Tensor) -> torch.Tensor:
    """Compute the probability of ``x`` being real, as in the ports' small discriminator."""
    first, second, last = weights(model)
    norm = layer_at(model.discriminator, "layers.1.1", nn.BatchNorm2d)
    h = F.leaky_relu(F.conv2d(x, first, stride=2, padding=1), 0.2)
    h = normalised(F.conv2d(h, second, stride=2, padding=1), norm)
    h = F.leaky_relu(h, 0.2)
    logits = (h * last).sum((1, 2, 3))
    return 1 / (1 + torch.exp(-logits))


def weights(model: Model) -> list[torch.Tensor]:
    """The weights of the three convolutions of the small discriminator."""
    paths = ("layers.0.0", "layers.1.0", "layers.2")
    return [layer_at(model.discriminator, path, nn.Conv2d).weight for path in paths]


def with_larger_weights(model: Model) -> Model:
    for p in model.discriminator.parameters():
        if p.dim() == 4:
            nn.init.normal_(p, std=0.2)
    return model


def test_losses_equal_the_formulas_with_separate_batch_statistics() -> None:
    model = with_larger_weights(small()).double()
    data = small_batch(model.config)
    batch = replace(data, images=data.images.double())
    shared = model.shared(batch)
    real, fake = by_hand(model, batch.images), by_hand(model, shared["fake"])
    d, g = -(real.log().mean() + (1 - fake).log().mean()), -fake.log().mean()
    found = model.discriminator_loss(batch, shared).value
    torch.testing.assert_close(found.double(), d, rtol=1e-6, atol=0)
    found = model.generator_loss(batch, shared).value
    torch.testing.assert_close(found.double(), g, rtol=1e-6, atol=0)

    mixed = by_hand(model, torch.cat([batch.images, shared["fake"]]))
    other = -(mixed[:4].log().mean() + (1 - mixed[4:]).log().mean())
    assert abs(other - d) > 0.01  # one concatenated pass is another loss


def test_running_statistics_are_updated_by_real_and_then_by_generated_images() -> None:
    model = small()
    batch = small_batch(model.config)
    shared = model.shared(batch)
    model.discriminator_loss(batch, shared)
    mean, (first, second, _) = torch.zeros(8), weights(model)
    for images in (batch.images, shared["fake"]):
        h = F.leaky_relu(F.conv2d(images, first, stride=2, padding=1), 0.2)
        h = F.conv2d(h, second, stride=2, padding=1)
        mean = 0.9 * mean + 0.1 * h.mean((0, 2, 3))
    norm = layer_at(model.discriminator, "layers.1.1", nn.BatchNorm2d)
    torch.testing.assert_close(norm.running_mean, mean)


def test_a_step_is_adam_with_l2_on_the_discriminator_and_then_on_the_generator() -> None:
    """Compare with a hand-written step; the generator uses the updated discriminator."""
    model, twin = (small(weight_decay=0.1).double() for _ in range(2))
    data = small_batch(model.config)
    batch = replace(data, images=data.images.double())
    TrainingStep(model, model.phases(), TrainSection(images=4, batch_size=4))(batch, 0, 0.0)

    z = (2 * batch.uniform("latent", 5) - 1).double()[:, :, None, None]
    fake = twin.generator(z, None)

    def discriminator_loss() -> torch.Tensor:
        real = by_hand(twin, batch.images)
        return -real.log().mean() - (1 - by_hand(twin, fake.detach())).log().mean()

    def generator_loss() -> torch.Tensor:
        return -by_hand(twin, fake).log().mean()

    for network, loss in (
        (twin.discriminator, discriminator_loss),
        (twin.generator, generator_loss),
    ):
        parameters = list(network.parameters())
        gradients = torch.autograd.grad(loss(), parameters)
        for p, gradient in zip(parameters, gradients, strict=True):
            full = gradient + 0.1 * p.data
            p.data -= 2e-4 * full / (full.abs() + 1e-8)  # Adam's first step
    for name, p in model.named_parameters():
        torch.testing.assert_close(p, twin.get_parameter(name), rtol=1e-4, atol=2e-6)


def test_the_generator_runs_once_per_step_and_the_discriminator_three_times() -> None:
    model = small()
    calls = {"generator": 0, "discriminator": 0}
    for name in calls:

        def count_call(*_: object, name: str = name) -> None:
            calls[name] += 1

        model.get_submodule(name).register_forward_hook(count_call)
    batch = small_batch(model.config)
    TrainingStep(model, model.phases(), TrainSection(images=4, batch_size=4))(batch, 0, 0.0)
    assert calls == {"generator": 1, "discriminator": 3}


@pytest.mark.parametrize("architecture", ["ports", "original"])
def test_the_class_reaches_every_layer_as_constant_maps(architecture: str) -> None:
    model = small(architecture=architecture, classes=3)
    inputs: list[torch.Tensor] = []
    for network in (model.generator, model.discriminator):
        for layer in network.layers:
            layer.register_forward_hook(lambda _, x, y: inputs.append(x[0]))
    labels = torch.tensor([2, 0])
    batch = Batch(torch.zeros(2, 3, 16, 16), torch.arange(2), labels=labels)
    model.generator_loss(batch, model.shared(batch))
    assert len(inputs) == 6
    for x in inputs:
        maps = x[:, -3:]
        assert (maps[0, 2] == 1).all()
        assert (maps[1, 0] == 1).all()
        assert maps.sum() == 2 * x.shape[2] * x.shape[3]


def test_the_label_changes_the_sample_of_the_same_noise() -> None:
    model = small(classes=3)
    images = [model.sample(torch.arange(2), torch.tensor(labels)) for labels in ([0, 1], [2, 1])]
    assert not torch.allclose(images[0][0], images[1][0])
    torch.testing.assert_close(images[0][1], images[1][1])


def test_classes_are_drawn_if_none_are_given() -> None:
    model, seen = small(classes=3), []
    model.generator.register_forward_hook(lambda _, x, y: seen.append(x[1]))
    model.sample(torch.arange(300))
    assert (seen[0].sum(0) > 70).all()


@pytest.mark.parametrize(
    "labels", [torch.tensor([0, 3]), torch.tensor([-1, 0]), torch.tensor([0]), torch.zeros(2)]
)
def test_wrong_classes_are_rejected(labels: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"classes from 0 to 2"):
        small(classes=3).sample(torch.arange(2), labels)


def test_a_training_batch_without_labels_is_rejected() -> None:
    with pytest.raises(ValueError, match="needs labels"):
        small(classes=3).shared(small_batch(config(image_size=16)))


def test_a_sample_does_not_depend_on_others_in_its_batch() -> None:
    model, seen = small(), []
    model.shared(small_batch(model.config))  # running statistics that are not the first ones
    model.generator.register_forward_hook(lambda _, x, y: seen.append((x[0], y)))
    images = model.sample(torch.arange(4))
    assert model.generator.training
    alone = model.generator.eval()(seen[0][0][:1], None)
    torch.testing.assert_close(alone, images[:1])


@pytest.mark.parametrize(("name", "variance"), [("uniform", 1 / 3), ("normal", 1.0)])
def test_latents_follow_the_configured_distribution(name: str, variance: float) -> None:
    model, seen = small(latent_distribution=name), []
    model.generator.register_forward_hook(lambda _, x, y: seen.append(x[0]))
    model.shared(Batch(torch.zeros(2000, 3, 16, 16), torch.arange(2000)))
    model.sample(torch.arange(2000))
    for z in seen:
        assert z.mean().item() == pytest.approx(0, abs=0.04)
        assert z.var().item() == pytest.approx(variance, rel=0.05)
        assert (z.abs().max() <= 1) == (name == "uniform")


def test_each_row_of_the_interpolation_keeps_its_class() -> None:
    model, seen = small(classes=3), []
    model.generator.register_forward_hook(lambda _, x, y: seen.append(x[1].argmax(1)))
    rows = model.pictures(small_batch(model.config))
    assert [len(row) for row in rows["interpolation"]] == [8] * 8
    assert seen[0].view(8, 8).tolist() == [[row % 3] * 8 for row in range(8)]


def test_sizes_that_do_not_halve_down_to_four_pixels_are_rejected() -> None:
    with pytest.raises(ValidationError, match="use 16 or 32"):
        config(image_size=28)

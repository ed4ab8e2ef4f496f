"""The autoencoder against its published sizes and a second, slow writing of its formulas."""

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from orchestrator.config.job import TrainSection
from orchestrator.models.autoencoder import Config, Model
from orchestrator.models.base import Batch, ModelConfig
from orchestrator.models.parts.coding import map_sizes
from orchestrator.training.step import TrainingStep
from support.layers import layer_at
from support.small import small_batch


def config(**options: object) -> Config:
    return Config.model_validate({"name": "autoencoder", **options})


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("options", "parameters"),
    [({}, 2_837_314), ({"hidden": (400,), "latent": 20}, 644_804)],
    ids=["784-1000-500-250-30", "784-400-20"],
)
def test_dense_networks_have_the_published_number_of_parameters(
    options: dict[str, object], parameters: int
) -> None:
    with torch.device("meta"):
        assert count(Model(config(**options)).autoencoder) == parameters


@pytest.mark.parametrize(
    ("size", "maps"),
    [(28, [14, 7]), (32, [16, 8, 4]), (64, [32, 16, 8, 4]), (36, [18, 9])],
)
def test_convolutions_halve_the_map_and_the_decoder_restores_the_image_size(
    size: int, maps: list[int]
) -> None:
    model = Model(config(image_size=size, architecture="convolutional", filters=2, channels=3))
    seen: dict[str, list[tuple[int, ...]]] = {"encoder": [], "decoder": []}
    for name, kind in (("encoder", nn.Conv2d), ("decoder", nn.ConvTranspose2d)):
        for layer in model.autoencoder[name].modules():
            if isinstance(layer, kind):
                layer.register_forward_hook(
                    lambda *call, name=name: seen[name].append(tuple(call[2].shape[1:]))
                )
    assert model.reconstruct(torch.zeros(2, 3, size, size)).shape == (2, 3, size, size)
    widths = [2 * 2**level for level in range(len(maps))]
    assert seen["encoder"] == [(w, m, m) for w, m in zip(widths, maps, strict=True)]
    assert seen["decoder"] == [*reversed(seen["encoder"][:-1]), (3, size, size)]
    assert map_sizes(size) == [size, *maps]


def test_the_loss_is_the_squared_error_summed_over_an_image() -> None:
    torch.manual_seed(0)
    model = Model(config(image_size=8, hidden=(16,), latent=3)).double()
    batch = small_batch(model.config)
    images = batch.images.double()
    batch = Batch(images, batch.positions)
    first, last, up, out = (
        layer_at(model.autoencoder, path, nn.Linear)
        for path in ("encoder.1", "encoder.3", "decoder.0", "decoder.2")
    )
    squares = []
    for image in images:
        code = last.weight @ (first.weight @ image.flatten() + first.bias).clamp(min=0) + last.bias
        again = (out.weight @ (up.weight @ code + up.bias).clamp(min=0) + out.bias).tanh()
        squares.append(sum((a - b) ** 2 for a, b in zip(image.flatten(), again, strict=True)))
    by_hand = sum(squares).item() / len(squares)
    loss = model.reconstruction_loss(batch, model.shared(batch))
    assert loss.value.item() == pytest.approx(by_hand, rel=1e-9)
    assert loss.metrics["mse"].item() == pytest.approx(by_hand / 64, rel=1e-9)


def test_the_loss_of_the_codes_is_their_density_under_a_diagonal_gaussian() -> None:
    model = Model(config(image_size=8, hidden=(16,), latent=3))
    nn.init.uniform_(model.codes.mean, -2, 2)
    nn.init.uniform_(model.codes.log_deviation, -1, 1)
    codes = 3 * torch.randn(5, 3)
    normal = torch.distributions.Normal(model.codes.mean, model.codes.log_deviation.exp())
    torch.testing.assert_close(model.codes.nats(codes), -normal.log_prob(codes).sum(1))


def test_the_gaussian_converges_to_mean_and_deviation_of_the_codes() -> None:
    torch.manual_seed(0)
    model = Model(config(image_size=8, hidden=(16,), latent=3))
    adam = model.phases()[0].optimizer
    codes = torch.randn(64, 3) * torch.tensor([0.3, 1.0, 6.0]) + torch.tensor([4.0, 0.0, -5.0])
    batch = small_batch(model.config)
    for _ in range(1000):
        model.codes_loss(batch, {"codes": codes}).value.backward()
        adam.step()
        adam.zero_grad()
    expected = codes.mean(0), codes.std(0, correction=0)
    torch.testing.assert_close(model.codes.mean.detach(), expected[0], rtol=0.01, atol=0.02)
    torch.testing.assert_close(
        model.codes.log_deviation.detach().exp(), expected[1], rtol=0.02, atol=0
    )


def test_the_gaussian_of_the_codes_does_not_train_the_encoder() -> None:
    model = Model(config(image_size=8, hidden=(16,), latent=3))
    batch = small_batch(model.config)
    model.codes_loss(batch, model.shared(batch)).value.backward()
    assert {p.grad for p in model.autoencoder.parameters()} == {None}


def test_samples_are_decoded_codes_of_the_gaussian() -> None:
    model = Model(config(image_size=8, hidden=(16,), latent=3))
    nn.init.constant_(model.codes.mean, 2.0)
    nn.init.constant_(model.codes.log_deviation, -30.0)
    images = model.sample(torch.arange(2))
    expected = model.autoencoder["decoder"](torch.full((2, 3), 2.0)).detach()
    torch.testing.assert_close(images, expected)


def test_a_few_images_are_memorised() -> None:
    torch.manual_seed(0)
    model = Model(config(image_size=8, hidden=(64,), latent=8))
    batch = small_batch(model.config)
    batch = Batch(batch.images.sign(), batch.positions)
    step = TrainingStep(model, model.phases(), TrainSection(images=4, batch_size=4))
    for number in range(300):
        step(batch, number, 0.0)
    assert (model.reconstruct(batch.images) - batch.images).square().mean().item() < 0.01


def test_a_list_of_widths_is_accepted_and_numbers_stay_strict() -> None:
    given = {"name": "autoencoder", "hidden": [20, 10]}
    assert ModelConfig.model_validate(given).model_dump()["hidden"] == (20, 10)
    with pytest.raises(ValidationError, match="hidden"):
        ModelConfig.model_validate({**given, "hidden": ["20"]})


def test_sizes_that_cannot_be_halved_twice_are_rejected() -> None:
    with pytest.raises(ValidationError) as error:
        config(image_size=30, architecture="convolutional")
    assert "use dense, or image_size 32" in str(error.value)

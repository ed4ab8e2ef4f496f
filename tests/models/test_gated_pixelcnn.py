"""Gated PixelCNN: its count, that it sees all of the context, and its layer written out."""

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from orchestrator.models.gated_pixelcnn import Config, Model, _Layer


def config(**options: object) -> Config:
    return Config.model_validate({"name": "gated_pixelcnn", **options})


def small(**options: object) -> Model:
    torch.manual_seed(0)
    shape = {"image_size": 6, "channels": 1, "levels": 2, "hidden": 5, "layers": 3}
    return Model(config(**{**shape, **options}))


def layers(model: Model) -> list[_Layer]:
    return [layer for layer in model.layers if isinstance(layer, _Layer)]


def test_the_reference_with_12_layers_of_32_channels_has_the_known_number_of_parameters() -> None:
    """By hand: 7,328 in the first layer, 21,728 in each other, 1,089 in the head."""
    with torch.device("meta"):
        model = Model(config(image_size=28, channels=1, levels=2))
    assert sum(p.numel() for p in model.parameters()) == 7_328 + 11 * 21_728 + 1_089 == 247_425


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("row", "column"), [(11, 0), (11, 11), (6, 6), (11, 5), (1, 0), (0, 11)])
def test_a_pixel_sees_every_earlier_pixel_and_no_later_one(
    row: int, column: int, channels: int
) -> None:
    """10 layers at 12x12, which include PixelCNN's blind spot."""
    model = small(image_size=12, layers=10, hidden=6, channels=channels).double()
    images = torch.rand(1, channels, 12, 12, dtype=torch.float64, requires_grad=True)
    model.outputs(images)[0, 0, row, column].backward()
    assert images.grad is not None
    seen = (images.grad[0] != 0).all(0).flatten()
    context = row * 12 + column
    assert seen[:context].all(), f"{int(seen[:context].sum())} of {context}"
    assert (images.grad[0] == 0).all(0).flatten()[context:].all()


def test_a_colour_sees_the_colours_before_it_in_its_own_pixel() -> None:
    model = small(channels=3, levels=4, hidden=10).double()  # groups of unequal size
    for conv in (layers(model)[-1].out, model.head[1]):
        nn.init.constant_(conv.get_parameter("bias"), 3.0)  # keeps every ReLU of the head open
    images = torch.rand(1, 3, 6, 6, dtype=torch.float64, requires_grad=True)
    outputs = model.outputs(images)[0, :, 2, 3].view(3, 4).sum(1)
    for colour in range(3):
        (gradient,) = torch.autograd.grad(outputs[colour], images, retain_graph=True)
        assert (gradient[0, :, 2, 3] != 0).tolist() == [c < colour for c in range(3)]


def test_a_layer_is_equation_4_written_out_with_loops() -> None:
    """First layer, one colour, class 1: value and gate of every pixel in both stacks."""
    model = small(classes=2, first_kernel=3, layers=1, hidden=2).double()
    (layer,), size = layers(model), 6
    assert layer.label is not None
    vertical_bias, link_bias, horizontal_bias, out_bias = (
        part.get_parameter("bias")
        for part in (layer.vertical, layer.link, layer.horizontal, layer.out)
    )
    image = torch.randn(size, size, dtype=torch.float64)
    label = torch.tensor([1])
    with torch.no_grad():
        v, h = layer(image[None, None], image[None, None], label)
        of_v, of_h = layer.label.weight[1].chunk(2)

        def at(i: int, j: int) -> Tensor | float:
            return image[i, j] if 0 <= i < size and 0 <= j < size else 0.0

        def gated(x: Tensor) -> Tensor:
            return torch.tanh(x[:2]) / (1 + torch.exp(-x[2:]))

        def vertical(i: int, j: int) -> Tensor:
            x = vertical_bias + of_v
            for k in range(2):
                for m in range(3):
                    x = x + layer.vertical.weight[:, 0, k, m] * at(i + k - 1, j + m - 1)
            return x

        for i in range(size):
            for j in range(size):
                torch.testing.assert_close(v[0, :, i, j], gated(vertical(i, j)))
                above = vertical(i - 1, j) if i else torch.zeros(4, dtype=torch.float64)
                x = layer.link.weight[:, :, 0, 0] @ above + link_bias + of_h
                x = x + layer.horizontal.weight[:, 0, 0, 0] * at(i, j - 1) + horizontal_bias
                wanted = layer.out.weight[:, :, 0, 0] @ gated(x) + out_bias
                torch.testing.assert_close(h[0, :, i, j], wanted)


def test_the_class_is_added_to_both_stacks_of_every_layer_and_nowhere_else() -> None:
    model, plain = small(classes=3), small()
    assert {n for n, _ in model.named_parameters()} - {n for n, _ in plain.named_parameters()} == {
        f"layers.{number}.label.weight" for number in range(3)
    }
    plain.load_state_dict(model.state_dict(), strict=False)
    images = torch.rand(2, 1, 6, 6)
    labels = torch.tensor([0, 2])
    assert not torch.allclose(model.outputs(images, labels), plain.outputs(images))
    for layer in layers(model):
        assert layer.label is not None
        nn.init.zeros_(layer.label.weight)
    torch.testing.assert_close(model.outputs(images, labels), plain.outputs(images))
    torch.testing.assert_close(plain.outputs(images, labels), plain.outputs(images))


def test_residual_connections_start_at_the_second_layer() -> None:
    model = small(layers=2)
    x = torch.rand(1, 1, 6, 6)
    for layer in layers(model):
        nn.init.zeros_(layer.out.weight)
        nn.init.ones_(layer.out.get_parameter("bias"))
    v, h = model.layers[0](x, x, None)
    assert (h == 1).all()
    assert (model.layers[1](v, h, None)[1] == 2).all()


def test_the_optimizer_is_rmsprop() -> None:
    (phase,) = small(learning_rate=3e-4).phases()
    assert isinstance(phase.optimizer, torch.optim.RMSprop)
    assert phase.optimizer.param_groups[0]["lr"] == 3e-4


@pytest.mark.parametrize(
    ("options", "message"),
    [({"kernel": 4}, "must be odd and at least 3; use 5"), ({"first_kernel": 1}, "use 3")],
)
def test_even_and_single_pixel_kernels_are_rejected(
    options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        config(**options)

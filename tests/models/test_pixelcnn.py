"""PixelCNN against the counts and the blind spot of its paper, and a slow writing of its masks."""

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn import functional as F

from orchestrator.models.parts.masked import MaskedConv2d, NewestPixel, colours_of
from orchestrator.models.parts.sampler import evaluating
from orchestrator.models.pixelcnn import Config, Model


def config(**options: object) -> Config:
    return Config.model_validate({"name": "pixelcnn", **options})


MNIST = {
    "image_size": 28,
    "channels": 1,
    "levels": 2,
    "hidden": 64,
    "blocks": 15,
    "head_width": 32,
}


@pytest.mark.parametrize(
    ("options", "parameters"),
    [({}, 4_290_816), ({"head_layers": 2}, 5_340_416), (MNIST, 813_121)],
    ids=["CIFAR-10, one head layer", "CIFAR-10, two", "binary MNIST"],
)
def test_models_have_the_known_number_of_parameters(
    options: dict[str, object], parameters: int
) -> None:
    with torch.device("meta"):
        model = Model(config(**options))
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize(
    ("blocks", "row", "column", "unseen"),
    [
        (3, 16, 16, 0.85),
        (7, 16, 16, 0.64),
        (12, 16, 16, 0.24),
        (15, 16, 16, 0.15),
        (15, 31, 0, 0.78),
    ],
)
def test_the_blind_spot_is_as_large_as_known(
    blocks: int, row: int, column: int, unseen: float
) -> None:
    """Measured by the gradient at 32x32, with weights of 1 so that no path cancels out."""
    model = Model(config(channels=1, levels=2, hidden=1, blocks=blocks, head_width=1)).double()
    for p in model.parameters():
        nn.init.ones_(p)
    images = torch.ones(1, 1, 32, 32, dtype=torch.float64, requires_grad=True)
    model.outputs(images)[0, 0, row, column].backward()
    assert images.grad is not None
    seen = int((images.grad != 0).sum())
    context = row * 32 + column
    assert 1 - seen / context == pytest.approx(unseen, abs=0.005)


@pytest.mark.parametrize("kind", ["A", "B"])
def test_a_masked_convolution_is_a_sum_over_earlier_pixels_and_colours(kind: str) -> None:
    torch.manual_seed(0)
    into, out = colours_of(4, 3), colours_of(5, 3)
    conv = MaskedConv2d(kind, into, out, 5).double()  # type: ignore[arg-type]
    x = torch.randn(1, 4, 6, 6, dtype=torch.float64)
    assert conv.bias is not None
    wanted = conv.bias.detach()[None, :, None, None].repeat(1, 1, 6, 6)
    for n, c, i, j in [
        (n, c, i, j) for n in range(5) for c in range(4) for i in range(6) for j in range(6)
    ]:
        for k in range(6):
            for m in range(6):
                if abs(k - i) > 2 or abs(m - j) > 2:
                    continue
                earlier = (k, m) < (i, j)
                colour = c % 3 < n % 3 if kind == "A" else c % 3 <= n % 3
                if earlier or ((k, m) == (i, j) and colour):
                    weight = conv.weight[n, c, k - i + 2, m - j + 2].detach()
                    wanted[0, n, i, j] += weight * x[0, c, k, m]
    torch.testing.assert_close(conv(x), wanted)


@pytest.mark.parametrize(("kind", "kernel"), [("A", 7), ("B", 3), ("B", 5)])
def test_incremental_evaluation_of_a_convolution_equals_the_whole(kind: str, kernel: int) -> None:
    torch.manual_seed(0)
    conv = MaskedConv2d(kind, colours_of(4, 3), colours_of(5, 3), kernel)  # type: ignore[arg-type]
    x = torch.randn(2, 4, 5, 6)
    with evaluating(conv):
        newest = NewestPixel.of(conv, (2, 6))
        whole = conv(x)
        for i in range(5):
            newest.start_row()
            for j in range(6):
                torch.testing.assert_close(newest(x[:, :, i, j], j), whole[:, :, i, j])


def test_the_network_equals_table_1_of_the_paper() -> None:
    torch.manual_seed(0)
    model = Model(config(image_size=6, channels=3, levels=4, hidden=6, blocks=2, head_layers=2))
    images = torch.rand(2, 3, 6, 6) * 2 - 1

    def conv(name: str, x: torch.Tensor) -> torch.Tensor:
        part = model.get_submodule(name)
        assert isinstance(part, MaskedConv2d)
        return F.conv2d(x, part.weight * part.mask, part.bias, padding=part.weight.shape[2] // 2)

    x = conv("first", images)
    for block in ("blocks.0", "blocks.1"):
        y = conv(f"{block}.conv", F.relu(conv(f"{block}.reduce", F.relu(x))))
        x = x + conv(f"{block}.expand", F.relu(y))
    for layer in ("head.1", "head.3", "head.5"):
        x = conv(layer, F.relu(x))
    assert x.shape == (2, 12, 6, 6)
    torch.testing.assert_close(model.outputs(images), x)
    kernels = [m.weight.shape[2] for m in model.modules() if isinstance(m, MaskedConv2d)]
    assert kernels == [7, 1, 3, 1, 1, 3, 1, 1, 1, 1]


def test_one_sigmoid_is_the_softmax_of_two_levels() -> None:
    model = Model(config(image_size=4, channels=1, levels=2, hidden=4, blocks=1))
    with torch.no_grad():
        outputs = model.outputs(torch.zeros(3, 1, 4, 4))
    assert outputs.shape == (3, 1, 4, 4)
    images = torch.randint(2, (3, 1, 4, 4)) * 2.0 - 1
    bernoulli = torch.distributions.Bernoulli(logits=outputs.double())
    wanted = bernoulli.log_prob((images.double() + 1) / 2).flatten(1).sum(1)
    torch.testing.assert_close(model.log_likelihood(outputs, images).double(), wanted)
    p = float(outputs[0, 0, 0, 0].sigmoid())
    pixel, uniforms = torch.zeros(2, 1), torch.tensor([[1 - p - 1e-3], [1 - p + 1e-3]])
    drawn = model.pick(outputs[:1, :, 0, 0].expand(2, 1), uniforms, pixel, 0)
    assert drawn.tolist() == [[-1.0], [1.0]]


def test_the_loss_is_the_mean_likelihood_and_the_optimizer_rmsprop() -> None:
    (phase,) = Model(config(image_size=4, hidden=4, blocks=1, learning_rate=3e-4)).phases()
    assert isinstance(phase.optimizer, torch.optim.RMSprop)
    assert phase.optimizer.param_groups[0]["lr"] == 3e-4


@pytest.mark.parametrize(("levels", "message"), [(1, "greater than"), (257, "less than")])
def test_impossible_levels_are_rejected(levels: int, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        config(levels=levels)

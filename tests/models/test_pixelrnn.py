"""PixelRNN against its paper's numbers and contexts, and against loops over single pixels."""

from itertools import product

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from orchestrator.models.parts.sampler import evaluating
from orchestrator.models.pixelrnn import Config, DiagonalBiLSTM, Model, RowLSTM, skew, unskew

KINDS = ("row_lstm", "diagonal_bilstm")


def config(**options: object) -> Config:
    return Config.model_validate({"name": "pixelrnn", **options})


def small(**options: object) -> Config:
    given = {"image_size": 9, "channels": 1, "layers": 2, "hidden": 6, "head_width": 8, "levels": 2}
    return config(**{**given, **options})


@pytest.mark.parametrize(
    ("options", "parameters"),
    [
        ({"layer": "row_lstm"}, 8_568_576),
        ({}, 7_788_288),
        ({"channels": 1, "layers": 7, "hidden": 16, "head_width": 32, "levels": 2}, 64_737),
    ],
    ids=["Row LSTM, CIFAR-10", "Diagonal BiLSTM, CIFAR-10", "Diagonal BiLSTM, MNIST"],
)
def test_models_have_the_known_number_of_parameters(
    options: dict[str, object], parameters: int
) -> None:
    with torch.device("meta"):
        model = Model(config(**options))
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_row_i_of_a_skewed_map_is_shifted_right_by_i() -> None:
    maps = torch.arange(1.0, 7.0).view(1, 2, 3)
    assert skew(maps).tolist() == [[[1, 2, 3, 0], [0, 4, 5, 6]]]
    maps = torch.rand(2, 3, 4, 5)
    assert skew(maps).shape == (2, 3, 4, 8)
    assert torch.equal(unskew(skew(maps)), maps)


def numbers_seen(model: Model, row: int, column: int, colour: int) -> set[tuple[int, int, int]]:
    """Return (row, column, colour) of all values that a colour's logits depend on."""
    size, colours = model.config.image_size, model.config.channels
    noise = torch.Generator().manual_seed(0)
    shape = (8, colours, size, size)
    images = torch.rand(shape, generator=noise, dtype=torch.float64).requires_grad_()
    logits = model.outputs(images).unflatten(1, (colours, -1))
    (gradient,) = torch.autograd.grad(logits[:, colour, :, row, column].square().sum(), images)
    return {(i, j, c) for c, i, j in gradient.abs().sum(0).nonzero().tolist()}


def places_seen(model: Model, row: int, column: int) -> set[tuple[int, int]]:
    return {(i, j) for i, j, _ in numbers_seen(model, row, column, 0)}


@pytest.mark.parametrize("layer", KINDS)
def test_a_value_depends_on_no_later_value(layer: str) -> None:
    """All values of all pixels, colours in order; every one but the first depends on something."""
    torch.manual_seed(0)
    model = Model(small(layer=layer, image_size=5, channels=3, hidden=12, head_width=48)).double()
    for at in product(range(5), range(5), range(3)):
        seen = numbers_seen(model, *at)
        assert max(seen, default=(-1,)) < at
        assert seen or at == (0, 0, 0)
        i, j, colour = at
        assert {(i, j, c) for c in range(colour)} <= seen, "earlier colours of the pixel"


@pytest.mark.parametrize("layers", [1, 2])
def test_a_row_lstm_sees_a_triangle(layers: int) -> None:
    """Figure 4: one column more to each side with each row up, not all that is above.

    In the row itself each layer adds a pixel on the left to the three of the 7x7 convolution;
    r rows up the states reach r columns, the last of them and the 7x7 convolution 3 more.
    """
    torch.manual_seed(0)
    model = Model(small(layer="row_lstm", image_size=13, layers=layers)).double()
    for row, column in ((0, 6), (4, 6), (6, 6), (12, 2), (12, 12)):
        triangle = {
            (row - up, column + aside)
            for up in range(row + 1)
            for aside in range(-(up + layers + 3), up + 3 if up else 0)
            if 0 <= column + aside < 13
        }
        assert places_seen(model, row, column) == triangle


def test_a_diagonal_bilstm_sees_everything_but_the_last_pixel_of_the_row_above() -> None:
    """That pixel is seen only through the 7x7 convolution, three columns to each side."""
    torch.manual_seed(0)
    model = Model(small(layer="diagonal_bilstm", layers=1)).double()
    counts = {}
    for row, column in product(range(9), range(9)):
        earlier = {(i, j) for i, j in product(range(9), range(9)) if (i, j) < (row, column)}
        missed = {(row - 1, 8)} if row and column + 3 < 8 else set()
        seen = places_seen(model, row, column)
        assert seen == earlier - missed
        counts[row, column] = (len(seen), len(earlier))
    assert counts[4, 4] == (39, 40)
    assert counts[8, 0] == (71, 72)


def cell_by_hand(gates: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    """Equation 3 for one pixel of one image: gates (4h,), in the order o, f, i, g."""
    o, f, i, g = gates.view(4, -1)
    o, f, i = (1 / (1 + torch.exp(-x)) for x in (o, f, i))
    g = (torch.exp(g) - torch.exp(-g)) / (torch.exp(g) + torch.exp(-g))
    cell = f * cell + i * g
    return o * (1 - 2 / (torch.exp(2 * cell) + 1)), cell


def test_a_row_lstm_layer_equals_a_loop_over_pixels() -> None:
    torch.manual_seed(0)
    layer = RowLSTM(small(hidden=3, channels=3)).double()
    x = torch.randn(1, 6, 4, 5, dtype=torch.float64)
    into, state = layer.input_to_state, layer.state_to_state.weight
    assert into.bias is not None
    zeros = torch.zeros(3, dtype=torch.float64)
    hidden: dict[tuple[int, int], Tensor] = {}
    cells: dict[tuple[int, int], Tensor] = {}
    expected = x.clone()
    for i, j in product(range(4), range(5)):
        gates = into.bias.clone()
        if j:
            gates += into.weight[:, :, 0, 0] @ x[0, :, i, j - 1]
        centre = torch.tensor([[a % 3 >= b % 3 for b in range(6)] for a in range(12)])
        gates += (into.weight[:, :, 0, 1] * centre) @ x[0, :, i, j]
        for tap in range(3):
            gates += state[:, :, tap] @ hidden.get((i - 1, j + tap - 1), zeros)
        hidden[i, j], cells[i, j] = cell_by_hand(gates, cells.get((i - 1, j), zeros))
        expected[0, :, i, j] += layer.up(hidden[i, j].view(1, 3, 1, 1)).flatten()
    torch.testing.assert_close(layer(x), expected)


def test_a_diagonal_bilstm_layer_equals_a_loop_over_pixels() -> None:
    torch.manual_seed(0)
    layer = DiagonalBiLSTM(small(hidden=3)).double()
    x = torch.randn(1, 6, 4, 5, dtype=torch.float64)
    zeros = torch.zeros(3, dtype=torch.float64)
    assert layer.input_to_state.bias is not None
    into, bias = layer.input_to_state.weight[:, :, 0, 0].chunk(2), layer.input_to_state.bias
    states = layer.state_to_state.weight.chunk(2)

    def direction(number: int, step: int) -> dict[tuple[int, int], Tensor]:
        """Return hidden states; ``step`` is 1 from the left, -1 from the right."""
        hidden: dict[tuple[int, int], Tensor] = {}
        cells: dict[tuple[int, int], Tensor] = {}
        for i, j in product(range(4), range(5)[::step]):
            gates = into[number] @ x[0, :, i, j] + bias.chunk(2)[number]
            gates = gates + states[number][:, :, 0] @ hidden.get((i - 1, j), zeros)
            gates = gates + states[number][:, :, 1] @ hidden.get((i, j - step), zeros)
            hidden[i, j], cells[i, j] = cell_by_hand(gates, cells.get((i, j - step), zeros))
        return hidden

    left, right = direction(0, 1), direction(1, -1)
    expected = x.clone()
    for i, j in product(range(4), range(5)):
        both = left[i, j] + right.get((i - 1, j), zeros)
        expected[0, :, i, j] += layer.up(both.view(1, 3, 1, 1)).flatten()
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("layer", KINDS)
@pytest.mark.parametrize(("channels", "levels"), [(1, 2), (1, 3), (2, 2)])
def test_probabilities_of_all_small_images_add_up_to_1(
    layer: str, channels: int, levels: int
) -> None:
    torch.manual_seed(0)
    model = Model(small(layer=layer, image_size=2, channels=channels, levels=levels)).double()
    values = torch.tensor(list(product(range(levels), repeat=4 * channels)), dtype=torch.float64)
    images = (2 * values / (levels - 1) - 1).view(-1, channels, 2, 2)
    with torch.no_grad():
        nats = model.log_likelihood(model.outputs(images), images)
    assert nats.exp().sum().item() == pytest.approx(1, abs=1e-6)
    assert nats.std() > 0.02, "not all equally likely"


@pytest.mark.parametrize("layer", KINDS)
def test_one_pixel_at_a_time_gives_the_outputs_of_the_whole_image(layer: str) -> None:
    """In float64 for each colour, while later colours are zero."""
    torch.manual_seed(0)
    model = Model(small(layer=layer, channels=3, levels=3)).double()
    images = torch.rand(2, 3, 9, 9, dtype=torch.float64) * 2 - 1
    with evaluating(model):
        whole = model.outputs(images).unflatten(1, (3, -1))
        pixel = model.cached_outputs(2)
        drawn = torch.zeros_like(images)
        for i, j, turn in product(range(9), range(9), range(3)):
            logits = pixel(drawn, i, j, turn).unflatten(1, (3, -1))
            torch.testing.assert_close(logits[:, turn], whole[:, turn, :, i, j])
            drawn[:, turn, i, j] = images[:, turn, i, j]


@pytest.mark.parametrize("layer", KINDS)
def test_cached_sampling_equals_naive_sampling(layer: str) -> None:
    """With the paper's 7 layers on binary images."""
    torch.manual_seed(0)
    options = {"layer": layer, "layers": 7, "hidden": 16, "head_width": 32}
    model = Model(small(image_size=10, **options))
    for parameter in model.parameters():
        parameter.data.mul_(2)
    fast, slow = (draw(torch.arange(4)) for draw in (model.sample, model.sample_naively))
    assert torch.equal(fast, slow)
    assert 0.2 < (fast > 0).float().mean() < 0.8


@pytest.mark.parametrize("layer", KINDS)
def test_states_stay_in_float32_under_bf16(layer: str) -> None:
    torch.manual_seed(0)
    lstm = (RowLSTM if layer == "row_lstm" else DiagonalBiLSTM)(small())
    with torch.autocast("cpu", torch.bfloat16):
        gates = lstm.input_to_state(torch.randn(2, 12, 9, 9))
        states = lstm.scan(gates, dim=2)
    assert gates.dtype == torch.bfloat16
    assert states.dtype == torch.float32
    assert not torch.equal(states, states.bfloat16().float())


def test_two_levels_have_one_logit_for_the_upper_level() -> None:
    model = Model(small())
    images = torch.randint(2, (3, 1, 9, 9)) * 2.0 - 1
    logits = model.outputs(images)
    assert logits.shape == (3, 1, 9, 9)
    expected = F.logsigmoid(logits * images).flatten(1).sum(1)
    torch.testing.assert_close(model.log_likelihood(logits, images), expected)

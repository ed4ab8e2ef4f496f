"""PixelRNN: an autoregressive model of pixels with Row LSTM or Diagonal BiLSTM layers.

van den Oord, Kalchbrenner and Kavukcuoglu, "Pixel Recurrent Neural Networks", ICML 2016,
https://arxiv.org/abs/1601.06759. As in the paper: the factorisation (equations 1 and 2), the LSTM
(equation 3), Row LSTM (section 3.1), Diagonal BiLSTM with its skewed map (3.2), residual
connections (3.3), masks A and B with the order of colours (3.4), the architecture of table 1, a
softmax over the levels of a colour or a sigmoid for binary images, RMSProp (section 5).

Input-to-state and all 1x1 convolutions use mask B; the four gates of a hidden channel belong to its
colour. State-to-state convolutions mix all colours, because they only see earlier pixels.

The two directions of the Diagonal BiLSTM run as one batch of channels. The output of the
right-to-left direction is shifted down by one row; otherwise a pixel would see its right neighbour.
Hence the last pixel of the row above reaches a pixel only through the 7x7 convolution, and most
pixels never see it.

Departures:
- States outside the image are zero, not learned.
- The input-to-state convolution comes before skewing. If the map were skewed first, the bias would
  change the zero state in its empty corners.
- Both directions of the Diagonal BiLSTM are added before one 1x1 convolution to 2h channels.
- No skip connections from the layers to the output.
- The paper tunes the learning rate per data set; here it is a constant.

Dimensions: see models/base.py. F: 2h channels between layers, S: h hidden channels per direction,
G: 4h gates per direction (in the order o, f, i, g), N: positions of a row or diagonal.
"""

from typing import Literal, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from orchestrator.bounds import Filters, Layers, Units
from orchestrator.models.parts.autoregressive import (
    LIKELIHOOD_METRICS,
    PixelOutputs,
    SoftmaxAutoregressive,
    SoftmaxConfig,
    logits_for_colour,
)
from orchestrator.models.parts.masked import (
    MaskedConv2d,
    NewestPixel,
    at_pixel,
    colours_of,
    head_at_pixel,
    masked_head,
)

METRICS = LIKELIHOOD_METRICS


class Config(SoftmaxConfig):
    """Hyperparameters of PixelRNN; defaults as in the paper for CIFAR-10."""

    layer: Literal["row_lstm", "diagonal_bilstm"] = "diagonal_bilstm"
    """row_lstm: triangular receptive field; diagonal_bilstm: almost all earlier pixels."""
    layers: Layers = 12
    """LSTM layers; 12 for CIFAR-10 and 7 for MNIST in the paper."""
    hidden: Filters = 128
    """Hidden channels h of a layer; 2h channels between layers. 16 for MNIST in the paper."""
    head_layers: Layers = 1
    """1x1 layers with ``head_width`` channels before the logits."""
    head_width: Units = 1024
    """Channels of these layers; 1024 for CIFAR-10 and 32 for MNIST in the paper."""


def skew(maps: Tensor) -> Tensor:
    """Shift row i to the right by i columns: (..., H, W) -> (..., H, H + W - 1).

    A column of the result is a diagonal of the map; the rest is zero.
    """
    height, width = maps.shape[-2:]
    line = F.pad(maps, (0, height)).flatten(-2)[..., :-height]
    skewed: Tensor = line.unflatten(-1, (height, height + width - 1))
    return skewed


def unskew(maps: Tensor) -> Tensor:
    """Invert ``skew``: (..., H, H + W - 1) -> (..., H, W)."""
    height, skewed = maps.shape[-2:]
    line = F.pad(maps.flatten(-2), (0, height))
    rows: Tensor = line.unflatten(-1, (height, skewed + 1))
    return rows[..., : skewed + 1 - height]


def lstm_step(gates: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    """Return the next (hidden, cell), each (B, D, S, ...): equation 3.

    Args:
        gates: (B, D, G, ...), before sigmoid (o, f, i) and tanh (g).
        cell: (B, D, S, ...).
    """
    size = cell.shape[2]
    output, forget, into = gates[:, :, : 3 * size].sigmoid().chunk(3, dim=2)
    cell = forget * cell + into * gates[:, :, 3 * size :].tanh()
    return output * cell.tanh(), cell


class _Layer(nn.Module):
    """LSTM with a residual connection: x_BFHW -> x_BFHW."""

    def __init__(self, config: Config, directions: int, kernel: tuple[int, int], taps: int) -> None:
        super().__init__()
        hidden, colours = config.hidden, config.channels
        maps, states = colours_of(2 * hidden, colours), colours_of(hidden, colours)
        self.directions, self.hidden = directions, hidden
        self.input_to_state = MaskedConv2d("B", maps, states.repeat(4 * directions), kernel)
        self.state_to_state = nn.Conv1d(
            directions * hidden, directions * 4 * hidden, taps, groups=directions, bias=False
        )
        self.up = MaskedConv2d("B", states, maps)

    def scan(self, gates: Tensor, dim: int) -> Tensor:
        """Run the LSTM line by line along ``dim``: (B, DG, H, W) -> (B, D, S, H, W).

        A position reads the states before, at and (with 3 taps) after it on the previous line.
        """
        taps = self.state_to_state.kernel_size[0]
        places = gates.shape[2] if dim == 3 else gates.shape[3]
        # In the weights' precision: bfloat16, as under autocast, is too coarse to accumulate in.
        shape = (len(gates), self.directions, self.hidden, places)
        hidden = cell = self.state_to_state.weight.new_zeros(shape)
        lines = []
        for line in gates.unbind(dim):
            state = self.state_to_state(F.pad(hidden.flatten(1, 2), (1, taps - 2)))
            given = (line + state).unflatten(1, (self.directions, 4 * self.hidden))
            hidden, cell = lstm_step(given, cell)
            lines.append(hidden)
        return torch.stack(lines, dim + 1)


class RowLSTM(_Layer):
    """Section 3.1: one LSTM step per row, from the top."""

    def __init__(self, config: Config) -> None:
        super().__init__(config, directions=1, kernel=(1, 3), taps=3)

    def forward(self, x: Tensor) -> Tensor:
        """(B, F, H, W) -> (B, F, H, W)."""
        hidden_BSHW = self.scan(self.input_to_state(x), dim=2)[:, 0]
        update: Tensor = self.up(hidden_BSHW)
        return x + update


class DiagonalBiLSTM(_Layer):
    """Section 3.2: one LSTM step per diagonal, from the top left and from the top right."""

    def __init__(self, config: Config) -> None:
        super().__init__(config, directions=2, kernel=(1, 1), taps=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, F, H, W) -> (B, F, H, W)."""
        left, right = self.input_to_state(x).chunk(2, dim=1)
        gates = skew(torch.cat([left, right.flip(3)], dim=1))
        left, right = unskew(self.scan(gates, dim=3)).unbind(1)
        update: Tensor = self.up(left + F.pad(right.flip(3), (0, 0, 1, -1)))
        return x + update


class _RowCache:
    """Incremental evaluation of a Row LSTM, pixel by pixel, from two rows of states."""

    def __init__(self, layer: RowLSTM, num_images: int, width: int) -> None:
        conv = layer.input_to_state
        left = conv.masked_weight[:, :, 0, :2]
        self.input_to_state = NewestPixel((num_images, width), left, conv.bias)
        self.state_to_state, self.up = layer.state_to_state, at_pixel(layer.up)
        self.hidden = left.new_zeros(num_images, 1, layer.hidden, width)
        self.cell = self.hidden

    def start_row(self, row: int) -> None:
        """Start a row: compute the contribution of the states of the finished row above."""
        above_BGW = self.state_to_state(F.pad(self.hidden[:, 0], (1, 1)))
        self.input_to_state.start_row(above_BGW.transpose(1, 2))
        self.cell_above = self.cell
        self.hidden, self.cell = torch.zeros_like(self.hidden), torch.zeros_like(self.hidden)

    def pixel(self, x: Tensor, column: int) -> Tensor:
        """Compute the output of this column: (B, F) -> (B, F)."""
        gates = self.input_to_state(x, column)
        hidden, cell = lstm_step(gates[:, None], self.cell_above[..., column])
        self.hidden[..., column], self.cell[..., column] = hidden, cell
        return x + self.up(hidden[:, 0])


class _DiagonalCache:
    """Incremental evaluation of a Diagonal BiLSTM, from the inputs and states of one row.

    The right-to-left direction only affects the row below, so it runs when a row is complete.
    ``hidden`` and ``cell`` are offset by one column: column 0 holds the zeros left of the image.
    """

    def __init__(self, layer: DiagonalBiLSTM, num_images: int, width: int) -> None:
        self.layer = layer
        self.up = at_pixel(layer.up)
        bias = layer.input_to_state.bias
        assert bias is not None
        self.bias = bias[:, None].chunk(2)
        into = layer.input_to_state.masked_weight[:, :, 0, 0].chunk(2)
        self.above, self.beside = (w.chunk(2) for w in layer.state_to_state.weight.unbind(2))
        self.left, self.into_right = torch.cat([self.beside[0], into[0]], 1), into[1]
        self.x = bias.new_zeros(num_images, 2 * layer.hidden, width)
        self.right = bias.new_zeros(num_images, layer.hidden, width)
        self.hidden = bias.new_zeros(num_images, 1, layer.hidden, width + 1)
        self.cell = torch.zeros_like(self.hidden)

    def start_row(self, row: int) -> None:
        """Start a row: compute the contribution of the finished row above, both directions."""
        if row:
            self.right = self._from_the_right()
        self.gates = self.above[0] @ self.hidden[:, 0, :, 1:] + self.bias[0]

    def _from_the_right(self) -> Tensor:
        """Return the right-to-left hidden states (B, S, W) of the row in ``x``."""
        gates = self.into_right @ self.x + self.above[1] @ self.right + self.bias[1]
        hidden = cell = self.right.new_zeros(len(gates), 1, self.layer.hidden)
        columns = []
        for column in reversed(gates.unbind(2)):
            given = column + F.linear(hidden[:, 0], self.beside[1])
            hidden, cell = lstm_step(given[:, None], cell)
            columns.append(hidden[:, 0])
        return torch.stack(columns[::-1], 2)

    def pixel(self, x: Tensor, column: int) -> Tensor:
        """Compute the output of this column: (B, F) -> (B, F)."""
        self.x[:, :, column] = x
        given = torch.cat([self.hidden[:, 0, :, column], x], 1)
        gates = self.gates[:, :, column] + F.linear(given, self.left)
        hidden, cell = lstm_step(gates[:, None], self.cell[..., column])
        self.hidden[..., column + 1], self.cell[..., column + 1] = hidden, cell
        return x + self.up(hidden[:, 0] + self.right[:, :, column])


def _cache(layer: nn.Module, num_images: int, width: int) -> _RowCache | _DiagonalCache:
    if isinstance(layer, RowLSTM):
        return _RowCache(layer, num_images, width)
    assert isinstance(layer, DiagonalBiLSTM)
    return _DiagonalCache(layer, num_images, width)


@final
class Model(SoftmaxAutoregressive):
    """A masked 7x7 convolution, LSTM layers, and 1x1 convolutions to logits."""

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        colours, wide = config.channels, 2 * config.hidden
        self.first = MaskedConv2d("A", colours_of(colours, colours), colours_of(wide, colours), 7)
        layer = RowLSTM if config.layer == "row_lstm" else DiagonalBiLSTM
        self.layers = nn.Sequential(*(layer(config) for _ in range(config.layers)))
        features = [wide, *[config.head_width] * config.head_layers]
        self.head = masked_head(features, colours, logits_for_colour(config.levels))

    def outputs(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return logits (B, C * logits, H, W); ``labels`` are ignored."""
        logits: Tensor = self.head(self.layers(self.first(images)))
        return logits

    def cached_outputs(self, num_images: int, labels: Tensor | None = None) -> PixelOutputs:
        """Compute one pixel per call, and the states of the row above at each row start."""
        size, head = self.config.image_size, head_at_pixel(self.head)
        caches = [_cache(layer, num_images, size) for layer in self.layers]
        first, bias = self.first.masked_weight[:, :, :4].flatten(1), self.first.bias

        def outputs(images: Tensor, i: int, j: int, turn: int) -> Tensor:
            if j == 0 and turn == 0:
                for cache in caches:
                    cache.start_row(i)
            rows = F.pad(images[:, :, max(0, i - 3) : i + 1], (3, 3, max(0, 3 - i), 0))
            x = F.linear(rows[..., j : j + 7].flatten(1), first, bias)
            for cache in caches:
                x = cache.pixel(x, j)
            return head(x)

        return outputs

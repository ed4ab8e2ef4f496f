"""PixelCNN: masked convolutions that predict each value from the values before it.

van den Oord, Kalchbrenner and Kavukcuoglu, "Pixel Recurrent Neural Networks", ICML 2016,
https://arxiv.org/abs/1601.06759. As in the paper: the order and the softmax (equations 1 and 2),
masks A and B with features in colour groups (section 3.4), the residual block (figure 5), the
layers of table 1, RMSProp (section 5.1).

The receptive field has a blind spot: some pixels above and to the right are never seen, with any
number of blocks. ``gated_pixelcnn`` has none.

Choices and departures:
- Colour groups are interleaved (channel modulo 3), so ``hidden`` need not be a multiple of 3.
- The two 1x1 layers of table 1 are read as one with ``head_width`` channels and the logits;
  ``head_layers`` adds more.
- Two levels are modelled by one sigmoid, as in the paper for binary MNIST.
- The paper gives no learning rate; 1e-3 is our choice.

Sampling caches the activations of earlier pixels (models/parts/masked.py).

Dimensions: see models/base.py and models/parts/autoregressive.py.
"""

from typing import final

from torch import Tensor, nn

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
    """Hyperparameters of PixelCNN; defaults as in the paper for CIFAR-10."""

    hidden: Filters = 128
    """Channels inside a residual block (h); twice as many between blocks."""
    blocks: Layers = 15
    """Number of residual blocks."""
    head_layers: Layers = 1
    """1x1 layers with ``head_width`` channels before the logits."""
    head_width: Units = 1024
    """Channels of these layers; 1024 for colour images and 32 for MNIST in the paper."""


class _Block(nn.Module):
    """x + conv1x1(relu(conv3x3(relu(conv1x1(relu(x)))))), all convolutions with mask B."""

    def __init__(self, hidden: int, num_colours: int) -> None:
        super().__init__()
        wide, narrow = colours_of(2 * hidden, num_colours), colours_of(hidden, num_colours)
        self.reduce = MaskedConv2d("B", wide, narrow)
        self.conv = MaskedConv2d("B", narrow, narrow, 3)
        self.expand = MaskedConv2d("B", narrow, wide)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(self.reduce(x.relu()).relu())
        update: Tensor = self.expand(y.relu())
        return x + update


class _NewestBlock:
    """Incremental evaluation of a block, pixel by pixel: (B, 2h) -> (B, 2h)."""

    def __init__(self, block: _Block, size: tuple[int, int]) -> None:
        self.reduce, self.expand = at_pixel(block.reduce), at_pixel(block.expand)
        self.conv = NewestPixel.of(block.conv, size)

    def __call__(self, x: Tensor, column: int) -> Tensor:
        y = self.conv(self.reduce(x.relu()).relu_(), column)
        return x + self.expand(y.relu_())


@final
class Model(SoftmaxAutoregressive):
    """A stack of masked convolutions; one turn per colour."""

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        colours, wide = config.channels, 2 * config.hidden
        image = colours_of(colours, colours)
        self.first = MaskedConv2d("A", image, colours_of(wide, colours), 7)
        self.blocks = nn.Sequential(*[_Block(config.hidden, colours) for _ in range(config.blocks)])
        features = [wide, *[config.head_width] * config.head_layers]
        self.head = masked_head(features, colours, logits_for_colour(config.levels))

    def outputs(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return logits (B, C * logits, H, W); ``labels`` are ignored."""
        logits: Tensor = self.head(self.blocks(self.first(images)))
        return logits

    def cached_outputs(self, num_images: int, labels: Tensor | None = None) -> PixelOutputs:
        """Compute one pixel per call."""
        size = num_images, self.config.image_size
        first = NewestPixel.of(self.first, size)
        blocks = [_NewestBlock(block, size) for block in self.blocks if isinstance(block, _Block)]
        head = head_at_pixel(self.head)

        def outputs(images: Tensor, i: int, j: int, turn: int) -> Tensor:
            if turn == 0:
                first.keep_drawn(images, i, j)
            if j == 0 and turn == 0:
                for conv in (first, *(block.conv for block in blocks)):
                    conv.start_row()
            x = first(images[:, :, i, j], j)
            for block in blocks:
                x = block(x, j)
            return head(x)

        return outputs

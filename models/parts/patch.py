"""PatchGAN: a discriminator with one logit per image patch.

Isola, Zhu, Zhou and Efros, "Image-to-Image Translation with Conditional Adversarial Networks",
CVPR 2017, sections 3.2 and 6.1, https://arxiv.org/abs/1611.07004.
"""

from typing import Literal, TypeAlias

from torch import Tensor, nn
from torch.nn import functional as F

Norm: TypeAlias = Literal["batch", "instance"]
STRIDED_LAYERS = {16: 1, 34: 2, 70: 3, 142: 4, 286: 5}
"""Number of stride-2 layers by receptive field in pixels."""


class BatchNorm2d(nn.BatchNorm2d):
    """Batch norm that in evaluation mode takes the statistics of each image alone.

    That is what it does in training with one image at a time, so that an image does not depend on
    those beside it.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        if self.training:
            return super().forward(input)
        return F.instance_norm(input, weight=self.weight, bias=self.bias, eps=self.eps)


def patch_map_size(image_size: int, receptive_field: int) -> int:
    """Return height and width of the discriminator's output; below 1 if the image is too small."""
    if receptive_field == 1:
        return image_size
    return (image_size >> STRIDED_LAYERS[receptive_field]) - 2


def norm_layer(kind: Norm, channels: int) -> nn.Module:
    """Build batch norm without running statistics, or instance norm without learned gain."""
    if kind == "batch":
        return BatchNorm2d(channels, track_running_stats=False)
    return nn.InstanceNorm2d(channels)


def patch_discriminator(
    channels: int, width: int, receptive_field: int, norm: Norm
) -> nn.Sequential:
    """Build a patch discriminator (B, channels, H, W) -> logits (B, 1, P, P).

    ``width`` is the number of channels of the first layer; deeper ones have up to 8 times as many.
    With batch normalisation only the first and the last convolution have a bias.
    """
    bias = norm == "instance"
    if receptive_field == 1:
        return nn.Sequential(
            nn.Conv2d(channels, width, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 1, bias=bias),
            norm_layer(norm, 2 * width),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * width, 1, 1, bias=bias),
        )
    strided = STRIDED_LAYERS[receptive_field]
    layers: list[nn.Module] = [nn.Conv2d(channels, width, 4, 2, 1), nn.LeakyReLU(0.2)]
    for layer in range(1, strided + 1):
        cin, cout = width * min(2 ** (layer - 1), 8), width * min(2**layer, 8)
        stride = 2 if layer < strided else 1
        layers += [
            nn.Conv2d(cin, cout, 4, stride, 1, bias=bias),
            norm_layer(norm, cout),
            nn.LeakyReLU(0.2),
        ]
    return nn.Sequential(*layers, nn.Conv2d(cout, 1, 4, 1, 1))

"""The network of FID: torchvision's Inception-v3 with the pooling of the TensorFlow graph.

It differs from the published architecture in three places, which pytorch-fid found: average
pooling does not count the padding, the last block takes a maximum instead, and the classifier
has 1,008 outputs.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import inception


class PaddingNotCounted(nn.Module):
    """Average over 3 x 3 positions, of which those outside the image do not count."""

    def forward(self, x: Tensor) -> Tensor:
        """Pool (B, C, H, W)."""
        return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


def _with_pooling(block: type[nn.Module], pool: nn.Module) -> type[nn.Module]:
    """Return torchvision's block with another pooling in its last branch."""

    class Block(block):  # type: ignore[valid-type, misc]
        def _forward(self, x: Tensor) -> list[Tensor]:
            *others, _ = super()._forward(x)
            return [*others, self.branch_pool(pool(x))]

    return Block


def inception_network(saved: dict[str, Tensor]) -> nn.Module:
    """Build the network, without its classifier, and load its weights."""
    average = PaddingNotCounted()
    a, c, e = (
        _with_pooling(block, average)
        for block in (inception.InceptionA, inception.InceptionC, inception.InceptionE)
    )
    with torch.random.fork_rng(devices=[]):
        network = inception.Inception3(
            num_classes=1008,
            aux_logits=False,
            inception_blocks=[
                inception.BasicConv2d, a, inception.InceptionB, c, inception.InceptionD, e,
                inception.InceptionAux,
            ],
            init_weights=False,
        )  # fmt: skip
        network.Mixed_7c = _with_pooling(inception.InceptionE, nn.MaxPool2d(3, 1, 1))(2048)
    network.load_state_dict(saved)
    network.fc = nn.Identity()
    network.eval().requires_grad_(False)
    assert isinstance(network, nn.Module)
    return network

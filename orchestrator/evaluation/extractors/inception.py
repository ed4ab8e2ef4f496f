"""Inception-v3 as ported from TensorFlow: the extractor by which FID and KID are defined.

Its weights are in no Python package: a user brings the file. Szegedy et al. 2015,
https://arxiv.org/abs/1512.00567; Heusel et al. 2017, https://arxiv.org/abs/1706.08500.
"""

from pathlib import Path

import torch
from torch import Tensor

from orchestrator.evaluation.extractors.resizing import resize
from orchestrator.evaluation.extractors.weights import load_tensors, read_checked

FILE = "weights-inception-2015-12-05-6726825d.pth"
"""The file's name where torch-fidelity publishes it: release v0.2.0 of toshas/torch-fidelity."""
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
SIZE = 299


class Inception:
    """Features (B, 2048) of images: the last pooling layer."""

    name = "inception"
    frechet_name = "fid"

    def __init__(self, path: Path, device: torch.device | str = "cpu") -> None:
        """Load the network from the user's file.

        Raises:
            UsageError: there is no such file.
            DataError: it is another file.
        """
        from orchestrator.evaluation.extractors.inception_network import inception_network

        saved = load_tensors(read_checked(path, SHA256, self.name))
        self.device = torch.device(device)
        self.network = inception_network(saved).to(self.device)
        self.images_per_pass = 4 if self.device.type == "cpu" else 128

    def __call__(self, images: Tensor) -> Tensor:
        """Return features (B, 2048) float32 of colour images (B, 3, H, W) uint8."""
        scaled = resize(images.to(self.device), SIZE, "tensorflow")
        features: Tensor = self.network((scaled - 128) / 128)
        return features

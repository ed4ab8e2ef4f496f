"""A pool of past generated images that a discriminator is also trained on.

Shrivastava, Pfister, Tuzel, Susskind, Wang and Webb, "Learning from Simulated and Unsupervised
Images through Adversarial Training", CVPR 2017, section 2.3, https://arxiv.org/abs/1612.07828, in
the form of CycleGAN (Zhu, Park, Isola and Efros 2017, section 4).
"""

import torch
from torch import Tensor, nn


class ImagePool(nn.Module):
    """A pool of past images with its state in buffers.

    Until the pool is full, an image is stored and returned. Then, with probability 1/2 each, an
    image is returned without being stored, or replaces a stored image, which is returned.

    Images are processed one by one in order, so the result does not depend on microbatches.
    """

    images: Tensor
    stored: Tensor

    def __init__(self, size: int, channels: int, image_size: int) -> None:
        """``size`` is the capacity in images."""
        super().__init__()
        self.size = size
        self.register_buffer("images", torch.zeros(size, channels, image_size, image_size))
        self.register_buffer("stored", torch.zeros(1, dtype=torch.int64))

    @torch.no_grad()
    def exchange(self, images: Tensor, draws: Tensor) -> Tensor:
        """Pass images (B, C, H, W) through the pool and return images of the same shape.

        Args:
            draws: (B, 2), uniform in (0, 1): whether to exchange, and with which stored image.
        """
        return torch.cat([self._one(*pair) for pair in zip(images[:, None], draws, strict=True)])

    def _one(self, new: Tensor, draws: Tensor) -> Tensor:
        # torch.where instead of if avoids a synchronisation with the GPU.
        full = self.stored == self.size
        place = torch.where(full, (draws[1] * self.size).long(), self.stored)
        old = self.images[place]
        exchanged = full & (draws[0] < 0.5)
        self.images[place] = torch.where(full & ~exchanged, old, new.to(old.dtype))
        self.stored.add_(1).clamp_(max=self.size)
        return torch.where(exchanged, old, new.to(old.dtype))

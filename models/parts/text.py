"""Text as models take it: bytes, so that no vocabulary has to be kept beside the weights."""

import torch
from torch import Tensor

CAPTION_BYTES = 256
"""Length of a caption; longer ones are cut off."""


def caption_bytes(text: str) -> Tensor:
    """``text`` as in ``Batch.captions``: UTF-8, uint8 (CAPTION_BYTES,), filled up with zeros."""
    encoded = text.encode()[:CAPTION_BYTES]
    return torch.tensor([*encoded, *bytes(CAPTION_BYTES - len(encoded))], dtype=torch.uint8)

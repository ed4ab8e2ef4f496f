"""Encode text as bytes, so that no vocabulary has to be stored with the weights."""

import torch
from torch import Tensor

CAPTION_BYTES = 256
"""Length of a caption; longer ones are truncated."""


def caption_bytes(text: str) -> Tensor:
    """Encode ``text`` as in ``Batch.captions``: UTF-8, zero-padded uint8 (CAPTION_BYTES,)."""
    encoded = text.encode()[:CAPTION_BYTES]
    return torch.tensor([*encoded, *bytes(CAPTION_BYTES - len(encoded))], dtype=torch.uint8)

"""What adversarial networks share: the loss of a logit, and straight lines between latents."""

import torch
from torch import Tensor
from torch.nn import functional as F

from models.base import Rows


def real_or_fake(logits: Tensor, *, real: bool) -> Tensor:
    """Mean cross-entropy of the logits against "all real" or "all fake", in float32."""
    return F.softplus(-logits.float() if real else logits.float()).mean()


def between(ends_RZ: Tensor, columns: int) -> Tensor:
    """Rows of latents on straight lines: (2R, Z) ends -> (R * columns, Z), row after row.

    Row r goes from end r to end R + r, both among its columns.
    """
    first_RZ, last_RZ = ends_RZ.chunk(2)
    share_C1 = torch.linspace(0, 1, columns, device=ends_RZ.device)[:, None]
    return torch.lerp(first_RZ[:, None], last_RZ[:, None], share_C1).flatten(0, 1)


def in_rows(images_BCHW: Tensor, columns: int) -> Rows:
    """Images, row after row, as a picture."""
    return [list(row) for row in images_BCHW.split(columns)]

"""Shared by all tools: decode with OpenCV, convert to float32, and identify samples."""

import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import cv2
import numpy
import torch
from torch import Tensor

from benchmarks.stream.kinds import Kind

BATCH = 32
WORKERS = 2
"""Number of decoding threads or processes."""
SUBSAMPLE = 1024
"""Approximate number of evenly spaced values of a sample for its fingerprint."""

Images = tuple[Tensor, ...]
"""A batch: for each field, images as (B, C, S, S)."""

cv2.setNumThreads(0)


def decode(data: bytes, kind: Kind) -> Tensor:
    """Decode an image to uint8 (S, S, C)."""
    flag = cv2.IMREAD_COLOR_RGB if kind.channels == 3 else cv2.IMREAD_GRAYSCALE
    pixels = cv2.imdecode(numpy.frombuffer(data, numpy.uint8), flag)
    if pixels is None:
        raise ValueError("the image cannot be decoded")
    return torch.from_numpy(pixels.reshape(kind.size, kind.size, kind.channels))


def decode_sample(images: Mapping[str, bytes], kind: Kind) -> Images:
    """Decode the images of a sample, in the order of the kind's fields."""
    return tuple(decode(images[field], kind) for field in kind.fields)


def collate(samples: Sequence[Images]) -> Images:
    """Stack samples to uint8 (B, S, S, C), a quarter of the size to pass between processes."""
    return tuple(torch.stack(images) for images in zip(*samples, strict=True))


def to_float(images: Images) -> Images:
    """Convert uint8 (B, S, S, C) to float32 (B, C, S, S) in [-1, 1]."""
    return tuple(
        each.permute(0, 3, 1, 2)
        .to(torch.float32, memory_format=torch.contiguous_format)
        .div_(127.5)
        .sub_(1)
        for each in images
    )


def subsample(images: Images, kind: Kind) -> Tensor:
    """Take some values of each sample of a float batch, as uint8; cheap, since it is timed."""
    parts = []
    for each in images:
        shape = (kind.channels, kind.size, kind.size)
        assert each.dtype == torch.float32, each.dtype
        assert each.shape[1:] == shape, each.shape
        assert each.is_contiguous()
        flat = each.flatten(1)
        values = flat[:, :: max(1, flat.shape[1] // SUBSAMPLE)]
        parts.append(values.add(1).mul_(127.5).round_().to(torch.uint8))
    return torch.cat(parts, 1)


def fingerprints(batches: Iterable[Tensor]) -> Counter[int]:
    """Count samples by a checksum of their ``subsample``."""
    return Counter(zlib.crc32(row) for batch in batches for row in batch.numpy())


def compare(expected: Counter[int], seen: Counter[int]) -> dict[str, int]:
    """Count delivered, missing, repeated and unknown samples of an epoch."""
    return {
        "delivered": seen.total(),
        "missing": sum(1 for each in expected if each not in seen),
        "repeated": sum(max(0, seen[each] - count) for each, count in expected.items()),
        "unknown": sum(count for each, count in seen.items() if each not in expected),
    }

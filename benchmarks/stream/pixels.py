"""What all tools do alike: decode with OpenCV, make float32, and tell which samples came."""

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
"""Threads or processes that decode."""
KEPT = 1024
"""About so many values of a sample are kept, evenly spread, to tell it by."""

Images = tuple[Tensor, ...]
"""A batch: for each field, images as (B, C, S, S)."""

cv2.setNumThreads(0)


def decode(data: bytes, kind: Kind) -> Tensor:
    """The image in ``data`` as uint8 (S, S, C)."""
    flag = cv2.IMREAD_COLOR_RGB if kind.channels == 3 else cv2.IMREAD_GRAYSCALE
    pixels = cv2.imdecode(numpy.frombuffer(data, numpy.uint8), flag)
    if pixels is None:
        raise ValueError("the image cannot be decoded")
    return torch.from_numpy(pixels.reshape(kind.size, kind.size, kind.channels))


def decode_sample(images: Mapping[str, bytes], kind: Kind) -> Images:
    """A sample's images, in the order of the kind's fields."""
    return tuple(decode(images[field], kind) for field in kind.fields)


def collate(samples: Sequence[Images]) -> Images:
    """Samples to a batch of uint8 (B, S, S, C): it crosses processes at a quarter of the size."""
    return tuple(torch.stack(images) for images in zip(*samples, strict=True))


def to_float(images: Images) -> Images:
    """uint8 (B, S, S, C) to what a model takes: float32 (B, C, S, S) in [-1, 1]."""
    return tuple(
        each.permute(0, 3, 1, 2)
        .to(torch.float32, memory_format=torch.contiguous_format)
        .div_(127.5)
        .sub_(1)
        for each in images
    )


def kept(images: Images, kind: Kind) -> Tensor:
    """Some values of each sample of a float batch, as uint8 again: cheap enough to time with."""
    parts = []
    for each in images:
        shape = (kind.channels, kind.size, kind.size)
        assert each.dtype == torch.float32, each.dtype
        assert each.shape[1:] == shape, each.shape
        assert each.is_contiguous()
        flat = each.flatten(1)
        few = flat[:, :: max(1, flat.shape[1] // KEPT)]
        parts.append(few.add(1).mul_(127.5).round_().to(torch.uint8))
    return torch.cat(parts, 1)


def fingerprints(batches: Iterable[Tensor]) -> Counter[int]:
    """How often each sample came, by a checksum of what ``kept`` kept."""
    return Counter(zlib.crc32(row) for batch in batches for row in batch.numpy())


def compare(expected: Counter[int], seen: Counter[int]) -> dict[str, int]:
    """What is wrong with an epoch: counts of samples."""
    return {
        "delivered": seen.total(),
        "missing": sum(1 for each in expected if each not in seen),
        "repeated": sum(max(0, seen[each] - count) for each, count in expected.items()),
        "unknown": sum(count for each, count in seen.items() if each not in expected),
    }

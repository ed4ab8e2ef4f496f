"""Data sets that no package ships, read from their original files: --from PATH or URL.

CIFAR-10 (Krizhevsky, 2009, https://www.cs.toronto.edu/~kriz/cifar.html) in its binary version: the
Python version consists of pickles, which are never loaded here. LFW deep-funneled (Huang et al.,
2012, http://vis-www.cs.umass.edu/lfw/), aligned CelebA (Liu et al., 2015,
https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html), and the archives of pix2pix (Isola et al., 2017,
https://arxiv.org/abs/1611.07004). docs/adr/0007 explains why torchvision is not used.
"""

import lzma
import shutil
import tarfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy
from numpy.typing import NDArray
from PIL import Image

from orchestrator.data.datasets.request import FetchRequest, pack_samples
from orchestrator.data.datasets.svg import draw_all
from orchestrator.data.format.images import fit_image, load_image, to_png
from orchestrator.data.prepare.pack import pack_folder
from orchestrator.data.prepare.split import VALIDATION_SHARE, PackedSample, PackSummary, is_held_out
from orchestrator.errors import DataError, EnvironmentProblem, UsageError
from orchestrator.redaction import mask
from orchestrator.temporary_folder import temporary_folder

TIMEOUT_S = 60
_UNPACKING_ERRORS = (
    OSError,
    EOFError,
    RuntimeError,
    lzma.LZMAError,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What corrupt archives raise; RuntimeError is for a zip with a password or unknown compression."""

CIFAR10_CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
CIFAR10_TRAIN = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
CIFAR10_TEST = ("test_batch.bin",)
CIFAR10_RECORD = 1 + 3 * 32 * 32
"""Bytes per image: the class, then 32 x 32 values of red, of green and of blue."""
CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
PIX2PIX_URL = "http://efrosgans.eecs.berkeley.edu/pix2pix/datasets/{}.tar.gz"

CELEBA_TRAIN, CELEBA_VALIDATION = "0", "1"
"""Values in list_eval_partition.txt; 2 marks the test images, which are left out."""
CELEBA_AGES = ("old", "young")


def pack_cifar10(request: FetchRequest) -> PackSummary:
    """Pack the 50,000 training images; the 10,000 test images are the validation set."""
    with open_original(request, CIFAR10_URL) as folder:
        base = _find_folder_with(folder, CIFAR10_TRAIN[0])
        batches = [*((base / n, False) for n in CIFAR10_TRAIN), (base / CIFAR10_TEST[0], True)]
        records = [(_read_cifar10(path), held_out) for path, held_out in batches]
    samples = (
        PackedSample(
            key=f"{batch}-{number:05d}",
            images={"image": to_png(fit_image(Image.fromarray(pixels), request.size, "pad"))},
            for_validation=held_out,
            image_size=request.size,
            label=int(rows[number, 0]),
        )
        for batch, (rows, held_out) in enumerate(records)
        for number, pixels in enumerate(rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    )
    total = sum(len(rows) for rows, _ in records)
    return pack_samples(request, samples, total, classes=CIFAR10_CLASSES)


def _read_cifar10(path: Path) -> NDArray[numpy.uint8]:
    if not path.is_file():
        raise DataError(f"{path} is missing; it is part of CIFAR-10's binary version")
    data = numpy.frombuffer(path.read_bytes(), numpy.uint8)
    if not data.size or data.size % CIFAR10_RECORD:
        raise DataError(
            f"{path} has {data.size} bytes, which is not a multiple of a record's "
            f"{CIFAR10_RECORD}; use CIFAR-10's binary version"
        )
    records = data.reshape(-1, CIFAR10_RECORD)
    if records[:, 0].max() >= len(CIFAR10_CLASSES):
        raise DataError(f"{path} has the class {records[:, 0].max()}; CIFAR-10's are 0 to 9")
    return records


@dataclass(frozen=True)
class _Photo:
    """One image file with its split, class and caption."""

    path: Path
    for_validation: bool
    label: int | None = None
    caption: str | None = None


def pack_lfw(request: FetchRequest) -> PackSummary:
    """Pack LFW's 13,233 photographs; all those of a tenth of the people are held out."""
    with open_original(request, None) as folder:
        paths = sorted(folder.rglob("*_[0-9][0-9][0-9][0-9].jpg"))
        photos = [
            _Photo(path, is_held_out(path.parent.name.encode(), VALIDATION_SHARE)) for path in paths
        ]
        if not photos:
            raise DataError(f"{folder} holds no photographs NAME/NAME_0001.jpg, as LFW does")
        return _pack_photos(request, photos, ())


def pack_celeba(request: FetchRequest) -> PackSummary:
    """Pack the training and validation photographs of aligned CelebA, cropped to a square.

    If list_attr_celeba.txt exists, too, its attribute Young is the class, and the captions list
    the attributes.
    """
    with open_original(request, None) as folder:
        base = _find_folder_with(folder, "list_eval_partition.txt")
        parts = dict(_read_table(base / "list_eval_partition.txt", columns=1))
        attributes = base / "list_attr_celeba.txt"
        known = _read_celeba_attributes(attributes) if attributes.is_file() else None
        photos = []
        for name, (part,) in parts.items():
            if part not in (CELEBA_TRAIN, CELEBA_VALIDATION):
                continue
            label, caption = None, None
            if known is not None:
                if name not in known:
                    raise DataError(f"{attributes} does not list {name}")
                label = CELEBA_AGES.index("young" if "young" in known[name] else "old")
                caption = "a photograph of a person: " + ", ".join(known[name])
            path = base / "img_align_celeba" / name
            photos.append(_Photo(path, part == CELEBA_VALIDATION, label, caption))
        return _pack_photos(request, photos, CELEBA_AGES if known is not None else ())


def _read_celeba_attributes(path: Path) -> dict[str, list[str]]:
    """Read the names of the attributes that each photograph has."""
    lines = path.read_text(encoding="utf-8").splitlines()
    names = lines[1].split() if len(lines) > 1 else []
    phrases = [name.lower().replace("_", " ") for name in names]
    return {
        file: [phrase for phrase, value in zip(phrases, values, strict=True) if value == "1"]
        for file, values in _read_table(path, columns=len(names), skip=2)
    }


def _read_table(path: Path, columns: int, skip: int = 0) -> Iterator[tuple[str, list[str]]]:
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines[skip:], start=skip + 1):
        name, *values = line.split() or [""]
        if len(values) != columns or Path(name).name != name:
            raise DataError(f"{path}:{number}: expected a file name and {columns} values")
        yield name, values


def _pack_photos(
    request: FetchRequest, photos: list[_Photo], classes: tuple[str, ...]
) -> PackSummary:
    samples = draw_all(partial(_convert, size=request.size), list(enumerate(photos)))
    return pack_samples(request, samples, len(photos), classes=classes)


def _convert(numbered: tuple[int, _Photo], size: int) -> PackedSample:
    number, photo = numbered
    return PackedSample(
        key=f"{number:06d}-{photo.path.stem}",
        images={"image": to_png(fit_image(load_image(photo.path), size, "crop"))},
        for_validation=photo.for_validation,
        image_size=size,
        label=photo.label,
        caption=photo.caption,
    )


def pack_pix2pix(request: FetchRequest, name: str) -> PackSummary:
    """Pack one of pix2pix's archives of pairs side by side; val or else test is held out."""
    with open_original(request, PIX2PIX_URL.format(name)) as folder:
        base = folder if (folder / "train").is_dir() else folder / name
        if not (base / "train").is_dir():
            raise DataError(
                f"{folder} has no folder train or {name}/train, as pix2pix's archives do"
            )
        return pack_folder(
            base,
            request.dest_uri,
            size=request.size,
            parallel_map=request.parallel_map,
            progress=request.progress,
            is_reserved=True,
        )


@contextmanager
def open_original(request: FetchRequest, url: str | None) -> Iterator[Path]:
    """Yield the folder of the original files, from ``request.source`` or else from ``url``.

    A URL is downloaded, and an archive unpacked, into a folder that is removed at the end.
    """
    source = request.source or url
    if source is None:
        raise UsageError("these images have no download URL; get them and give --from PATH")
    if Path(source).is_dir():
        yield Path(source)
        return
    with temporary_folder("the original files") as temporary:
        archive = Path(source)
        if source.startswith(("http://", "https://")):
            archive = temporary / "archive"
            _download(source, archive)
        folder = temporary / "files"
        _unpack(archive, folder)
        yield folder


def _download(url: str, path: Path) -> None:
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response, path.open("wb") as file:
            shutil.copyfileobj(response, file, 1 << 20)
    except (OSError, urllib.error.URLError) as error:
        raise EnvironmentProblem(
            f"{mask(url)} cannot be fetched ({mask(str(error))}); "
            "download the file on a machine with access, and give it with --from PATH"
        ) from error


def _unpack(archive: Path, folder: Path) -> None:
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as files:
                files.extractall(folder)
            return
        with tarfile.open(archive) as files:
            files.extractall(folder, filter="data")  # refuses paths and links out of the folder
            assert files.fileobj is not None, "open"
            while files.fileobj.read(1 << 20):  # gzip and xz check their sums at the end
                pass
    except FileNotFoundError as error:
        raise DataError(f"there is no file or folder {archive}; see --from") from error
    except _UNPACKING_ERRORS as error:
        raise DataError(f"{archive} cannot be unpacked as a tar or zip: {error}") from error


def _find_folder_with(folder: Path, name: str) -> Path:
    """Return ``folder``, or the first folder below it, that holds a file called ``name``."""
    for found in sorted(folder.rglob(name)):
        return found.parent
    raise DataError(f"{folder} holds no {name}; give the folder of the original files")

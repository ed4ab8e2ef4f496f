"""Data sets that are read from their original files: small files of the same format."""

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
from PIL import Image
from typer.testing import CliRunner

from orchestrator.cli import app
from orchestrator.data.datasets import archives
from orchestrator.data.datasets.sources import NAMED_DATASETS, fetch
from orchestrator.data.format.shard_index import open_set
from orchestrator.data.prepare.check import check_set
from orchestrator.errors import DataError, EnvironmentProblem, UsageError
from support.fetched import pixels, samples

BATCHES = [*archives.CIFAR10_TRAIN, *archives.CIFAR10_TEST]


@pytest.fixture
def cifar10(tmp_path: Path) -> tuple[Path, numpy.ndarray, numpy.ndarray]:
    """A folder in CIFAR-10's binary format, its labels (6, 4) and its images (6, 4, 32, 32, 3)."""
    generator = numpy.random.default_rng(0)
    labels = generator.integers(0, 10, (6, 4), numpy.uint8)
    images = generator.integers(0, 256, (6, 4, 32, 32, 3), numpy.uint8)
    folder = tmp_path / "cifar" / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    for batch, name in enumerate(BATCHES):
        with (folder / name).open("wb") as file:
            for label, image in zip(labels[batch], images[batch], strict=True):
                file.write(bytes([label]))
                for channel in range(3):
                    file.write(image[:, :, channel].tobytes())
    return tmp_path / "cifar", labels, images


def packed_tar(folder: Path, path: Path) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for child in sorted(folder.iterdir()):
            tar.add(child, child.name)
    return path


def test_cifar_10_is_read_from_its_binary_version(
    cifar10: tuple[Path, numpy.ndarray, numpy.ndarray], tmp_path: Path
) -> None:
    folder, labels, images = cifar10
    fetch("cifar10", str(tmp_path / "out"), size=32, source=str(folder))
    train, held_out = samples(tmp_path / "out" / "train"), samples(tmp_path / "out" / "validation")
    assert [int(s["cls"]) for s in train] == labels[:5].flatten().tolist()
    assert [int(s["cls"]) for s in held_out] == labels[5].tolist()
    assert (
        numpy.stack([pixels(s["image"]) for s in train]) == images[:5].reshape(20, 32, 32, 3)
    ).all()
    classes = open_set(str(tmp_path / "out" / "train")).index.classes
    assert (classes[0], classes[3], classes[9]) == ("airplane", "cat", "truck")
    assert check_set(str(tmp_path / "out" / "train")).ok


def test_an_archive_gives_the_same_set_as_its_folder(
    cifar10: tuple[Path, numpy.ndarray, numpy.ndarray], tmp_path: Path
) -> None:
    tar = packed_tar(cifar10[0], tmp_path / "cifar-10-binary.tar.gz")
    with zipfile.ZipFile(tmp_path / "cifar.zip", "w") as file:
        for path in cifar10[0].rglob("*.bin"):
            file.write(path, path.name)
    digests = set()
    for number, source in enumerate([cifar10[0], tar, tmp_path / "cifar.zip"]):
        fetch("cifar10", str(tmp_path / str(number)), size=32, source=str(source))
        digests.add(open_set(str(tmp_path / str(number) / "train")).digest)
    assert len(digests) == 1


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_an_archive_with_a_changed_byte_is_never_unpacked(
    compress: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as tar:
        header = tarfile.TarInfo("data_batch_1.bin")
        header.size = 40_000
        content = numpy.random.default_rng(0).integers(0, 256, header.size, numpy.uint8)
        tar.addfile(header, io.BytesIO(content.tobytes()))
    whole = compress(plain.getvalue())
    for place in range(20, len(whole), 997):
        changed = bytearray(whole)
        changed[place] ^= 0x10
        (tmp_path / "a.tar").write_bytes(changed)
        with pytest.raises(DataError, match=r"a\.tar cannot be unpacked as a tar or zip"):
            fetch("cifar10", str(tmp_path / "out"), size=32, source=str(tmp_path / "a.tar"))


def test_a_zip_with_a_password_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("data_batch_1.bin", "x")
    content = bytearray(path.read_bytes())
    for start, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):  # zipfile cannot write one
        content[content.index(start) + flags] |= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="password required"):
        fetch("cifar10", str(tmp_path / "out"), size=32, source=str(path))


def test_corrupt_cifar_files_are_named(
    cifar10: tuple[Path, numpy.ndarray, numpy.ndarray], tmp_path: Path
) -> None:
    folder = cifar10[0] / "cifar-10-batches-bin"
    out = str(tmp_path / "out")
    whole = (folder / "data_batch_2.bin").read_bytes()
    for corrupt, message in [
        (whole[:-1], r"data_batch_2\.bin has 12291 bytes, which is not a multiple"),
        (b"\x0a" + whole[1:], r"data_batch_2\.bin has the class 10"),
    ]:
        (folder / "data_batch_2.bin").write_bytes(corrupt)
        with pytest.raises(DataError, match=message):
            fetch("cifar10", out, size=32, source=str(cifar10[0]))
    (folder / "data_batch_2.bin").unlink()
    with pytest.raises(DataError, match=r"data_batch_2\.bin is missing"):
        fetch("cifar10", out, size=32, source=str(cifar10[0]))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds no data_batch_1\.bin"):
        fetch("cifar10", out, size=32, source=str(tmp_path / "empty"))


def photo(path: Path, size: tuple[int, int], colour: tuple[int, int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


@pytest.fixture
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 1)


def test_all_lfw_photographs_of_a_person_are_in_one_set(one_process: None, tmp_path: Path) -> None:
    for person in range(40):
        for number in range(1, 3):
            name = f"Person_{person:02d}"
            path = tmp_path / f"lfw/lfw-deepfunneled/{name}/{name}_{number:04d}.jpg"
            photo(path, (25, 25), (person, 0, 0))
    fetch("lfw", str(tmp_path / "out"), size=16, source=str(tmp_path / "lfw"))
    people = [
        [s["key"].decode().partition("-")[2][:9] for s in samples(tmp_path / "out" / part)]
        for part in ("train", "validation")
    ]
    assert len(people[0]) + len(people[1]) == 80
    assert people[1]
    assert not set(people[0]) & set(people[1])
    with pytest.raises(DataError, match="holds no photographs"):
        fetch("lfw", str(tmp_path / "none"), size=16, source=str(tmp_path / "out"))


@pytest.fixture
def celeba(tmp_path: Path) -> Path:
    folder = tmp_path / "celeba"
    for n in range(6):
        photo(folder / f"img_align_celeba/{n:06d}.jpg", (178, 218), (0, 40 * n, 0))
    parts = "".join(f"{n:06d}.jpg {part}\n" for n, part in enumerate([0, 0, 0, 1, 2, 1]))
    (folder / "list_eval_partition.txt").write_text(parts)
    return folder


def test_celeba_keeps_its_own_split_and_is_cropped_to_the_centre(
    one_process: None, celeba: Path, tmp_path: Path
) -> None:
    image = Image.new("RGB", (178, 218), "red")
    image.paste((0, 0, 255), (0, 18, 178, 200))
    image.save(celeba / "img_align_celeba/000000.jpg", quality=100)
    fetch("celeba", str(tmp_path / "out"), size=178, source=str(celeba))
    train, held_out = samples(tmp_path / "out" / "train"), samples(tmp_path / "out" / "validation")
    assert [s["key"][-6:] for s in train] == [b"000000", b"000001", b"000002"]
    assert [s["key"][-6:] for s in held_out] == [b"000003", b"000005"], "no test image"
    assert pixels(train[0]["image"])[:, :, 2].min() > 200, "no red is left"
    assert open_set(str(tmp_path / "out" / "train")).index.classes == ()


def test_celebas_attributes_become_classes_and_captions(
    one_process: None, celeba: Path, tmp_path: Path
) -> None:
    rows = ["1 -1 1", "-1 1 1", "-1 -1 -1", "1 1 1", "1 1 1", "1 1 -1"]
    lines = [f"{n:06d}.jpg  {row}" for n, row in enumerate(rows)]
    (celeba / "list_attr_celeba.txt").write_text(
        "\n".join(["6", "Smiling Wavy_Hair Young", *lines]) + "\n"
    )
    fetch("celeba", str(tmp_path / "out"), size=16, source=str(celeba))
    train = samples(tmp_path / "out" / "train")
    assert open_set(str(tmp_path / "out" / "train")).index.classes == ("old", "young")
    assert [int(s["cls"]) for s in train] == [1, 1, 0]
    assert train[0]["txt"] == b"a photograph of a person: smiling, young"
    assert train[1]["txt"] == b"a photograph of a person: wavy hair, young"


def test_a_list_with_a_path_is_refused(celeba: Path, tmp_path: Path) -> None:
    (celeba / "list_eval_partition.txt").write_text("../../secret.jpg 0\n")
    with pytest.raises(DataError, match=r"partition\.txt:1: expected a file name"):
        fetch("celeba", str(tmp_path / "out"), size=16, source=str(celeba))


def test_a_pix2pix_archive_becomes_pairs(tmp_path: Path) -> None:
    for part, count in (("train", 3), ("val", 2), ("test", 1)):
        for n in range(count):
            path = tmp_path / f"in/facades/{part}/{n}.jpg"
            photo(path, (32, 16), (0, 0, 0))
            image = Image.open(path)
            image.paste((255, 255, 255), (16, 0, 32, 16))
            image.save(path)
    tar = packed_tar(tmp_path / "in", tmp_path / "facades.tar.gz")
    fetch("facades", str(tmp_path / "out"), size=16, source=str(tar))
    train, held_out = samples(tmp_path / "out" / "train"), samples(tmp_path / "out" / "validation")
    assert (len(train), len(held_out)) == (3, 2)
    assert pixels(train[0]["a"]).mean() < 10
    assert pixels(train[0]["b"]).mean() > 245


def test_an_archive_cannot_write_outside_its_folder(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "evil.tar", "w") as tar:
        member = tarfile.TarInfo("../../evil.txt")
        member.size = 1
        tar.addfile(member, io.BytesIO(b"x"))
    with pytest.raises(DataError, match="cannot be unpacked as a tar or zip"):
        fetch("facades", str(tmp_path / "out"), size=16, source=str(tmp_path / "evil.tar"))


@pytest.mark.parametrize(
    ("name", "source", "error", "message"),
    [
        ("lfw", None, UsageError, "give --from PATH"),
        ("maps", "/nowhere/maps.tar.gz", DataError, "there is no file or folder /nowhere/maps"),
        ("maps", __file__, DataError, "cannot be unpacked"),
        ("cifar10", "http://127.0.0.1:9/x.tar.gz", EnvironmentProblem, "cannot be fetched"),
    ],
)
def test_missing_or_unreadable_files_are_named(
    name: str, source: str | None, error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        fetch(name, str(tmp_path), size=16, source=source)


def test_the_command_reads_original_files(
    cifar10: tuple[Path, numpy.ndarray, numpy.ndarray], tmp_path: Path
) -> None:
    arguments = ["data", "fetch", "cifar10", str(tmp_path / "out"), "--size", "32"]
    CliRunner().invoke(app.app, [*arguments, "--from", str(cifar10[0])], catch_exceptions=False)
    assert open_set(str(tmp_path / "out" / "train")).num_samples == 20


def test_the_help_names_every_data_set() -> None:
    shown = CliRunner().invoke(app.app, ["data", "fetch", "--help"]).output
    assert [name for name in NAMED_DATASETS if name not in shown] == []

"""Tars in place, of images of any size, and split into a training and a validation set."""

import hashlib
import io
import itertools
import zlib
from pathlib import Path

import numpy
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps
from typer.testing import CliRunner

from orchestrator.cli import app
from orchestrator.data.format.images import Fit
from orchestrator.data.format.shard_index import ShardSet, open_set
from orchestrator.data.loading import window_reader
from orchestrator.data.loading.stream import ShardStream
from orchestrator.data.prepare.check import check_sets
from orchestrator.data.prepare.copy import copy_sets
from orchestrator.data.prepare.copy_resized import Resizing, copy_resized
from orchestrator.data.prepare.index_tars import IndexOptions, index_set
from orchestrator.errors import CorruptSample, DataError, UsageError
from orchestrator.storage.open import open_storage
from support.sample_sets import SIZE, CountingStorage, job_for
from support.tars import all_samples, noise_image, write_tar

NUM = 60
SHARE = 0.3


def image_of(n: int) -> bytes:
    """Sample n; each fifth repeats the one before."""
    return noise_image(n - (n % 5 == 4), (SIZE, SIZE))


def write_tars(folder: Path) -> str:
    for tar in range(3):
        numbers = range(20 * tar, 20 * tar + 20)
        files = {
            f"{n}.{e}": d
            for n in numbers
            for e, d in (("png", image_of(n)), ("cls", b"%d" % (n % 7)))
        }
        write_tar(folder / f"{tar}.tar", {"README": b"x", **files})
    return str(folder)


def held_out(n: int, share: float = SHARE) -> bool:
    """As the docs say: the first 8 bytes of the image's sha256 are below the share."""
    number = int.from_bytes(hashlib.sha256(image_of(n)).digest()[:8], "big")
    return number / 2**64 < share


def numbers_of(packed: ShardSet) -> list[int]:
    """The numbers of the samples of a set, by their classes and images."""
    found = []
    for shard, size in enumerate(packed.shard_sizes):
        first = 20 * int(packed.index.shards[shard].name.removesuffix(".tar"))
        for index in range(size):
            sample = {name: bytes(data) for name, data in packed.read(shard, index).items()}
            found.append(
                next(
                    n
                    for n in range(first, first + 20)
                    if (image_of(n), b"%d" % (n % 7)) == (sample["image"], sample["cls"])
                )
            )
    return found


@pytest.mark.parametrize("where", ["folder", pytest.param("s3", marks=pytest.mark.server)])
def test_each_sample_is_in_the_set_that_its_content_decides(
    tmp_path: Path, where: str, request: pytest.FixtureRequest
) -> None:
    uri = write_tars(tmp_path)
    if where == "s3":
        uri = request.getfixturevalue("s3")
        for path in tmp_path.glob("*.tar"):
            open_storage(uri).put(path.name, path.read_bytes())
    summary = index_set(uri, IndexOptions(validation_share=SHARE))
    assert summary.validation is not None
    sets = [open_set(f"{uri}/{part}") for part in ("train", "validation")]
    expected = [[n for n in range(NUM) if held_out(n) == part] for part in (False, True)]
    assert all(expected)
    assert [numbers_of(packed) for packed in sets] == expected
    assert sets[0].digest != sets[1].digest
    stored = sum(open_storage(uri).size(f"{n}.tar") for n in range(3))
    assert sum(packed.num_bytes for packed in sets) < stored
    assert all(report.ok for report in check_sets([f"{uri}/train", f"{uri}/validation"]))
    assert sorted(k for k in open_storage(uri).list() if k.endswith(".tar")) == [
        "0.tar", "1.tar", "2.tar",
    ]  # fmt: skip


def test_duplicates_stay_together(tmp_path: Path) -> None:
    uri = write_tars(tmp_path)
    index_set(uri, IndexOptions(validation_share=SHARE))
    images = [{s["image"] for s in all_samples(f"{uri}/{p}")} for p in ("train", "validation")]
    assert not images[0] & images[1]


def test_both_sets_are_trained_on_and_held_out_samples_do_not_split_requests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = write_tars(tmp_path)
    index_set(uri, IndexOptions(validation_share=0.1))
    stream = ShardStream(job_for(uri, image_size=SIZE), 0, 1)
    batches = stream.training(0)
    images = [i for b in itertools.islice(batches, stream.num_samples // 8) for i in b.images]
    batches.close()
    known = {decoded(image_of(n), SIZE).tobytes() for n in range(NUM) if not held_out(n, 0.1)}
    seen = {((i + 1) * 127.5).round().byte().permute(1, 2, 0).numpy().tobytes() for i in images}
    assert len(images) == stream.num_samples // 8 * 8
    assert seen <= known
    count = sum(len(batch.images) for batch in stream.validation())
    assert count == stream.num_validation == NUM - stream.num_samples

    counted = CountingStorage.install(monkeypatch)
    monkeypatch.setattr(window_reader, "MAX_GAP_BYTES", 0)
    train = open_set(f"{uri}/train", lambda uri: counted(Path(uri)))
    window_reader.read_samples(train, *train.locate(numpy.arange(train.num_samples)))
    assert len(counted.ranges) < count
    assert sum(length for _, _, length in counted.ranges) < 1.25 * train.num_bytes


def test_any_number_of_workers_gets_the_same_samples_of_a_split_set(tmp_path: Path) -> None:
    uri = write_tars(tmp_path)
    index_set(uri, IndexOptions(validation_share=SHARE))

    def batch(world_size: int) -> set[bytes]:
        found = set()
        for rank in range(world_size):
            batches = ShardStream(job_for(uri, image_size=SIZE), rank, world_size).training(16)
            found |= {image.numpy().tobytes() for image in next(batches).images}
            batches.close()
        return found

    assert batch(1) == batch(2) == batch(3)


def test_a_corrupt_sample_of_a_split_set_is_named(tmp_path: Path) -> None:
    uri = write_tars(tmp_path)
    index_set(uri, IndexOptions(validation_share=SHARE))
    packed = open_set(f"{uri}/validation")
    data = bytearray((tmp_path / "0.tar").read_bytes())
    data[int(packed.table(0).ends[1]) - 600] ^= 1
    (tmp_path / "0.tar").write_bytes(data)
    with pytest.raises(CorruptSample, match=r"/0\.tar, sample 1 of validation: the bytes differ"):
        packed.read(0, 1)
    train, validation = check_sets([f"{uri}/train", f"{uri}/validation"])
    assert len(train.problems) == 1  # the sha256 of the tar
    assert len(validation.problems) == 2


def test_split_sets_are_copied_together_and_each_tar_once(tmp_path: Path) -> None:
    uri = write_tars(tmp_path / "from")
    index_set(uri, IndexOptions(validation_share=SHARE))
    done: list[tuple[int, int]] = []
    summary = copy_sets(uri, str(tmp_path / "to"), lambda *at: done.append(at))
    stored = sum(path.stat().st_size for path in (tmp_path / "from").glob("*.tar"))
    assert (summary.num_samples, summary.num_shards, done[-1]) == (NUM, 3, (stored, stored))
    for part in ("train", "validation"):
        assert all_samples(tmp_path / "to" / part) == all_samples(f"{uri}/{part}")
    with pytest.raises(DataError, match=r"is a part of the tar files at .*from: copy that"):
        copy_sets(f"{uri}/train", str(tmp_path / "alone"))
    assert copy_sets(uri, str(tmp_path / "to")).num_kept == 3


def test_a_split_needs_samples_on_both_sides_and_no_other_index(tmp_path: Path) -> None:
    uri = write_tars(tmp_path)
    with pytest.raises(DataError, match=r"all samples .* held out; give a smaller"):
        index_set(uri, IndexOptions(validation_share=0.999999999999))
    summary = index_set(uri, IndexOptions(validation_share=1e-9))
    assert summary.validation is None
    assert "none of the 60 samples was held out for validation" in summary.notes
    with pytest.raises(DataError, match=r"already a packed set at .*/train; remove its"):
        index_set(uri, IndexOptions(validation_share=SHARE))


SHAPES = [(8, 8), (12, 8), (8, 14), (30, 10), (5, 5)]


def of_any_size(n: int) -> bytes:
    return noise_image(n, SHAPES[n % 5], "JPEG" if n % 2 else "PNG")


def decoded(data: bytes, size: int, fit: Fit = "crop") -> NDArray[numpy.uint8]:
    """Fitted by Pillow's own functions."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    bicubic = Image.Resampling.BICUBIC
    if image.size == (size, size):
        return numpy.asarray(image)
    if fit == "stretch":
        return numpy.asarray(image.resize((size, size), bicubic))
    if fit == "crop":
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        cut = image.crop((left, top, left + side, top + side))
        return numpy.asarray(cut if side == size else cut.resize((size, size), bicubic))
    side = max(image.size)
    padded = ImageOps.pad(image, (side, side), color="white")
    return numpy.asarray(padded if side == size else padded.resize((size, size), bicubic))


def write_any_sizes(folder: Path) -> str:
    files = {f"{n}.{'jpg' if n % 2 else 'png'}": of_any_size(n) for n in range(10)}
    write_tar(folder / "x.tar", files)
    return str(folder)


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_images_of_any_size_are_fitted_while_they_are_read(tmp_path: Path, fit: Fit) -> None:
    uri = write_any_sizes(tmp_path)
    with pytest.raises(DataError, match=r"8 of 10 images do not fit.* with --size 8 --fit crop"):
        index_set(uri)
    index_set(uri, IndexOptions(size=8, fit=fit))
    packed = open_set(uri)
    assert (packed.index.fit, packed.index.preparation.fit) == (fit, fit)
    for n in range(10):
        found = packed.decode(packed.read(0, n), "here").images["image"]
        assert numpy.array_equal(found, decoded(of_any_size(n), 8, fit))


def test_images_of_the_size_itself_need_no_fit(tmp_path: Path) -> None:
    write_tar(tmp_path / "a/x.tar", {"0.png": noise_image(0)})
    write_tar(tmp_path / "b/x.tar", {"0.png": noise_image(0)})
    with_size = index_set(str(tmp_path / "a"), IndexOptions(size=8)).index
    assert with_size == index_set(str(tmp_path / "b")).index
    assert b'"fit"' not in (tmp_path / "a/index.json").read_bytes()


def test_a_decompression_bomb_is_refused_by_its_header(tmp_path: Path) -> None:
    bomb = bytearray(noise_image(0))
    bomb[16:24] = (20_000).to_bytes(4, "big") * 2
    bomb[29:33] = zlib.crc32(bomb[12:29]).to_bytes(4, "big")
    write_tar(tmp_path / "x.tar", {"0.png": noise_image(0), "1.png": bytes(bomb)})
    with pytest.raises(
        DataError, match=r"(?s)1 of 2 images .*1\.png is not a readable image .*400000000"
    ):
        index_set(str(tmp_path), IndexOptions(size=8))
    write_any_sizes(tmp_path / "set")
    index_set(str(tmp_path / "set"), IndexOptions(size=8))
    with pytest.raises(CorruptSample, match=r"here is 20000x20000; at most"):
        open_set(str(tmp_path / "set")).decode_image(bytes(bomb), "here")


def test_pairs_of_other_proportions_are_refused(tmp_path: Path) -> None:
    pair = {"0.a.png": noise_image(0, (8, 8)), "0.b.png": noise_image(1, (16, 8))}
    write_tar(tmp_path / "x.tar", pair)
    with pytest.raises(DataError, match=r"0 is a pair of 16x8 and 8x8|0 is a pair of 8x8 and 16x8"):
        index_set(str(tmp_path), IndexOptions(size=8))


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_a_copy_of_another_size_holds_the_same_samples(tmp_path: Path, fit: Fit) -> None:
    uri = write_any_sizes(tmp_path / "from")
    index_set(uri, IndexOptions(size=8, fit="crop"))
    command = ["data", "cp", uri, str(tmp_path / "to"), "--size", "6", "--fit", fit]
    CliRunner().invoke(app.app, command, catch_exceptions=False)
    packed = open_set(str(tmp_path / "to"))
    assert (packed.image_size, packed.index.fit, packed.index.preparation.fit) == (6, None, fit)
    for n in range(10):
        found = packed.decode(packed.read(0, n), "here").images["image"]
        assert numpy.array_equal(found, decoded(of_any_size(n), 6, fit))
    with pytest.raises(UsageError, match="there is no --size"):
        CliRunner().invoke(app.app, [*command[:4], "--fit", fit], catch_exceptions=False)


def test_a_resized_copy_keeps_classes_splits_and_order_and_can_be_resumed(tmp_path: Path) -> None:
    uri = write_tars(tmp_path / "from")
    index_set(uri, IndexOptions(validation_share=SHARE))
    to, resizing = str(tmp_path / "to"), Resizing(4, "crop", shard_bytes=6000)

    class Interrupted(BaseException):
        pass

    first = tmp_path / "to/validation/000000.tar"

    def progress(done: int, total: int) -> None:
        assert total == NUM
        if first.exists():
            raise Interrupted

    with pytest.raises(Interrupted):
        copy_resized(uri, to, resizing, progress)
    assert not (tmp_path / "to/train/index.json").exists()
    written = first.stat().st_mtime_ns
    copy_resized(uri, to, resizing)
    assert first.stat().st_mtime_ns == written, "what is there has the same bytes, and stays"
    for part in ("train", "validation"):
        source = all_samples(f"{uri}/{part}")
        found = all_samples(f"{to}/{part}")
        assert [s["cls"] for s in found] == [s["cls"] for s in source]
        images = [numpy.asarray(Image.open(io.BytesIO(s["image"]))) for s in found]
        assert all(
            numpy.array_equal(image, decoded(s["image"], 4))
            for image, s in zip(images, source, strict=True)
        )
    assert all(report.ok for report in check_sets([f"{to}/train", f"{to}/validation"]))


def test_a_resized_copy_keeps_the_fit_of_its_set(tmp_path: Path) -> None:
    uri = str(tmp_path / "from")
    write_tar(
        tmp_path / "from/x.tar",
        {f"{n}.{'jpg' if n % 2 else 'png'}": of_any_size(n) for n in range(6)},
    )
    index_set(uri, IndexOptions(size=8, fit="pad"))
    copy_resized(uri, str(tmp_path / "to"), Resizing(4))
    for n, sample in enumerate(all_samples(str(tmp_path / "to"))):
        found = numpy.asarray(Image.open(io.BytesIO(sample["image"])))
        assert numpy.array_equal(found, decoded(of_any_size(n), 4, "pad"))

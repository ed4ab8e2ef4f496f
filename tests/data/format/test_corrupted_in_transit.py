"""One byte of any object of a set, or of a checkpoint, arrives wrong: it is read again."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy
import pytest
from PIL import Image

from orchestrator.data.format.shard_index import open_set
from orchestrator.data.format.writer import ShardWriter
from orchestrator.data.prepare.check import check_set
from orchestrator.data.prepare.copy import copy_sets
from orchestrator.data.prepare.copy_resized import Resizing, copy_resized
from orchestrator.errors import DataError
from orchestrator.storage import s3_settings
from orchestrator.storage.open import open_storage
from services.quirky_s3 import QuirkyStore, quirky_s3
from support.checkpoints import make_checkpoints, make_state

pytestmark = pytest.mark.slow

URI, SIZE, COUNT = "s3://bucket/set", 8, 12


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    pixels = numpy.random.default_rng(number).integers(0, 256, (SIZE, SIZE, 3), numpy.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def served() -> Iterator[QuirkyStore]:
    """A bucket with a set of two shards, and with a checkpoint."""
    with quirky_s3("none") as store, pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ENDPOINT_URL", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "AWS_PROFILE"):
            patch.delenv(name, raising=False)
        patch.setenv("AWS_ENDPOINT_URL_S3", store.url)
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setattr(s3_settings, "_lacking", set())
        patch.setattr(s3_settings, "_honoring", set())
        writer = ShardWriter(URI, ("image",), image_size=SIZE, channels=3, shard_bytes=8000)
        for number in range(COUNT):
            writer.add(f"key{number:02}", {"image": png(number)})
        writer.finish()
        make_checkpoints(open_storage(URI.removesuffix("/set"))).save(make_state(8))
        yield store


def objects(store: QuirkyStore, part: str) -> list[str]:
    return sorted(key for key in store.objects if f"/{part}/" in key)


def read_all(folder: Path) -> None:
    packed = open_set(URI)
    images = [
        bytes(packed.read(shard, index)["image"])
        for shard, size in enumerate(packed.shard_sizes)
        for index in range(size)
    ]
    assert images == [png(number) for number in range(COUNT)]


def check(folder: Path) -> None:
    if problems := check_set(URI).problems:
        raise DataError(problems[0])


def copy(folder: Path) -> None:
    copy_sets(URI, str(folder / "copy"))
    assert check_set(str(folder / "copy")).problems == []


def resize(folder: Path) -> None:
    copy_resized(URI, str(folder / "copy"), Resizing(4))


USES: list[Callable[[Path], None]] = [read_all, check, copy, resize]


@pytest.mark.parametrize("use", USES)
def test_every_object_of_a_set_is_read_again(
    served: QuirkyStore, use: Callable[[Path], None], tmp_path: Path
) -> None:
    found = objects(served, "set")
    assert len(found) == 5, "an index, and two shards with their tables"
    for number, key in enumerate(found):
        served.flips[key] = 1
        use(tmp_path / str(number))
        assert served.flips[key] == 0, f"the test has flipped no byte of {key}"


@pytest.mark.parametrize("use", USES)
def test_what_is_wrong_each_time_is_a_data_error(
    served: QuirkyStore, use: Callable[[Path], None], tmp_path: Path
) -> None:
    for number, key in enumerate(objects(served, "set")):
        served.flips[key] = 1000
        try:
            with pytest.raises(DataError, match=r"corrupt|differ"):
                use(tmp_path / str(number))
        finally:
            served.flips.clear()


def test_every_file_of_a_checkpoint_is_read_again_and_none_is_quarantined(
    served: QuirkyStore,
) -> None:
    checkpoints = make_checkpoints(open_storage("s3://bucket"))
    found = objects(served, "checkpoints")
    assert len(found) == 7
    for key in found:
        served.flips[key] = 1
        loaded = checkpoints.latest()
        assert loaded is not None
        assert loaded.images_seen == 8
        assert served.flips[key] == 0
    assert objects(served, "checkpoints") == found

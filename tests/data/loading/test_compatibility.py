"""Sets that do not fit the model or the batch size are rejected."""

from pathlib import Path
from typing import Any

import pytest

from orchestrator.data.format.writer import ShardWriter
from orchestrator.data.loading.stream import ShardStream
from orchestrator.errors import DataError
from support.sample_sets import SIZE, first_batches, job_for, pixels, png, write_pairs, write_set


@pytest.fixture
def pairs(tmp_path: Path) -> str:
    return write_pairs(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 16}, r"packed at 8 px, but model\.image_size is 16; pack it again"),
        ({"image_size": 4}, r"packed at 8 px, but model\.image_size is 4"),
        ({"validation": "nowhere"}, "there is no packed set at nowhere"),
    ],
)
def test_sets_that_do_not_fit_the_model_are_rejected(
    pairs: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        ShardStream(job_for(pairs, **changes), 0, 1)


def test_sizes_may_differ_if_augmentation_makes_them_fit(pairs: str) -> None:
    cropped = job_for(pairs, image_size=6, augment={"crop": 6})
    (batch,) = first_batches(cropped, 0, 1, 1)
    assert batch.images.shape[-2:] == (6, 6)
    validation = next(iter(ShardStream(cropped, 0, 1).validation()))
    assert validation.images.shape[-2:] == (6, 6)


def test_an_image_translation_model_needs_pairs(tmp_path: Path) -> None:
    write_set(str(tmp_path / "train"), 8, fields=("image",))
    with pytest.raises(DataError, match="single images, but model tiny translates"):
        ShardStream(job_for(str(tmp_path), ("pairs",), validation=None), 0, 1)


def test_wrong_channels_and_too_few_samples_are_rejected(tmp_path: Path) -> None:
    writer = ShardWriter(str(tmp_path / "train"), ("image",), image_size=SIZE, channels=1)
    writer.add("k", {"image": png(pixels(0, channels=1))})
    writer.finish()
    with pytest.raises(DataError, match=r"1 channels, but model\.channels is 3; .*without --grey"):
        ShardStream(job_for(str(tmp_path), validation=None), 0, 1)
    write_set(str(tmp_path / "few" / "train"), 7)
    with pytest.raises(DataError, match="has 7 samples, fewer than one batch"):
        ShardStream(job_for(str(tmp_path / "few"), validation=None), 0, 1)

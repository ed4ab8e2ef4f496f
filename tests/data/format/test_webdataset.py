"""The webdataset package reads our shards, and we train on the tars that it writes."""

import itertools
import subprocess
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import webdataset

from orchestrator.config.data_section import DataSection
from orchestrator.config.job import Job, TrainSection
from orchestrator.data.format.shard_index import open_set
from orchestrator.data.format.writer import ShardWriter
from orchestrator.data.loading.stream import ShardStream
from orchestrator.data.prepare.field_selection import FieldSelection
from orchestrator.data.prepare.index_tars import IndexOptions, index_set
from orchestrator.models.base import Batch
from orchestrator.storage.open import open_storage
from support.sample_sets import SIZE, TinyConfig, write_set
from support.tars import noise_image

META = ("__key__", "__url__", "__local_path__")


def read_by_webdataset(folder: Path) -> list[dict[str, object]]:
    """All samples as webdataset iterates over them, not decoded: its decoders would unpickle."""
    tars = sorted(str(path) for path in folder.glob("*.tar"))
    return list(webdataset.WebDataset(tars, shardshuffle=False, empty_check=False))


def test_webdataset_reads_our_pairs_in_order(tmp_path: Path) -> None:
    packed = open_set(write_set(str(tmp_path), 40))
    assert len(packed.shard_sizes) > 1
    found = read_by_webdataset(tmp_path)
    assert [sample["__key__"] for sample in found] == [f"s{n}" for n in range(40)]
    places = [(s, i) for s, size in enumerate(packed.shard_sizes) for i in range(size)]
    assert [{"a": s["a.png"], "b": s["b.png"]} for s in found] == [packed.read(*p) for p in places]


def test_webdataset_and_tar_read_our_classes_and_captions(tmp_path: Path) -> None:
    writer = ShardWriter(
        str(tmp_path), ("image",), image_size=8, channels=3, extension="jpg", classes=("a", "b"),
        captions=True,
    )  # fmt: skip
    writer.add("k0", {"image": noise_image(0, kind="JPEG")}, 1, "żółty kot")
    writer.finish()
    (sample,) = read_by_webdataset(tmp_path)
    assert {k: v for k, v in sample.items() if k not in META} == {
        "image.jpg": noise_image(0, kind="JPEG"),
        "cls": b"1",
        "txt": "żółty kot".encode(),
    }
    extracted = tmp_path / "out"
    extracted.mkdir()
    subprocess.run(["tar", "-xf", tmp_path / "000000.tar", "-C", extracted], check=True)
    assert (extracted / "k0.image.jpg").read_bytes() == noise_image(0, kind="JPEG")
    assert (extracted / "k0.txt").read_text("utf-8") == "żółty kot"


def job_for(uri: str, **model: Any) -> Job:
    return Job(
        name="test",
        model=TinyConfig(name="tiny", image_size=SIZE, **model),
        data=DataSection(train=uri, threads=2),
        train=TrainSection(epochs=1, batch_size=5, seed=5),
    )


def read_epoch(job: Job, count: int) -> list[Batch]:
    batches = ShardStream(job, 0, 1).training(0)
    try:
        return list(itertools.islice(batches, count // job.train.batch_size))
    finally:
        batches.close()


def as_pixels(batch: Batch, k: int, name: str = "images") -> bytes:
    tensor: torch.Tensor = getattr(batch, name)[k]
    pixels = ((tensor + 1) * 127.5).round().byte().permute(1, 2, 0)
    return pixels.numpy().tobytes()


def original_pixels(seed: int) -> bytes:
    return numpy.random.default_rng(seed).integers(0, 256, (8, 8, 3), numpy.uint8).tobytes()


@pytest.mark.parametrize("tar_format", [None, "PAX_FORMAT", "GNU_FORMAT"])
@pytest.mark.parametrize("where", ["folder", pytest.param("s3", marks=pytest.mark.server)])
def test_tars_of_webdatasets_shard_writer_are_trained_on_in_place(
    tmp_path: Path, tar_format: str | None, where: str, request: pytest.FixtureRequest
) -> None:
    pattern = str(tmp_path / "train-%04d.tar")
    with webdataset.ShardWriter(pattern, maxcount=7, verbose=0, format=tar_format) as writer:
        for n in range(20):
            sample = {"png": noise_image(n), "cls": n % 4, "txt": f"picture {n}", "json": {"n": n}}
            writer.write({"__key__": f"part/{n:04d}", **sample})
    uri = str(tmp_path)
    if where == "s3":
        uri = request.getfixturevalue("s3")
        for path in tmp_path.glob("*.tar"):
            open_storage(uri).put(path.name, path.read_bytes())
    index_set(uri)
    known = {original_pixels(n): n for n in range(20)}
    seen = []
    for batch in read_epoch(job_for(uri, inputs=("labels", "captions"), classes=4), 20):
        assert batch.labels is not None
        assert batch.captions is not None
        for k, label in enumerate(batch.labels.tolist()):
            n = known[as_pixels(batch, k)]
            assert label == n % 4
            assert bytes(batch.captions[k].tolist()).rstrip(b"\0") == f"picture {n}".encode()
            seen.append(n)
    assert sorted(seen) == list(range(20))


def test_pairs_of_webdatasets_tar_writer_are_trained_on(tmp_path: Path) -> None:
    with webdataset.TarWriter(str(tmp_path / "pairs.tar")) as writer:
        for n in range(10):
            pair = {"input.png": noise_image(n), "target.png": noise_image(100 + n)}
            writer.write({"__key__": f"{n}", **pair})
    index_set(str(tmp_path), IndexOptions(FieldSelection(a="input.png", b="target.png")))
    seen = []
    for batch in read_epoch(job_for(str(tmp_path), inputs=("pairs",)), 10):
        for k in range(5):
            n = [original_pixels(i) for i in range(10)].index(as_pixels(batch, k, "condition"))
            assert as_pixels(batch, k) == original_pixels(100 + n)
            seen.append(n)
    assert sorted(seen) == list(range(10))

"""mosaicml-streaming: MDS shards downloaded to a local cache, two processes."""

from collections.abc import Callable, Iterator
from typing import Any

import boto3
from streaming import MDSWriter, StreamingDataset
from streaming.base.util import clean_stale_shared_memory
from torch.utils.data import DataLoader

from benchmarks.stream import bucket, pixels
from benchmarks.stream.kinds import Kind, read_source
from benchmarks.stream.pixels import BATCH, WORKERS, Images
from benchmarks.stream.setting import Setting


def pack(setting: Setting) -> None:
    """Write MDS with its writer, as bytes, because its JPEG type decodes with Pillow."""
    folder = setting.scratch / "set"
    samples = list(read_source(setting.source))
    payload = sum(len(data) for _, images in samples for data in images.values())
    columns = dict.fromkeys(setting.kind.fields, "bytes")
    limit = payload // setting.shards + 40 * setting.per_shard
    with MDSWriter(out=str(folder), columns=columns, size_limit=limit) as writer:
        for _, images in samples:
            writer.write(images)
    bucket.upload(folder, setting)


def start(setting: Setting) -> None:
    """Clean up shared memory, as its documentation advises after a crash."""
    clean_stale_shared_memory()
    boto3.session.Session().client("s3")  # triggers boto3's lazy imports


class _Images(StreamingDataset):  # type: ignore[misc] # streaming has no types
    def __init__(self, kind: Kind, **options: Any) -> None:
        super().__init__(**options)
        self._kind = kind

    def __getitem__(self, at: int) -> Images:
        return pixels.decode_sample(super().__getitem__(at), self._kind)


def batches(setting: Setting, worker_init: Callable[[int], None] | None = None) -> Iterator[Images]:
    """Yield the batches of one epoch."""
    dataset = _Images(
        setting.kind,
        remote=setting.uri,
        local=str(setting.scratch / "cache"),
        batch_size=BATCH,
        shuffle=True,
        shuffle_seed=setting.seed,
    )
    loader: DataLoader[Images] = DataLoader(
        dataset,
        batch_size=BATCH,
        num_workers=WORKERS,
        collate_fn=pixels.collate,
        worker_init_fn=worker_init,
    )
    for images in loader:
        yield pixels.to_float(images)

"""litdata: chunks downloaded to a local cache, two processes."""

import functools
from collections.abc import Iterator
from pathlib import Path

import boto3
from litdata import StreamingDataLoader, StreamingDataset, optimize
from litdata.streaming import downloader

from benchmarks.stream import bucket, pixels
from benchmarks.stream.kinds import read_source
from benchmarks.stream.pixels import BATCH, WORKERS, Images
from benchmarks.stream.setting import Setting


@functools.lru_cache
def _samples(source: Path) -> list[dict[str, bytes]]:
    return [images for _, images in read_source(source)]


def _sample(number: int, source: Path) -> dict[str, bytes]:
    return _samples(source)[number]


def pack(setting: Setting) -> None:
    """Write chunks with ``optimize``."""
    folder = setting.scratch / "set"
    optimize(
        functools.partial(_sample, source=setting.source),
        inputs=list(range(setting.count)),
        output_dir=str(folder),
        chunk_size=setting.per_shard,
        num_workers=1,
        verbose=False,
    )
    bucket.upload(folder, setting)


def start(setting: Setting) -> None:
    """Allow http:// in its second S3 client, obstore; litdata has no option for it."""
    downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = True
    boto3.session.Session().client("s3")  # triggers boto3's lazy imports


def batches(setting: Setting) -> Iterator[Images]:
    """Yield the batches of one epoch."""
    dataset = StreamingDataset(
        setting.uri,
        cache_dir=str(setting.scratch / "cache"),
        shuffle=True,
        seed=setting.seed,
        transform=functools.partial(pixels.decode_sample, kind=setting.kind),
    )
    loader = StreamingDataLoader(
        dataset, batch_size=BATCH, num_workers=WORKERS, collate_fn=pixels.collate
    )
    for images in loader:
        yield pixels.to_float(images)

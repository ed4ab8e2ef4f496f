"""webdataset: tar shards streamed with boto3, a shuffle buffer, two processes."""

import functools
import io
import os
from collections.abc import Iterator
from typing import Any, BinaryIO

import boto3
import webdataset

from benchmarks.stream import bucket, pixels
from benchmarks.stream.kinds import Kind, read_source
from benchmarks.stream.pixels import BATCH, WORKERS, Images
from benchmarks.stream.setting import Setting

BUFFER = 1000
"""Shuffle buffer in encoded samples, as in webdataset's examples."""


def pack(setting: Setting) -> None:
    """Write shards with webdataset's writer."""
    folder = setting.scratch / "set"
    folder.mkdir()
    pattern = f"{folder}/%06d.tar"
    with webdataset.ShardWriter(pattern, maxcount=setting.per_shard, verbose=0) as writer:
        for key, images in read_source(setting.source):
            ending = setting.kind.suffix
            members = {f"{field}.{ending}": data for field, data in images.items()}
            writer.write({"__key__": key, **members})
    bucket.upload(folder, setting)


def start(setting: Setting) -> None:
    """Register a handler for s3://; webdataset itself only pipes from commands."""
    webdataset.gopen_schemes["s3"] = open_s3
    _client(0)  # triggers boto3's lazy imports


@functools.lru_cache
def _client(process: int) -> Any:
    """Return one client per process, since forked processes must not share connections."""
    return boto3.session.Session().client("s3")


def open_s3(url: str, mode: str = "rb", bufsize: int = 8192, **options: object) -> BinaryIO:
    """Open an object as a stream."""
    name, _, key = url.removeprefix("s3://").partition("/")
    body = _client(os.getpid()).get_object(Bucket=name, Key=key)["Body"]
    return io.BufferedReader(body, 1 << 20)


def decode(sample: dict[str, Any], kind: Kind) -> Images:
    """Decode the images in webdataset's dict of a sample."""
    named = {field: sample[f"{field}.{kind.suffix}"] for field in kind.fields}
    return pixels.decode_sample(named, kind)


def batches(setting: Setting) -> Iterator[Images]:
    """Yield the batches of one epoch."""
    urls = [f"{setting.uri}/{number:06d}.tar" for number in range(setting.shards)]
    dataset = (
        webdataset.WebDataset(urls, shardshuffle=len(urls), seed=setting.seed)
        .shuffle(BUFFER)
        .map(functools.partial(decode, kind=setting.kind))
        .batched(BATCH, collation_fn=pixels.collate)
    )
    loader = webdataset.WebLoader(dataset, batch_size=None, num_workers=WORKERS)
    for images in loader:
        yield pixels.to_float(images)

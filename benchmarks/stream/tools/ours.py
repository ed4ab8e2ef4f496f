"""This repository's ShardStream, with the job's defaults and two threads."""

from collections.abc import Iterator
from itertools import islice

from benchmarks.stream.kinds import read_source
from benchmarks.stream.pixels import BATCH, WORKERS, Images
from benchmarks.stream.setting import Setting
from orchestrator.config.job import Job
from orchestrator.data.format.writer import ShardWriter
from orchestrator.data.loading.stream import ShardStream


def pack(setting: Setting) -> None:
    """Write the set with ShardWriter."""
    kind = setting.kind
    writer = ShardWriter(
        setting.uri,
        kind.fields,
        image_size=kind.size,
        channels=kind.channels,
        extension=kind.suffix,
        shard_bytes=setting.source.stat().st_size // setting.shards + (1 << 16),
    )
    for key, images in read_source(setting.source):
        writer.add(key, images)
    writer.finish()


def start(setting: Setting) -> None:
    """Import what the stream imports lazily."""
    import boto3
    import botocore.client  # noqa: F401

    boto3.session.Session().client("s3")


def batches(setting: Setting) -> Iterator[Images]:
    """Yield the batches of the first epoch of a run."""
    kind = setting.kind
    name = "pix2pix" if len(kind.fields) == 2 else "autoencoder"
    job = Job.model_validate(
        {
            "name": "benchmark",
            "model": {"name": name, "image_size": kind.size, "channels": kind.channels},
            "data": {"train": setting.uri, "threads": WORKERS},
            "train": {"epochs": 1, "batch_size": BATCH, "seed": setting.seed},
        }
    )
    batches = ShardStream(job, 0, 1).training(0)
    try:
        for batch in islice(batches, setting.count // BATCH):
            yield (batch.images,) if batch.condition is None else (batch.condition, batch.images)
    finally:
        batches.close()

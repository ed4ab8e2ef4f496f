"""Ray Data: Parquet files of encoded images, decoded by tasks on two CPUs, shuffled locally."""

import logging
import os
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy
import pyarrow
import pyarrow.fs
import pyarrow.parquet
import ray
import torch
from numpy.typing import NDArray

from benchmarks.stream import pixels
from benchmarks.stream.kinds import Kind, read_source
from benchmarks.stream.pixels import BATCH, WORKERS, Images
from benchmarks.stream.setting import Setting

BUFFER = 250
"""Shuffle buffer in decoded samples, as in Ray's examples."""


def _filesystem() -> pyarrow.fs.S3FileSystem:
    scheme, _, address = os.environ["AWS_ENDPOINT_URL_S3"].partition("://")
    return pyarrow.fs.S3FileSystem(scheme=scheme, endpoint_override=address)


def pack(setting: Setting) -> None:
    """Write Parquet files."""
    rows = [images for _, images in read_source(setting.source)]
    for number in range(setting.shards):
        portion = rows[number * setting.per_shard : (number + 1) * setting.per_shard]
        columns = {field: [row[field] for row in portion] for field in setting.kind.fields}
        path = f"{setting.bucket}/{setting.prefix}/{number:06d}.parquet"
        # Images are already compressed.
        pyarrow.parquet.write_table(
            pyarrow.table(columns), path, filesystem=_filesystem(), compression="none"
        )


def start(setting: Setting) -> None:
    """Start a new local Ray instance, ignoring other clusters."""
    ray.init(
        address="local",
        num_cpus=WORKERS,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _temp_dir=str(setting.scratch),
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    # Workers start and import at their first task, Ray Data's actors at the first data set.
    warm = ray.remote(_warm)
    ray.get([warm.remote() for _ in range(WORKERS)])
    small = ray.data.range(8, override_num_blocks=8).map_batches(_same)
    list(small.iter_batches(batch_size=2, local_shuffle_buffer_size=2))


def stop() -> None:
    """Stop Ray."""
    ray.shutdown()


def _same(rows: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return rows


def _warm() -> None:
    """Unpickling this task imports this module, and so everything that decoding needs."""
    time.sleep(1)  # long enough for each worker to get one


def _decoded(rows: Any, kind: Kind) -> dict[str, NDArray[Any]]:
    return {
        field: numpy.stack([pixels.decode(data, kind).numpy() for data in rows[field]])
        for field in kind.fields
    }


def batches(setting: Setting) -> Iterator[Images]:
    """Yield the batches of one epoch."""
    dataset = ray.data.read_parquet(
        f"{setting.bucket}/{setting.prefix}",
        filesystem=_filesystem(),
        shuffle=ray.data.FileShuffleConfig(seed=setting.seed),
        override_num_blocks=setting.shards,
    ).map_batches(partial(_decoded, kind=setting.kind), batch_size=BATCH)
    for rows in dataset.iter_batches(
        batch_size=BATCH,
        batch_format="numpy",
        local_shuffle_buffer_size=BUFFER,
        local_shuffle_seed=setting.seed,
    ):
        yield pixels.to_float(tuple(torch.from_numpy(rows[field]) for field in setting.kind.fields))

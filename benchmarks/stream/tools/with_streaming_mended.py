"""mosaicml-streaming, with an S3 client of its own for each process.

As it is, its forked processes share a connection of the one that fetched the index, and over
plain HTTP get parts of each other's answers: wrong bytes, or a minute's wait for none.
"""

from collections.abc import Iterator

from torch.utils.data import get_worker_info

from benchmarks.stream.pixels import Images
from benchmarks.stream.setting import Setting
from benchmarks.stream.tools import with_streaming
from benchmarks.stream.tools.with_streaming import pack, start

__all__ = ["batches", "pack", "start"]


def _forget_client(worker: int) -> None:
    info = get_worker_info()
    assert info is not None
    for stream in info.dataset.streams:  # type: ignore[attr-defined]
        stream._downloader.clean_up()


def batches(setting: Setting) -> Iterator[Images]:
    """One pass."""
    return with_streaming.batches(setting, _forget_client)

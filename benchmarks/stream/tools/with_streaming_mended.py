"""mosaicml-streaming with a separate S3 client per process.

Without this its forked processes share the connection of the parent, which fetched the index, and
over plain HTTP receive parts of each other's responses: wrong bytes, or a timeout of a minute.
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
    """Yield the batches of one epoch."""
    return with_streaming.batches(setting, _forget_client)

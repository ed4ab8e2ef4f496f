"""Upper bound: decode the same files from memory with the same number of threads."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from benchmarks.stream import pixels
from benchmarks.stream.kinds import read_source
from benchmarks.stream.pixels import BATCH, WORKERS, Images
from benchmarks.stream.setting import Setting

_files: list[dict[str, bytes]] = []


def start(setting: Setting) -> None:
    """Read the files; not timed."""
    _files.extend(images for _, images in read_source(setting.source))


def batches(setting: Setting) -> Iterator[Images]:
    """Yield the batches of one epoch."""

    def batch(first: int) -> Images:
        chosen = _files[first : first + BATCH]
        decoded = [pixels.decode_sample(images, setting.kind) for images in chosen]
        return pixels.to_float(pixels.collate(decoded))

    ahead: deque[Future[Images]] = deque()
    with ThreadPoolExecutor(WORKERS) as pool:
        for first in range(0, len(_files), BATCH):
            ahead.append(pool.submit(batch, first))
            if len(ahead) > 2 * WORKERS:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()

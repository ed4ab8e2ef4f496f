"""Stream an image row by row while it is drawn."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from orchestrator.export.exported_sampler import to_levels
from orchestrator.models.parts.abilities import DrawsRows
from orchestrator.models.parts.sampler import evaluating
from orchestrator.serving.image_bodies import to_base64
from orchestrator.serving.refused_request import Busy
from orchestrator.serving.request_batcher import Columns
from orchestrator.serving.served_version import ServedVersion

RETRY_S = 10.0


class RowStreams:
    """Limits the streams of a service; each draws in a thread of its own."""

    def __init__(self, most: int) -> None:
        self._most, self._running = most, 0

    def check_room(self) -> None:
        """Raise Busy if too many images are being streamed."""
        if self._running >= self._most:
            raise Busy(RETRY_S)

    async def stream(
        self, served: ServedVersion, seeds: NDArray[np.int64], condition: Columns
    ) -> AsyncIterator[str]:
        """Yield a line of JSON for each row of the image of ``seeds[0]``, when it is drawn."""
        loop, left = asyncio.get_running_loop(), threading.Event()
        rows: asyncio.Queue[NDArray[np.uint8] | Exception | None] = asyncio.Queue()

        def tell(row: NDArray[np.uint8] | Exception | None) -> None:
            loop.call_soon_threadsafe(rows.put_nowait, row)

        def draw() -> None:
            try:
                for row in _rows(served, seeds, condition):
                    if left.is_set():
                        return
                    tell(row)
                tell(None)
            except Exception as error:  # raised where the rows are awaited
                tell(error)

        self._running += 1
        drawing = asyncio.create_task(asyncio.to_thread(draw))
        try:
            number = 0
            while (row := await rows.get()) is not None:
                if isinstance(row, Exception):
                    raise row
                yield json.dumps({"row": number, "png": to_base64(row)}) + "\n"
                number += 1
        finally:
            left.set()  # also if the client has left: nobody wants the rest
            self._running -= 1
            await asyncio.shield(drawing)


def _rows(
    served: ServedVersion, seeds: NDArray[np.int64], condition: Columns
) -> Iterator[NDArray[np.uint8]]:
    """Yield the rows, uint8 (C, 1, W), of the image of ``seeds[0]``."""
    model, device = served.model, served.device
    assert isinstance(model, DrawsRows)
    given = torch.from_numpy(condition[0]).to(device) if condition else None
    with evaluating(model.inference_module()), torch.inference_mode():
        for row in model.draw_rows(torch.from_numpy(seeds).to(device), given):
            levels: NDArray[np.uint8] = to_levels(row[0, :, None]).cpu().numpy()
            yield levels

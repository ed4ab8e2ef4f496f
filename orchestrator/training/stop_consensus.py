"""Whether to stop, agreed upon by all ranks while they compute."""

from types import TracebackType
from typing import Any, Self

import torch
import torch.distributed as dist

from orchestrator.training.interfaces import Worker


class StopAgreement:
    """Asks every rank before a step whether it was told to stop; after it all know the answer.

    The question travels beside the step's computation, in a group of its own on the CPU: it makes
    no step wait, and no GPU. Every rank makes each call.
    """

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        alone = worker.world_size == 1
        self._group: Any = None if alone else dist.new_group(backend="gloo")
        self._flag = torch.zeros(1)
        self._asked: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._group is not None and kind is None:
            dist.destroy_process_group(self._group)

    def ask(self) -> None:
        """Put the question, before a step."""
        if self._group is not None:
            if self._asked is not None:  # a training that goes back did not wait for the answer
                self._asked.wait()
            self._flag.fill_(float(self._worker.should_stop()))
            self._asked = dist.all_reduce(
                self._flag, dist.ReduceOp.MAX, group=self._group, async_op=True
            )

    def answer(self) -> bool:
        """Whether any rank was told to stop before ``ask``; alone, whether it is told now."""
        if self._asked is None:
            return self._worker.should_stop()
        self._asked.wait()
        return bool(self._flag > 0)

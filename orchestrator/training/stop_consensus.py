"""Lets all ranks agree on whether to stop, while they compute."""

from typing import Any, Self

import torch
import torch.distributed as dist

from orchestrator.training.interfaces import Worker


class StopConsensus:
    """Asks every rank before a step whether it should stop; after the step all know the answer.

    The question travels beside the step's computation, in a process group on the CPU: neither a
    step nor a GPU waits for it. Every rank makes each call.
    """

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._group: Any = dist.new_group(backend="gloo") if worker.world_size > 1 else None
        self._flag = torch.zeros(1)
        self._question: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._group is not None and kind is None:
            dist.destroy_process_group(self._group)

    def ask(self) -> None:
        """Send the question, before a step."""
        if self._group is not None:
            if self._question is not None:  # a rollback did not wait for the answer
                self._question.wait()
            self._flag.fill_(float(self._worker.should_stop()))
            self._question = dist.all_reduce(
                self._flag, dist.ReduceOp.MAX, group=self._group, async_op=True
            )

    def answer(self) -> bool:
        """Whether any rank should have stopped at ``ask``; with one rank, whether it should now."""
        if self._question is None:
            return self._worker.should_stop()
        self._question.wait()
        return bool(self._flag > 0)

"""Run evaluations in a process of their own, which gives way to the training on the same cores.

The process gets its task on stdin and ends when stdin closes, so it does not outlive its parent.
It prints nothing but how it went, as one line of JSON.
"""

import contextlib
import json
import os
import pickle
import subprocess
import sys
import threading
from dataclasses import asdict, dataclass, replace
from typing import Protocol

from orchestrator.errors import EnvironmentProblem, OrchestratorError
from orchestrator.runs.evaluation_task import evaluate_checkpoint
from orchestrator.runs.run_context import RunContext

NICE = 19
_START = f"import sys; sys.path[:] = sys.argv[1:]; from {__name__} import main; main()"


@dataclass(frozen=True)
class EvaluationEnd:
    """How an evaluation ended."""

    problem: str = ""
    """Why it has no result; empty if it has one."""
    try_again: bool = False
    """Whether another attempt may succeed: it was killed, or a storage did not answer."""


class EvaluationHandle(Protocol):
    """An evaluation that was started."""

    def poll(self) -> EvaluationEnd | None:
        """Return how it ended; None while it runs."""

    def cancel(self) -> None:
        """End it, if it still runs."""


class EvaluationLauncher(Protocol):
    """Starts evaluations."""

    def __call__(self, context: RunContext, checkpoint: str) -> EvaluationHandle:
        """Start ``evaluation_task.evaluate_checkpoint`` and return at once."""


class EvaluationProcess:
    """Handle of an evaluation in a process on this machine."""

    def __init__(self, context: RunContext, checkpoint: str) -> None:
        """Start it; as EvaluationLauncher."""
        assert context.job.evaluate is not None
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _START, *sys.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # a Ctrl-C is for the training, which ends this
            env=os.environ | (_last_gpu() if context.job.evaluate.gpus else {}),
        )
        assert self._process.stdin is not None
        task = pickle.dumps((replace(context, metrics_listener=None), checkpoint))
        with contextlib.suppress(OSError):  # it has died; `poll` says so
            self._process.stdin.write(len(task).to_bytes(8, "big") + task)
            self._process.stdin.flush()

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._process.pid

    def poll(self) -> EvaluationEnd | None:
        """Return how it ended; None while it runs."""
        if (code := self._process.poll()) is None:
            return None
        assert self._process.stdout is not None
        said = self._process.stdout.read()
        self._close()
        try:
            return EvaluationEnd(**json.loads(said))
        except (ValueError, TypeError):
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            return EvaluationEnd(f"its process ended with {how}", try_again=True)

    def cancel(self) -> None:
        """Kill it, if it still runs."""
        self._process.kill()
        self._process.wait()
        self._close()

    def _close(self) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                assert stream is not None
                stream.close()


def _last_gpu() -> dict[str, str]:
    """Return the variables that show a process the last GPU alone; the training has the first."""
    import torch

    given = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    last = given[-1] if given[-1] else str(torch.cuda.device_count() - 1)
    return {"CUDA_VISIBLE_DEVICES": last}


def attempt_evaluation(context: RunContext, checkpoint: str) -> EvaluationEnd:
    """Evaluate in this process, which gives way to others for good."""
    os.nice(NICE)
    try:
        evaluate_checkpoint(context, checkpoint)
    except OrchestratorError as error:
        return EvaluationEnd(str(error), error.retry or isinstance(error, EnvironmentProblem))
    except Exception as error:  # of the model or a library, too: the run has to tell the user
        return EvaluationEnd(repr(error))
    return EvaluationEnd()


def main() -> None:
    """Evaluate what stdin says; stdout gets how it went."""
    source = sys.stdin.buffer
    context, checkpoint = pickle.loads(source.read(int.from_bytes(source.read(8), "big")))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    end = attempt_evaluation(context, checkpoint)
    sys.stdout.write(json.dumps(asdict(end)))
    sys.stdout.flush()
    os._exit(0)


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(1)

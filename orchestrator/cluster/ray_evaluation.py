"""Run evaluations as Ray tasks, on any node of the cluster."""

import contextlib
from dataclasses import replace
from typing import Any

import ray

from orchestrator.runs.evaluation_process import EvaluationEnd, attempt_evaluation
from orchestrator.runs.run_context import RunContext


class RayEvaluation:
    """Handle of an evaluation that is a task of the cluster this process is connected to.

    It asks for no CPU: the workers may hold all of them until it ends. It ends with this process.
    """

    def __init__(self, context: RunContext, checkpoint: str) -> None:
        """Start it; as EvaluationLauncher."""
        assert context.job.evaluate is not None
        task: Any = ray.remote(
            num_cpus=0,
            num_gpus=context.job.evaluate.gpus,
            max_retries=0,
            max_calls=1,  # its process gives way to others for good
            scheduling_strategy="SPREAD",
        )(attempt_evaluation)
        self._end = task.remote(replace(context, metrics_listener=None), checkpoint)

    def poll(self) -> EvaluationEnd | None:
        """Return how it ended; None while it runs."""
        try:
            if not ray.wait([self._end], timeout=0)[0]:
                return None
            end: EvaluationEnd = ray.get(self._end)
            return end
        except ray.exceptions.RayError as error:
            return EvaluationEnd(str(error).splitlines()[0], try_again=True)

    def cancel(self) -> None:
        """Kill it, if it still runs."""
        with contextlib.suppress(ray.exceptions.RayError):
            ray.cancel(self._end, force=True)

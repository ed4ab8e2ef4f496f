"""How Ray Train asks for a fixed number of workers."""

from typing import Any

from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy


class PlacementGroupPolicy(FixedScalingPolicy):
    """Asks for the workers with their placement group alone, not through Ray Data's coordinator."""

    def _maybe_send_resource_request(self) -> None:
        pass

    def after_controller_start(self, train_run_context: Any) -> None:
        """Do not start the coordinator."""

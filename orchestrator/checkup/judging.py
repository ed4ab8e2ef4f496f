"""What to make of a checkup: one check a line over all nodes, with what to do about it."""

from orchestrator.checkup import machines, network
from orchestrator.checkup.report import Checkup, Wanted
from orchestrator.doctor import Check


def judge(checkup: Checkup, wanted: Wanted) -> list[Check]:
    """A check for each thing that can be wrong, in the order in which to mend them."""
    return [
        machines.check_nodes(checkup),
        machines.check_versions(checkup),
        machines.check_source(checkup),
        machines.check_authentication(checkup),
        machines.check_room(checkup, wanted),
        machines.check_clocks(checkup),
        machines.check_disks(checkup),
        machines.check_shared_memory(checkup),
        machines.check_gpus(checkup),
        network.check_mlflow_from_nodes(checkup, wanted),
        network.check_storage_from_nodes(checkup),
        network.check_all_reduce(checkup, wanted),
    ]

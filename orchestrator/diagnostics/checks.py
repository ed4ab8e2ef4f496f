"""What to make of a checkup: one check a line over all nodes, with what to do about it."""

from orchestrator.diagnostics import machine_checks, network_checks
from orchestrator.diagnostics.doctor import Check
from orchestrator.diagnostics.node_report import Checkup, Wanted


def judge(checkup: Checkup, wanted: Wanted) -> list[Check]:
    """A check for each thing that can be wrong, in the order in which to mend them."""
    return [
        machine_checks.check_nodes(checkup),
        machine_checks.check_versions(checkup),
        machine_checks.check_source(checkup),
        machine_checks.check_authentication(checkup),
        machine_checks.check_room(checkup, wanted),
        machine_checks.check_clocks(checkup),
        machine_checks.check_disks(checkup),
        machine_checks.check_shared_memory(checkup),
        machine_checks.check_gpus(checkup),
        network_checks.check_mlflow_from_nodes(checkup, wanted),
        network_checks.check_storage_from_nodes(checkup),
        network_checks.check_all_reduce(checkup, wanted),
    ]

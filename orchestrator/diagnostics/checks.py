"""Evaluate the report of a cluster: one check per line over all nodes, each with its remedy."""

from orchestrator.diagnostics import machine_checks, network_checks
from orchestrator.diagnostics.doctor import Check
from orchestrator.diagnostics.node_report import ClusterReport, ClusterRequirements


def check_cluster(report: ClusterReport, requirements: ClusterRequirements) -> list[Check]:
    """Run all checks, in the order in which problems should be fixed."""
    return [
        machine_checks.check_nodes(report),
        machine_checks.check_versions(report),
        machine_checks.check_source(report),
        machine_checks.check_authentication(report),
        machine_checks.check_resources(report, requirements),
        machine_checks.check_clocks(report),
        machine_checks.check_disks(report),
        machine_checks.check_shared_memory(report),
        machine_checks.check_gpus(report),
        network_checks.check_mlflow_from_nodes(report, requirements),
        network_checks.check_storage_from_nodes(report),
        network_checks.check_all_reduce(report, requirements),
    ]

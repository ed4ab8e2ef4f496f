"""Checks of a cluster, given the facts of its nodes."""

import statistics
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest

from orchestrator.diagnostics.checks import check_cluster
from orchestrator.diagnostics.doctor import Check
from orchestrator.diagnostics.node_facts import NodeFacts, ServiceFacts, StorageFacts, source_digest
from orchestrator.diagnostics.node_report import (
    BANDWIDTH_BYTES,
    LATENCY_BYTES,
    AllReduce,
    ClockOffset,
    ClusterReport,
    ClusterRequirements,
    NodeReport,
    estimate_clock_offset,
)

VERSIONS = {"python": "3.11.7", "ray": "2.60.0", "torch": "2.14.1", "source": "0123456789ab"}
H100 = {"gpus": ("H100", "H100"), "gpu_versions": {"driver": "570.1", "nccl": "2.27.3"}}
GIGABYTE = 1_000_000_000


def facts(**changed: object) -> NodeFacts:
    whole = NodeFacts(
        host="h",
        versions=VERSIONS,
        cpus=8,
        disks={"/tmp/ray": 50 * GIGABYTE},
        shared_memory=8 * GIGABYTE,
        auth_mode="token",
    )
    return replace(whole, **changed)  # type: ignore[arg-type]


def node(name: str, known: NodeFacts | None = None, **changed: object) -> NodeReport:
    reached = ServiceFacts(
        Check("mlflow", "ok", "http://m answers"), StorageFacts("", True, 8_000_000, 0.1, 0.05)
    )
    whole = NodeReport(
        name, "10.0.0.1", {"CPU": 8.0}, known or facts(), reached, ClockOffset(0.001, 0.0005)
    )
    return replace(whole, **changed)  # type: ignore[arg-type]


def sums(seconds: float = 0.01) -> AllReduce:
    return AllReduce("gloo", ("a", "b"), {LATENCY_BYTES: [2e-4], BANDWIDTH_BYTES: [seconds]})


def run_checks(
    *nodes: NodeReport,
    requirements: ClusterRequirements | None = None,
    all_reduce: AllReduce | None = None,
) -> dict[str, Check]:
    report = ClusterReport(nodes, (), VERSIONS, all_reduce)
    return {
        check.name: check for check in check_cluster(report, requirements or ClusterRequirements())
    }


def test_two_equal_nodes_pass_every_check_without_a_remedy() -> None:
    checks = run_checks(node("a"), node("b"), all_reduce=sums())
    assert {check.status for check in checks.values()} == {"ok"}
    assert {check.remedy for check in checks.values()} == {""}


def test_every_problem_comes_with_a_remedy() -> None:
    bad = facts(
        versions={**VERSIONS, "torch": "2.13.0", "source": "ffff"},
        disks={"/tmp": 1},
        shared_memory=1,
        auth_mode="disabled",
        gpu_problem="torch finds none",
    )
    silent = NodeReport("c", "10.0.0.3", problem="no answer")
    reached = ServiceFacts(Check("mlflow", "fail", "gone", "start it"), StorageFacts("refused"))
    checks = run_checks(
        node("a"), node("b", bad, clock=ClockOffset(60, 0.01), services=reached), silent,
        requirements=ClusterRequirements({"GPU": 4}),
        all_reduce=AllReduce("nccl", ("a", "b"), problem="refused"),
    )  # fmt: skip
    assert all(check.remedy for check in checks.values())
    assert {name for name, check in checks.items() if check.status != "fail"} == {
        "disk", "shared memory",
    }  # fmt: skip


def test_differing_versions_are_listed_with_their_nodes() -> None:
    old = facts(versions={**VERSIONS, "torch": "2.13.0"})
    check = run_checks(node("a"), node("b", old), node("c", old))["versions"]
    assert check.status == "fail"
    assert check.found == "torch 2.14.1 on the driver and a, 2.13.0 on b and c"


def test_a_node_with_other_source_files_fails_although_its_versions_are_equal() -> None:
    other = facts(versions={**VERSIONS, "source": "ba9876543210"})
    checks = run_checks(node("a"), node("b", other))
    assert (checks["versions"].status, checks["source"].status) == ("ok", "fail")
    assert checks["source"].found == "0123456789ab on the driver and a, ba9876543210 on b"


@pytest.mark.parametrize(
    ("offset_s", "error_s", "status"),
    [(0.9, 0, "ok"), (1.1, 0, "warn"), (-1.1, 0, "warn"), (1.1, 0.5, "ok"), (-11, 0.5, "fail")],
)
def test_a_clock_that_is_certainly_off_is_reported_with_its_direction(
    offset_s: float, error_s: float, status: str
) -> None:
    check = run_checks(node("a"), node("b", clock=ClockOffset(offset_s, error_s)))["clocks"]
    assert check.status == status
    direction = "ahead of" if offset_s > 0 else "behind"
    expected = f"b is {abs(offset_s):.1f} s {direction} the driver"
    assert (check.found == expected) == (status != "ok")


@pytest.mark.parametrize("offset_s", [-3600.0, -0.25, 0.0, 7.5])
def test_a_clock_offset_is_estimated_within_its_reported_error(offset_s: float) -> None:
    """A clock that is ahead by ``offset_s``, over a network with asymmetric delays."""
    delays = [(0.4, 0.01), (0.002, 0.003), (0.02, 0.3), (0.011, 0.001)]
    samples, now = [], 1_000_000.0
    for there_s, back_s in delays:
        samples.append((now, now + there_s + offset_s, now + there_s + back_s))
        now += 1
    clock = estimate_clock_offset(samples)
    assert clock.error_s == pytest.approx(0.0025, abs=1e-6)
    assert abs(clock.offset_s - offset_s) <= clock.error_s + 1e-6


@pytest.mark.parametrize("number", [2, 3, 8])
def test_bandwidth_is_what_each_node_sends_in_a_ring(number: int) -> None:
    """Counted chunk by chunk: n - 1 chunks for the reduce-scatter and n - 1 for the all-gather."""
    taken = [0.25, 0.125, 0.5]
    measured = AllReduce(
        "gloo",
        tuple("abcdefgh"[:number]),
        {LATENCY_BYTES: [3e-4, 1e-4, 2e-4], BANDWIDTH_BYTES: taken},
    )
    piece, sent = Fraction(BANDWIDTH_BYTES, number), Fraction(0)
    for _ in ("reduce-scatter", "all-gather"):
        for _ in range(number - 1):
            sent += piece
    assert measured.bandwidth == pytest.approx(float(sent / Fraction(1, 4)))
    assert statistics.median(taken) == 0.25
    assert measured.latency_s == 2e-4


def test_a_slow_network_is_a_warning_with_the_time_for_the_jobs_gradients() -> None:
    slow = sums(2.0)
    checks = run_checks(
        node("a"),
        node("b"),
        requirements=ClusterRequirements(gradient_bytes=4 << 20),
        all_reduce=slow,
    )
    check = checks["all-reduce"]
    assert check.status == "warn"
    assert "67 Mbit/s" in check.found
    assert check.found.endswith("4.2 MB of gradients take about 500 ms")


def test_one_node_has_no_network_to_measure() -> None:
    check = run_checks(node("a"))["all-reduce"]
    assert (check.status, check.found) == ("ok", "one node, so there is no network to measure")


def test_a_storage_folder_that_is_not_shared_fails() -> None:
    mlflow = Check("mlflow", "ok", "answers")
    separate = ServiceFacts(mlflow, StorageFacts("", False, 8, 0.1, 0.1))
    check = run_checks(node("a"), node("b", services=separate))["storage"]
    assert check.status == "fail"
    assert check.found.startswith("b did not see what the driver wrote")


def test_a_local_tracking_database_is_a_warning_on_several_nodes() -> None:
    local = ClusterRequirements(local_tracking=True)
    assert run_checks(node("a"), requirements=local)["mlflow"].status == "ok"
    assert run_checks(node("a"), node("b"), requirements=local)["mlflow"].status == "warn"


def test_a_job_that_needs_more_than_the_cluster_has_fails() -> None:
    requirements = ClusterRequirements({"CPU": 8.0, "GPU": 2.0})
    assert (
        run_checks(node("a", resources={"CPU": 8, "GPU": 2}), requirements=requirements)[
            "resources"
        ].status
        == "ok"
    )
    check = run_checks(node("a"), requirements=requirements)["resources"]
    assert (check.status, check.found) == ("fail", "8 CPUs, 0 GPUs; the job needs 2 GPUs")


def test_gpus_need_one_model_one_nccl_and_enough_shared_memory() -> None:
    good = facts(**H100)
    assert run_checks(node("a", good), node("b", good))["gpus"].found.startswith("4 on 2 nodes")
    older = facts(gpus=("A100",), gpu_versions={"driver": "570.1", "nccl": "2.27.3"})
    mixed = run_checks(node("a", good), node("b", older))["gpus"]
    assert mixed.status == "warn"
    assert "H100, H100 on a, A100 on b" in mixed.found
    other = facts(gpus=("H100",), gpu_versions={"driver": "570.1", "nccl": "2.21.5"})
    assert (
        run_checks(node("a", good), node("b", other))["gpus"].found
        == "NCCL 2.27.3 on a, 2.21.5 on b"
    )
    small = facts(**H100, shared_memory=64 << 20)
    assert run_checks(node("a", small))["shared memory"].status == "fail"


def test_lost_nodes_are_named() -> None:
    checks = check_cluster(
        ClusterReport((node("a"),), ("10.0.0.9",), VERSIONS, None), ClusterRequirements()
    )
    assert (checks[0].status, checks[0].found) == ("warn", "1 answers; lost: 10.0.0.9")


def test_the_source_digest_changes_with_the_content_and_the_name_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "models"
    copy.mkdir()
    (copy / "__init__.py").write_text("")
    monkeypatch.setattr("orchestrator.models.__file__", str(copy / "__init__.py"))
    before = source_digest()
    assert source_digest() == before
    (copy / "new.py").write_text("x = 1\n")
    changed = source_digest()
    (copy / "new.py").rename(copy / "renamed.py")
    assert len({before, changed, source_digest()}) == 3

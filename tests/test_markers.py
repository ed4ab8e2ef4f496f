"""A test that starts a cluster or a server without its marker fails."""

import re
import subprocess
from pathlib import Path

import pytest

from support.markers import marker_needed


@pytest.mark.parametrize(
    ("command", "marker"),
    [
        (["/usr/bin/ray", "start", "--head"], "ray"),
        (["/x/core/src/ray/gcs/gcs_server", "--log_dir=/tmp"], "ray"),
        (["python", "-m", "mlflow", "server", "--port", "1"], "server"),
        (["/bin/weed", "-v=0", "server"], "server"),
        (["setpriv", "--clear-groups", "/usr/lib/pg_ctl", "start"], "server"),
        (["/bin/sh", "-c", "orchestrator run job.yaml"], None),
        (["python", "-m", "orchestrator", "run", "--local", "job.yaml"], None),
        (["ray", "--version"], None),
        (["python", "-m", "mlflow", "ui"], None),
    ],
)
def test_a_command_that_starts_a_cluster_or_a_server_needs_a_marker(
    command: list[str], marker: str | None
) -> None:
    assert marker_needed(command) == marker


def test_an_unmarked_test_cannot_start_a_cluster_or_a_server() -> None:
    with pytest.raises(pytest.fail.Exception, match=r"mark this test with pytest\.mark\.ray"):
        subprocess.run(["/nowhere/raylet"], check=False)
    with pytest.raises(pytest.fail.Exception, match=r"mark this test with pytest\.mark\.server"):
        subprocess.run(["/nowhere/weed", "server"], check=False)


@pytest.mark.server
def test_a_marked_test_can() -> None:
    with pytest.raises(FileNotFoundError):
        subprocess.run(["/nowhere/weed", "server"], check=False)


def test_a_test_with_a_server_fixture_gets_its_marker(request: pytest.FixtureRequest) -> None:
    tests = [item for item in request.session.items if "s3" in getattr(item, "fixturenames", ())]
    assert all(item.get_closest_marker("server") for item in tests)


def test_tests_connect_to_ray_in_one_place() -> None:
    place = Path(__file__).parent / "services" / "ray_connection.py"
    files = Path(__file__).parent.rglob("*.py")
    callers = [path for path in files if re.search(r"\bray\.init\(", path.read_text())]
    assert callers == [place], f"use ray_in_this_process of {place.name}"


def test_make_looks_for_the_tests_with_clusters_in_every_file_that_has_some() -> None:
    root = Path(__file__).parents[1]
    line = re.search(r"^RAY_TESTS := (.*)$", (root / "Makefile").read_text(), re.M)
    assert line is not None
    places = [root / place for place in line[1].split()]
    marker = re.compile(r"^\W*(pytestmark = \[?)?pytest\.mark\.ray\b", re.M)
    marked = [p for p in (root / "tests").rglob("test_*.py") if marker.search(p.read_text())]
    assert len(marked) > 10
    assert [p for p in marked if not any(p.is_relative_to(place) for place in places)] == []

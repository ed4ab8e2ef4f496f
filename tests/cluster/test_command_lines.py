"""What a cluster shows of a driver to everybody who reaches it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.ray

JOBS = """
import ray
from orchestrator.cluster.ray_session import ray_session
with ray_session("-", 1):
    jobs = ray._private.worker.global_worker.gcs_client.get_all_job_info()
    print([job.entrypoint for job in jobs.values()])
"""


def test_the_command_line_that_ray_records_has_no_password(tmp_path: Path) -> None:
    environ = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environ["RAY_AUTH_MODE"] = "disabled"
    setting = "tracking.uri=http://me:hunter22@host/x?token=hunter22"
    done = subprocess.run(
        [sys.executable, "-c", JOBS, "--set", setting],
        env=environ, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "tracking.uri=http://***@host/x?token=***" in done.stdout
    assert "hunter22" not in done.stdout + done.stderr

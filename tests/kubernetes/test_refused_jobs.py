"""`orchestrator manifest`: the errors for jobs that depend on a machine and for invalid options."""

from typing import Any

import pytest

from orchestrator.errors import UsageError
from support.printed_jobs import JOB, job_of, printed

REFUSED: dict[str, tuple[tuple[str, ...], dict[str, Any], str]] = {
    "a password in --set": (
        ("tracking.uri=http://me:geheim@mlflow:5000",),
        {},
        "--set tracking.uri=***: is a secret in plain text",
    ),
    "a number of workers from the environment": (
        ("cluster.workers=${env:WORKERS,2}",),
        {},
        "cluster.workers: ${env:WORKERS,2} would size",
    ),
    "storage on this machine": (("storage=runs",), {}, "storage: runs is on one machine"),
    "tracking on this machine": (
        ("tracking.uri=sqlite:///x.db",),
        {},
        "tracking.uri: sqlite:///x.db is on one machine",
    ),
    "queue and cluster": ((), {"queue": "q", "cluster": "c"}, "--queue needs"),
    "queue and schedule": ((), {"queue": "q", "schedule": "@daily"}, "--queue is a label"),
    "retries and cluster": ((), {"retries": 1, "cluster": "c"}, "--retries starts"),
    "a time zone without a schedule": ((), {"time_zone": "UTC"}, "--time-zone needs"),
    "a time zone in the schedule": (
        (),
        {"schedule": "CRON_TZ=UTC 0 3 * * 1"},
        "set the time zone with --time-zone",
    ),
    "a word as a size": (
        (),
        {"worker_memory": "lots"},
        "--worker-memory 'lots' is not a valid size",
    ),
    "a size without a unit": ((), {"head_memory": "8"}, "--head-memory '8' is not a valid size"),
    "a namespace with a space": (
        (),
        {"namespace": "My Team"},
        "--namespace 'My Team' is not a valid",
    ),
    "a cluster in capitals": ((), {"cluster": "Ray_1"}, "--cluster 'Ray_1' is not a valid"),
    "an empty image": ((), {"image": ""}, "--image '' is not a valid"),
    "a cut digest": ((), {"image": "host/x@sha256:0123"}, "has no valid digest; write"),
    "a tag after @": ((), {"image": "host/x@1.0"}, "has no valid digest"),
    "a password": ((), {"image": "me:geheim@host/x:1"}, "--image ***@host/x:1: contains a"),
    "a schedule of four fields": ((), {"schedule": "0 3 * *"}, "neither five fields nor"),
    "a schedule of no name": ((), {"schedule": "@dayly"}, "write '0 3 * * 1' or '@daily'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_invalid_job_or_option_is_refused_in_one_line(case: str) -> None:
    overrides, options, said = REFUSED[case]
    with pytest.raises(UsageError) as caught:
        printed(*overrides, **options)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "geheim" not in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("where", ["tracking: {uri: ADDRESS}", "# by ADDRESS"])
def test_a_password_in_the_file_is_refused_with_its_line_and_not_printed(where: str) -> None:
    text = JOB.replace('tracking: {uri: "${env:TRACKING}"}', where)
    text = text.replace("ADDRESS", '"http://me:geheim@mlflow:5000"')
    if where.startswith("#"):
        text += "tracking: {uri: http://mlflow:5000}\n"
    with pytest.raises(UsageError) as caught:
        printed(text=text)
    assert str(caught.value).startswith("jobs/digits.yaml:7: contains a password in plain text")
    assert "geheim" not in str(caught.value)


def test_a_job_on_a_running_cluster_may_use_paths_that_only_the_cluster_has() -> None:
    spec = job_of(printed("storage=/shared/runs", cluster="orchestrator"))
    assert "--set storage=/shared/runs" in spec["entrypoint"]
    with pytest.raises(UsageError):
        printed("storage=/shared/runs")

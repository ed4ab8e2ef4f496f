"""`orchestrator manifest`: the RayJob of a job."""

import copy
import json
import os
import re
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from support.manifests import (
    ROOT,
    needs_crds,
    read_documents,
    references,
    schema_errors,
    security_problems,
)
from support.printed_jobs import JOB, OPTIONS, SEARCH, job_of, printed, workers

CASES: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "plain": ((), {}),
    "range": (("cluster.workers={min: 2, max: 8}",), {}),
    "gpus": (("cluster.gpus_per_worker=1", "cluster.cpus_per_worker=6"), {}),
    "queue": (("cluster.workers={min: 2, max: 8}",), {"queue": "team-a"}),
    "schedule": ((), {"schedule": "0 3 * * 1", "time_zone": "Europe/Berlin"}),
    "running cluster": ((), {"cluster": "orchestrator"}),
    "cache": (("data.cache={folder: /cache, limit: 100GiB}",), {}),
    "all options": (
        ("train.seed=3",),
        {
            "namespace": "team",
            "deadline": 86400,
            "start_deadline": 600,
            "retries": 0,
            "keep": 0,
            "resume": True,
            "tls": False,
            "secret": "mine",
            "config_map": "there",
        },
    ),
}


@needs_crds
@pytest.mark.parametrize("case", CASES)
def test_kuberay_accepts_every_field_of_a_printed_job(case: str) -> None:
    overrides, options = CASES[case]
    documents = printed(*overrides, **options)
    assert [error for document in documents for error in schema_errors(document)] == []


@needs_crds
def test_kuberay_refuses_a_misspelt_field() -> None:
    documents = printed()
    job_of(documents)["backofLimit"] = 2
    assert len(schema_errors(documents[-1])) == 1


@pytest.mark.parametrize("case", CASES)
def test_the_operators_own_rules_are_met(case: str) -> None:
    """Rules of KubeRay 1.7's validation that its schema does not contain."""
    overrides, options = CASES[case]
    document = printed(*overrides, **options)[-1]
    spec, name = document["spec"], document["metadata"]["name"]
    most = 47 if document["kind"] == "RayJob" else 36
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name)
    assert len(name) <= most
    spec = spec.get("jobTemplate", spec)
    assert ("clusterSelector" in spec) != ("rayClusterSpec" in spec)
    if "clusterSelector" in spec:
        assert not spec.get("backoffLimit")
        assert not spec.get("suspend")
    if spec.get("suspend"):
        assert spec["shutdownAfterJobFinishes"]
        assert not spec["rayClusterSpec"]["enableInTreeAutoscaling"]
    if spec.get("ttlSecondsAfterFinished"):
        assert spec["shutdownAfterJobFinishes"]
    if spec.get("rayClusterSpec", {}).get("tlsOptions"):
        assert "RAY_USE_TLS" not in str(spec)


@pytest.mark.parametrize("case", CASES)
def test_the_pods_of_a_job_do_not_run_as_root_and_have_limits_and_no_secrets(case: str) -> None:
    overrides, options = CASES[case]
    documents = printed(*overrides, **options)
    assert [problem for document in documents for problem in security_problems(document)] == []
    assert "hunter22" not in str(documents)
    needed = {r for d in documents for r in references(d) if r[1] != "kube-root-ca.crt"}
    if "cluster" not in options:
        given = replace(OPTIONS, **options)
        assert needed == {
            ("Secret", given.secret, None),
            ("ConfigMap", given.config_map, None),
            ("ConfigMap", documents[0]["metadata"]["name"], None),
        }


def shape(cluster: dict[str, Any], group: str) -> list[Any]:
    """Return the pods of a cluster, without what depends on the job."""
    kept = []
    groups = [g for g in cluster["workerGroupSpecs"] if g["groupName"] == group]
    for template in (cluster["headGroupSpec"]["template"], groups[0]["template"]):
        pod = copy.deepcopy(template)
        (container,) = pod["spec"]["containers"]
        container.pop("image")
        container.pop("resources")
        own = ("job", "cache")
        container["volumeMounts"] = [m for m in container["volumeMounts"] if m["name"] not in own]
        pod["spec"]["volumes"] = [v for v in pod["spec"]["volumes"] if v["name"] not in own]
        kept.append(pod)
    return kept


@pytest.mark.parametrize("group", ["cpu", "gpu"])
def test_a_job_gets_the_same_pods_as_the_permanent_cluster(group: str) -> None:
    base = ROOT / "deploy" / "kubernetes" / "base" / "ray-cluster.yaml"
    (permanent,) = (document["spec"] for document in read_documents(base.read_text()))
    gpus = f"cluster.gpus_per_worker={int(group == 'gpu')}"
    own = job_of(printed(gpus, "cluster.workers={min: 1, max: 8}"))["rayClusterSpec"]
    own["workerGroupSpecs"][0]["groupName"] = group
    assert shape(own, group) == shape(permanent, group)
    for key in ("rayVersion", "authOptions", "tlsOptions", "autoscalerOptions"):
        assert own[key] == permanent[key]
    ours, theirs = (c["headGroupSpec"]["rayStartParams"] for c in (own, permanent))
    assert ours == theirs


def test_the_config_map_contains_the_exact_file_and_the_head_mounts_it() -> None:
    config_map, job = printed("train.seed=5")
    assert config_map["data"] == {"digits.yaml": JOB}
    assert config_map["immutable"] is True
    template = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    (volume,) = (v for v in template["volumes"] if v["name"] == "job")
    assert volume["configMap"]["name"] == config_map["metadata"]["name"]
    (mount,) = (m for m in template["containers"][0]["volumeMounts"] if m["name"] == "job")
    path = f"{mount['mountPath']}/digits.yaml"
    assert job["spec"]["entrypoint"] == f"orchestrator run {path} --set train.seed=5"


NASTY = (
    "model.hidden=[16, 8]",
    'tracking.experiment="it\'s $HOME `id` \\"x\\" & ; | > é"',
    "sweep=null",
)


@pytest.mark.parametrize("cluster", [None, "orchestrator"])
def test_the_entrypoint_passes_the_checked_arguments_through_the_shell(
    cluster: str | None, tmp_path: Path
) -> None:
    spec = job_of(printed(*NASTY, cluster=cluster))
    fake = tmp_path / "orchestrator"
    fake.write_text(
        f"#!{sys.executable}\nimport json, pathlib, sys\n"
        "file = pathlib.Path(sys.argv[2])\n"
        "text = file.read_text() if file.exists() else None\n"
        "print(json.dumps([sys.argv[1:], text]))\n"
    )
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    entrypoint = spec["entrypoint"].replace("/tmp/", f"{tmp_path}/")
    done = subprocess.run(
        entrypoint, shell=True, env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    arguments, text = json.loads(done.stdout)
    assert arguments[0] == "run"
    assert arguments[2:] == [part for override in NASTY for part in ("--set", override)]
    if cluster is None:
        assert arguments[1] == "/jobs/digits.yaml"
    else:
        assert text == JOB
        assert spec["clusterSelector"] == {"ray.io/cluster": cluster}


@pytest.mark.parametrize(
    ("overrides", "options", "replicas", "autoscaled"),
    [
        (("cluster.workers=4",), {}, (4, 4, 4), False),
        (("cluster.workers={min: 2, max: 8}",), {}, (2, 2, 8), True),
        (("cluster.workers={min: 2, max: 8}",), {"queue": "q"}, (8, 8, 8), False),
    ],
)
def test_each_worker_gets_a_pod(
    overrides: tuple[str, ...], options: dict[str, Any], replicas: tuple[int, ...], autoscaled: bool
) -> None:
    documents = printed(*overrides, **options)
    group = workers(documents)
    assert (group["replicas"], group["minReplicas"], group["maxReplicas"]) == replicas
    cluster = job_of(documents)["rayClusterSpec"]
    assert cluster["enableInTreeAutoscaling"] is autoscaled
    assert ("autoscalerOptions" in cluster) is autoscaled


def test_a_worker_has_its_cores_and_its_gpu_and_the_head_runs_no_workers() -> None:
    documents = printed(
        "cluster.workers=2", "cluster.cpus_per_worker=6", "cluster.gpus_per_worker=1"
    )
    group = workers(documents)
    pod = group["template"]["spec"]
    resources = pod["containers"][0]["resources"]
    assert (resources["requests"]["cpu"], resources["limits"]["nvidia.com/gpu"]) == ("6", "1")
    assert group["rayStartParams"]["num-cpus"] == "6"
    assert [t["key"] for t in pod["tolerations"]] == ["nvidia.com/gpu"]
    head = job_of(documents)["rayClusterSpec"]["headGroupSpec"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert "nvidia" not in str(head)
    assert "nvidia" not in str(printed())


@pytest.mark.parametrize(("at_once", "pods_wanted"), [(None, 2), (3, 6)])
def test_a_sweep_has_pods_for_its_concurrent_trials(at_once: int | None, pods_wanted: int) -> None:
    given = () if at_once is None else (f"sweep.max_concurrent={at_once}",)
    group = workers(printed("cluster.workers=2", *given, text=JOB + SEARCH))
    assert (group["minReplicas"], group["maxReplicas"]) == (pods_wanted, pods_wanted)


def test_a_cache_gets_a_volume_a_tenth_larger_than_its_limit() -> None:
    pod = workers(printed("data.cache={folder: /cache, limit: 100GiB}"))["template"]["spec"]
    (volume,) = (v for v in pod["volumes"] if v["name"] == "cache")
    (mount,) = (m for m in pod["containers"][0]["volumeMounts"] if m["name"] == "cache")
    assert (mount["mountPath"], int(volume["emptyDir"]["sizeLimit"])) == ("/cache", 110 << 30)


def test_the_name_depends_on_the_file_and_the_overrides_only() -> None:
    names = [
        printed(*overrides, text=text)[-1]["metadata"]["name"]
        for overrides, text in (
            ((), JOB),
            ((), JOB),
            (("train.seed=1",), JOB),
            ((), JOB + "# more\n"),
            (("name=" + "x" * 80,), JOB),
            (("name='0.-'",), JOB),
        )
    ]
    assert names[0] == names[1]
    assert len(set(names)) == 5
    assert names[0].startswith("digits-v1-2-")


def test_a_queued_job_has_the_label_of_kueue_and_starts_suspended() -> None:
    config_map, job = printed(queue="team-a")
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team-a"
    assert job["spec"]["suspend"] is True
    assert "team-a" not in str(config_map)


def test_a_schedule_gives_a_cron_job_with_the_same_job() -> None:
    cron = printed(schedule="0 3 * * 1", time_zone="Europe/Berlin")[-1]
    assert cron["kind"] == "RayCronJob"
    assert (cron["spec"]["schedule"], cron["spec"]["timeZone"]) == ("0 3 * * 1", "Europe/Berlin")
    name = cron["metadata"]["name"]
    once = printed()[-1]
    assert str(cron["spec"]["jobTemplate"]) == str(once["spec"]).replace(
        once["metadata"]["name"], name
    )

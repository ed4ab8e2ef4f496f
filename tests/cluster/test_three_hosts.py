"""A cluster of three hosts with addresses of their own, started by deploy/machines.

A head without CPUs for workers and two workers, Ray with a token and TLS, MLflow on PostgreSQL with
passwords, SeaweedFS. The tests depend on their order: each continues with the cluster as it is.
"""

import base64
import contextlib
import json
import os
import re
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import mlflow
import pytest
import torch
from mlflow.entities import Run
from safetensors.torch import load

from orchestrator.data.prepare.pack import pack_folder
from orchestrator.storage.open import open_storage
from services.hosts import Host, Network, missing, network
from services.postgres import find_binaries, postgres
from support.drawings import draw_pairs

ROOT = Path(__file__).parents[2]
MACHINES = ROOT / "deploy/machines"
BIN = Path(sys.executable).parent
NAMES = ("head", "one", "two")
SMALL = (
    "--set", "model.image_size=64", "--set", "model.filters=4",
    "--set", "model.discriminator_filters=4", "--set", "model.dropout=0",
    "--set", "data.train=s3://datasets/drawings/train",
    "--set", "data.validation=s3://datasets/drawings/validation",
    "--set", "data.source=null", "--set", "data.augment={flip: true}",
    "--set", "train.epochs=null",
)  # fmt: skip

needed = missing() or (
    "" if find_binaries() else "PostgreSQL is not installed (Debian: postgresql)"
)
pytestmark = [
    pytest.mark.ray,
    pytest.mark.server,
    pytest.mark.slow,
    pytest.mark.skipif(bool(needed), reason=needed),
]


@dataclass
class Machines:
    """The cluster and its hosts."""

    folder: Path
    network: Network
    hosts: dict[str, Host]

    @property
    def head(self) -> Host:
        return self.hosts["head"]

    def environ(self, host: Host, **more: str) -> dict[str, str]:
        """Environment of a process that is started on ``host`` by hand."""
        kept = {name: os.environ[name] for name in ("LANG", "TMPDIR") if name in os.environ}
        return {
            **kept,
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            "OMP_NUM_THREADS": "1",
            "HOME": str(self.home(host)),
            "ORCHESTRATOR_ETC": str(self.folder / "secrets" / host.address),
            "ORCHESTRATOR_STATE": str(self.folder / "state"),
            **more,
        }

    def home(self, host: Host) -> Path:
        folder = self.folder / f"{host.name}-home"
        folder.mkdir(exist_ok=True)
        return folder

    def start(self, host: Host, part: str, *more: str) -> None:
        host.start(
            str(MACHINES / "start.sh"), part, *more,
            environ=self.environ(host), log=self.folder / f"{host.name}-{part}.log", cwd=ROOT,
        )  # fmt: skip

    def start_ray(self, host: Host) -> None:
        # Ray keeps Unix sockets in its folder, whose path must be short.
        more = [f"--temp-dir={self.folder}/{host.name}", "--object-store-memory=100000000"]
        if host is self.head:
            self.start(host, "head", *more)
        else:
            self.start(host, "worker", "--num-cpus=1", *more)

    def on_head(self, *command: str, log: Path) -> "subprocess.Popen[bytes]":
        """Run a command as a user of the head who has sourced client/environment."""
        environ = {**self.client, "RAY_API_SERVER_ADDRESS": "http://127.0.0.1:8265"}
        return self.head.popen(*command, environ=environ, log=log, cwd=ROOT)

    def submit(self, *arguments: str, log: Path) -> "subprocess.Popen[bytes]":
        return self.on_head("ray", "job", "submit", "--", *arguments, log=log)

    @property
    def client(self) -> dict[str, str]:
        """Environment of a user outside the cluster, as hosts.sh has written it."""
        place = str(self.folder / "secrets/client")
        text = (self.folder / "secrets/client/environment").read_text()
        text = text.replace("~/.orchestrator", place)
        found = dict(line.removeprefix("export ").split("=", 1) for line in text.splitlines())
        others = ("AWS_", "MLFLOW_", "RAY_")
        kept = {k: v for k, v in os.environ.items() if not k.startswith(others)}
        return {**kept, **found, "PATH": f"{BIN}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}

    def logs(self) -> str:
        return "\n".join(
            f"== {path.name}\n{path.read_text(errors='replace')[-1500:]}"
            for path in self.folder.glob("*.log")
        )


def wait_for(what: Callable[[], object], machines: Machines, s: float = 300, why: str = "") -> None:
    deadline = time.monotonic() + s
    while not what():
        assert time.monotonic() < deadline, f"{why}: not within {s:g} s\n{machines.logs()}"
        time.sleep(0.5)  # each check costs a process


def status(url: str, context: ssl.SSLContext | None = None, **headers: str) -> int:
    """Return the HTTP status of a GET; 0 without an answer."""
    try:
        request = urllib.request.Request(url, headers=headers)
        with urllib.request.urlopen(request, timeout=10, context=context) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as error:
        return int(error.code)
    except OSError:
        return 0


@pytest.fixture(scope="module")
def machines() -> Iterator[Machines]:
    with tempfile.TemporaryDirectory(prefix="hosts-", ignore_cleanup_errors=True) as temp:
        folder = Path(temp)
        folder.chmod(0o755)  # PostgreSQL runs as a user of its own
        with network() as net:
            hosts = {name: net.add(name) for name in NAMES}
            made = Machines(folder, net, hosts)
            addresses = [hosts[name].address for name in NAMES]
            subprocess.run([MACHINES / "hosts.sh", folder / "secrets", *addresses], check=True)
            head = folder / "secrets" / made.head.address
            within = ("ip", "netns", "exec", made.head.namespace)
            made.start_ray(made.head)
            made.start(made.head, "seaweedfs")
            with postgres(folder / "postgres", within=within) as run_sql:
                run_sql((head / "mlflow.sql").read_text())
                made.start(made.head, "mlflow")
                wait_for(lambda: num_nodes(made) == 1, made, why="the head of Ray")
                for name in NAMES[1:]:
                    made.start_ray(hosts[name])
                https = ssl.create_default_context(cafile=folder / "secrets/ca.crt")
                url = f"https://{made.head.address}:5000/health"
                wait_for(lambda: status(url, https) == 200, made, why="MLflow")
                log = folder / "setup.log"
                setup = [str(MACHINES / "start.sh"), "setup"]
                done = made.head.popen(*setup, environ=made.environ(made.head), log=log, cwd=ROOT)
                assert done.wait(60) == 0, log.read_text()
                with pytest.MonkeyPatch.context() as patch:
                    for name, value in made.client.items():
                        patch.setenv(name, value)
                    _pack(folder)
                    wait_for(lambda: num_nodes(made) == 3, made, why="three nodes")
                    yield made
                for host in made.hosts.values():
                    host.remove()


def _pack(folder: Path) -> None:
    pairs = draw_pairs(folder / "pairs", count=40, size=64)
    pack_folder(pairs, "s3://datasets/drawings", size=64, validation_share=0.2)


ASK = """\
import os, sys, urllib.error, urllib.request
token = os.environ.get("TOKEN")
headers = {"Authorization": f"Bearer {token}"} if token else {}
try:
    request = urllib.request.Request("http://127.0.0.1:8265" + sys.argv[1], headers=headers)
    with urllib.request.urlopen(request, timeout=10) as reply:
        print(reply.status, reply.read().decode())
except urllib.error.HTTPError as error:
    print(error.code)
"""


def dashboard(machines: Machines, path: str, token: str = "") -> tuple[int, str]:
    """Return the status and body of a request to the dashboard, from the head."""
    done = subprocess.run(
        ["ip", "netns", "exec", machines.head.namespace, sys.executable, "-c", ASK, path],
        env={**os.environ, "TOKEN": token}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    code, _, body = done.stdout.partition(" ")
    return int(code or 0), body


def num_nodes(machines: Machines) -> int:
    """Number of hosts that are alive for the head."""
    token = (machines.folder / "secrets/client/ray_auth_token").read_text().strip()
    code, body = dashboard(machines, "/api/v0/nodes", token)
    if code != 200:
        return 0
    nodes = json.loads(body)["data"]["result"]["result"]
    return sum(node["state"] == "ALIVE" for node in nodes)


def host_of(machines: Machines, title: str) -> set[str]:
    """Hosts that run a process of Ray whose title begins with ``title``."""
    found = set()
    for host in machines.hosts.values():
        for pid in host.pids():
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(title.encode()):
                    found.add(host.name)
    return found


WORKER, TRIAL = "ray::RayTrainWorker", "ray::ResourceTrainable"


def images_saved(run: str) -> int:
    """Images that the newest checkpoint of the run has seen."""
    keys = open_storage("s3://runs").list(f"{run}-")
    found = [re.search(r"/checkpoints/(\d+)-\w+/manifest.json$", key) for key in keys]
    return max((int(match[1]) for match in found if match), default=0)


def the_run(experiment: str, name: str) -> Run:
    client = mlflow.MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    runs = client.search_runs([found.experiment_id])
    (run,) = [run for run in runs if run.info.run_name.startswith(f"{name}-")]
    return run


def history(uri: str, run: Run, metric: str) -> list[tuple[int, float]]:
    points = mlflow.MlflowClient(uri).get_metric_history(run.info.run_id, metric)
    return [(point.step, point.value) for point in points]


def finish(process: "subprocess.Popen[bytes]", log: Path, machines: Machines) -> str:
    try:
        code = process.wait(300)
    finally:
        process.kill()
    assert code == 0, log.read_text()[-5000:] + machines.logs()
    return log.read_text()


def test_nothing_answers_without_credentials(machines: Machines) -> None:
    head = machines.head.address
    secrets = machines.folder / "secrets"
    # Ray's dashboard and Jobs API: unreachable from outside, and with a token on the head.
    assert status(f"http://{head}:8265/api/jobs/") == 0
    for path in ("/api/version", "/api/jobs/", "/api/serve/applications/", "/nodes"):
        assert dashboard(machines, path)[0] == 401, path
        assert dashboard(machines, path, "0" * 64)[0] in (401, 403), path
    # MLflow: only HTTPS, with a password.
    https = ssl.create_default_context(cafile=secrets / "ca.crt")
    wrong = {"Authorization": "Basic " + base64.b64encode(b"admin:password1234").decode()}
    for path in ("", "api/2.0/mlflow/experiments/search?max_results=1", "graphql", "metrics"):
        assert status(f"https://{head}:5000/{path}", https) == 401, path
        assert status(f"https://{head}:5000/{path}", https, **wrong) == 401, path
    assert status(f"http://{head}:5000/health") == 0
    # S3, and the services behind it and behind MLflow.
    assert status(f"http://{head}:8333/runs?list-type=2") == 403
    for port in (5432, 8888, 9333, 8080):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((head, port), 2).close()
    # Ray's GCS: a certificate of the cluster's authority on both sides.
    assert not speaks_tls(head, 6379, https)
    node = secrets / machines.hosts["one"].address / "tls"
    https.load_cert_chain(node / "node.crt", node / "node.key")
    assert speaks_tls(head, 6379, https)


def speaks_tls(host: str, port: int, context: ssl.SSLContext) -> bool:
    """Whether a server answers the start of HTTP/2 after the handshake."""
    context.set_alpn_protocols(["h2"])
    with socket.create_connection((host, port), 10) as plain:
        try:
            with context.wrap_socket(plain, server_hostname=host) as secured:
                secured.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5))
                return bool(secured.recv(9))
        except (ssl.SSLError, ConnectionError):
            return False


def test_a_run_on_two_hosts_survives_a_cut_cable_and_ends_like_one_on_this_machine(
    machines: Machines, tmp_path: Path
) -> None:
    images = ("--set", "train.images=800", "--set", "train.checkpoint_every=80")
    log = machines.folder / "cut-job.log"
    job = machines.submit("jobs/pix2pix.yaml", *SMALL, *images, "--set", "name=cut", log=log)
    wait_for(lambda: images_saved("cut") > 80, machines, why="a second checkpoint")
    assert host_of(machines, WORKER) == {"one", "two"}
    machines.hosts["one"].cut()
    wait_for(lambda: num_nodes(machines) == 2, machines, why="the loss of a host")
    machines.hosts["one"].join()
    output = finish(job, log, machines)
    assert re.search(r"^restart: ", output, re.M)
    run = the_run("pix2pix", "cut")
    assert run.info.status == "FINISHED"

    # The same job with one worker in one process, on the same data, without the cluster.
    alone = f"sqlite:///{tmp_path}/mlflow.db"
    command = [str(BIN / "orchestrator"), "run", "jobs/pix2pix.yaml", "--local", *SMALL, *images]
    command += ["--set", f"tracking.uri={alone}", "--set", f"storage={tmp_path}/runs"]
    command += ["--set", "cluster.workers=1", "--set", "name=alone"]
    done = subprocess.run(command, cwd=ROOT, env=machines.client, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    (other,) = mlflow.MlflowClient(alone).search_runs(["1"])
    for metric in ("generator/loss", "discriminator/loss", "validation/l1"):
        expected = history(alone, other, metric)
        found = history(os.environ["MLFLOW_TRACKING_URI"], run, metric)
        assert [step for step, _ in found] == [step for step, _ in expected], "each point once"
        # Rounding errors grow: losses are compared early, and validation to the end.
        for (step, one), (_, two) in zip(found, expected, strict=True):
            if step <= 200 or metric == "validation/l1":
                assert one == pytest.approx(two, rel=1e-2 if step <= 200 else 0.1), metric


def test_a_run_continues_when_a_host_is_lost_for_good_and_another_joins(machines: Machines) -> None:
    log = machines.folder / "moved-job.log"
    settings = ("name=moved", "train.images=100000", "train.checkpoint_every=80",
                "cluster.workers={min: 1, max: 2}")  # fmt: skip
    more = [word for setting in settings for word in ("--set", setting)]
    command = ["ray", "job", "submit", "--submission-id", "moved", "--", "jobs/pix2pix.yaml"]
    job = machines.on_head(*command, *SMALL, *more, log=log)
    wait_for(lambda: images_saved("moved") > 80, machines, why="a second checkpoint")
    assert host_of(machines, WORKER) == {"one", "two"}
    machines.hosts.pop("two").remove()
    before = images_saved("moved")
    wait_for(lambda: re.search("^restart: ", log.read_text(), re.M), machines, why="a restart")
    wait_for(lambda: images_saved("moved") > before, machines, why="a checkpoint after it")
    assert host_of(machines, WORKER) == {"one"}

    new = machines.network.add("three")
    script, secrets = MACHINES / "hosts.sh", machines.folder / "secrets"
    subprocess.run([script, secrets, machines.head.address, new.address], check=True)
    machines.hosts["three"] = new
    machines.start_ray(new)
    room = "^restart: there is room for more workers"
    wait_for(lambda: re.search(room, log.read_text(), re.M), machines, why="room for more")
    wait_for(lambda: host_of(machines, WORKER) == {"one", "three"}, machines, why="two workers")
    stop = machines.on_head("ray", "job", "stop", "moved", log=machines.folder / "stop.log")
    assert stop.wait(120) == 0
    finish(job, log, machines)
    run = the_run("pix2pix", "moved")
    assert run.info.status == "KILLED"
    points = history(os.environ["MLFLOW_TRACKING_URI"], run, "generator/loss")
    steps = [step for step, _ in points]
    assert steps == list(range(4, 4 * len(steps) + 1, 4)), "each step's point, and once"
    assert images_saved("moved") == steps[-1], "the last step was saved"


def test_a_sweep_trains_on_all_hosts(machines: Machines) -> None:
    fetch = ("data", "fetch", "faces", "s3://datasets/faces-32", "--size", "32", "--count", "64")
    subprocess.run([str(BIN / "orchestrator"), *fetch], env=machines.client, check=True)
    log = machines.folder / "sweep-job.log"
    settings = (
        "model.image_size=32", "model.filters=8", "model.latent=16", "data.source.size=32",
        "data.train=${env:ORCHESTRATOR_DATA}/faces-32/train",
        "data.validation=${env:ORCHESTRATOR_DATA}/faces-32/validation", "train.images=640",
        "sweep.trials=3", "sweep.scheduler=fifo", "sweep.report_every=160",
    )  # fmt: skip
    more = [word for setting in settings for word in ("--set", setting)]
    job = machines.submit("jobs/began_sweep.yaml", *more, log=log)
    seen: set[str] = set()
    while job.poll() is None and len(seen) < 2:
        seen |= host_of(machines, TRIAL)
        time.sleep(0.5)
    finish(job, log, machines)
    assert seen == {"one", "three"}
    client = mlflow.MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    experiment = client.get_experiment_by_name("began_sweep")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    nested = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    assert [run.info.status for run in runs] == ["FINISHED"] * 4
    (parent,) = [run for run in runs if run not in nested]
    version = client.get_model_version_by_alias("began", "candidate")
    (best,) = [run for run in nested if run.info.run_id == version.run_id]
    assert best.data.params["model.gamma"] == parent.data.tags["best/model.gamma"]


def test_a_model_that_is_pulled_from_outside_has_the_trained_weights(
    machines: Machines, tmp_path: Path
) -> None:
    def call(*command: str) -> None:
        done = subprocess.run(
            [str(BIN / "orchestrator"), *command],
            cwd=tmp_path, env=machines.client, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr

    call("models", "pull", "pix2pix@candidate", "model")
    runs = open_storage("s3://runs")
    newest = max(key for key in runs.list("cut-") if key.endswith("/snapshot.safetensors"))
    assert (tmp_path / "model/config.json").is_file()
    trained = load(runs.get(newest))
    pulled = load((tmp_path / "model/weights.safetensors").read_bytes())
    assert pulled.keys() == trained.keys()
    for name, value in pulled.items():
        assert torch.equal(value, trained[name]), name
    drawings = draw_pairs(tmp_path / "pairs", count=4, size=64) / "A"
    call("sample", "model", "--input", str(drawings), "--output", "coloured")
    assert len(list((tmp_path / "coloured").glob("*.png"))) >= 5, "four pictures and a grid"


def test_no_secret_is_in_a_log_a_command_line_or_a_record(machines: Machines) -> None:
    secrets = {
        line
        for path in (machines.folder / "secrets/secrets").iterdir()
        for line in re.findall(r"[0-9a-f]{20,}", path.read_text())
    }
    assert len(secrets) >= 10
    texts = {
        path: path.read_bytes()
        for path in machines.folder.rglob("*")
        if path.is_file()
        and not path.is_symlink()
        and "secrets" not in path.relative_to(machines.folder).parts
        and "postgres" not in path.relative_to(machines.folder).parts
        and not path.name.startswith("basic_auth")
    }
    for pid in [entry for entry in Path("/proc").iterdir() if entry.name.isdigit()]:
        with contextlib.suppress(OSError):
            texts[pid] = (pid / "cmdline").read_bytes()
    token = (machines.folder / "secrets/client/ray_auth_token").read_text().strip()
    texts[Path("jobs")] = dashboard(machines, "/api/jobs/", token)[1].encode()
    assert b"pix2pix" in texts[Path("jobs")]
    assert len(texts) > 50
    found = [path for path, text in texts.items() for secret in secrets if secret.encode() in text]
    assert found == []

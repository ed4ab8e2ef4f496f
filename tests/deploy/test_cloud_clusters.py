"""Validate deploy/cloud with Ray's cluster launcher, Amazon's API model and Ray's ARM template."""

import copy
import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
CLOUD = ROOT / "deploy" / "cloud"
CLUSTERS = sorted(path.stem for path in CLOUD.glob("*.yaml"))


def cluster(name: str) -> dict[str, Any]:
    return dict(yaml.safe_load((CLOUD / f"{name}.yaml").read_text()))


def validate_and_fill(config: dict[str, Any]) -> dict[str, Any]:
    """Fill in defaults and validate, as `ray up` does before it calls the cloud."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    filled = prepare_config(copy.deepcopy(config))
    validate_config(filled)
    return dict(filled)


@functools.cache
def run_instances() -> Any:
    """Amazon's model of the arguments of RunInstances, to which Ray passes a node's config."""
    import botocore.session

    service = botocore.session.get_session().get_service_model("ec2")
    return service.operation_model("RunInstances").input_shape


def validation_errors(node_config: dict[str, Any]) -> str:
    """Validate a node's config with Amazon's model."""
    from botocore.validate import ParamValidator

    arguments = {**node_config, "MinCount": 1, "MaxCount": 1}
    return str(ParamValidator().validate(arguments, run_instances()).generate_report())


def test_there_is_a_cluster_for_each_cloud() -> None:
    assert CLUSTERS == ["aws", "azure", "gcp"]
    assert [cluster(name)["provider"]["type"] for name in CLUSTERS] == CLUSTERS


@pytest.mark.parametrize("name", CLUSTERS)
def test_the_launcher_accepts_the_cluster(name: str) -> None:
    filled = validate_and_fill(cluster(name))
    nodes = filled["available_node_types"]
    assert (nodes["head"]["max_workers"], nodes["head"]["resources"]) == (0, {"CPU": 0})
    assert (nodes["gpu"]["min_workers"], nodes["gpu"]["max_workers"]) == (0, filled["max_workers"])
    # None of Ray's default commands is left: they would install another Ray.
    assert not re.search(r"pip install|conda", " ".join(filled["worker_setup_commands"]))
    assert "ray-wheels" not in json.dumps(filled)


@pytest.mark.parametrize("name", CLUSTERS)
def test_the_launcher_rejects_a_cluster_with_a_mistake(name: str) -> None:
    from jsonschema import ValidationError

    good = cluster(name)
    with pytest.raises(ValidationError, match="idle_timeout_minute"):
        validate_and_fill(good | {"idle_timeout_minute": 5})
    with pytest.raises(ValidationError, match="is not of type 'integer'"):
        validate_and_fill(good | {"max_workers": "four"})
    with pytest.raises(ValueError, match="head_node_type"):
        validate_and_fill(good | {"head_node_type": "heads"})
    nodes = copy.deepcopy(good)
    nodes["available_node_types"]["gpu"]["min_worker"] = 1
    with pytest.raises(ValidationError, match="min_worker"):
        validate_and_fill(nodes)


@pytest.mark.parametrize("node", ["head", "gpu"])
def test_the_model_of_amazon_accepts_the_nodes_and_rejects_a_mistake(node: str) -> None:
    config = cluster("aws")["available_node_types"][node]["node_config"]
    assert validation_errors(config) == ""
    assert "Unknown parameter" in validation_errors(config | {"IamInstanceProfil": {"Name": "x"}})
    assert "Invalid type" in validation_errors(config | {"MetadataOptions": {"HttpTokens": True}})


def test_the_head_is_on_demand_the_workers_are_spot_and_both_are_secured() -> None:
    nodes = cluster("aws")["available_node_types"]
    head, gpu = nodes["head"]["node_config"], nodes["gpu"]["node_config"]
    assert "InstanceMarketOptions" not in head
    assert gpu["InstanceMarketOptions"]["MarketType"] == "spot"
    assert head["IamInstanceProfile"] != gpu["IamInstanceProfile"]
    for node in (head, gpu):
        assert node["MetadataOptions"]["HttpTokens"] == "required"
        assert all(disk["Ebs"]["Encrypted"] for disk in node["BlockDeviceMappings"])
        assert node["SecurityGroupIds"]  # without it Ray opens SSH to everyone
    assert cluster("aws")["provider"]["cache_stopped_nodes"] is False
    azure, gcp = (cluster(name)["available_node_types"] for name in ("azure", "gcp"))
    assert azure["gpu"]["node_config"]["azure_arm_parameters"]["priority"] == "Spot"
    assert "priority" not in azure["head"]["node_config"]["azure_arm_parameters"]
    assert gcp["gpu"]["node_config"]["scheduling"]["provisioningModel"] == "SPOT"
    assert "scheduling" not in gcp["head"]["node_config"]


def test_the_arm_template_of_ray_has_every_parameter_of_the_azure_nodes() -> None:
    import ray.autoscaler._private

    folder = Path(str(ray.autoscaler._private.__file__)).parent
    template = json.loads((folder / "_azure" / "azure-vm-template.json").read_text())
    for node in cluster("azure")["available_node_types"].values():
        given = set(node["node_config"]["azure_arm_parameters"])
        assert given - set(template["parameters"]) == {"availability_zone"}  # Ray's own


@pytest.mark.parametrize("name", CLUSTERS)
def test_the_start_commands_use_the_token_and_existing_options(name: str) -> None:
    import ray

    # Importing it would import Ray Serve, which is slow.
    scripts = (Path(ray.__file__).parent / "scripts" / "scripts.py").read_text()
    block = scripts[scripts.index("@cli.command()") : scripts.index("def start(")]
    options = set(re.findall(r'"(--[a-z-]+)"', block))
    config = cluster(name)
    heads, workers = config["head_start_ray_commands"], config["worker_start_ray_commands"]
    for command in [*heads, *workers]:
        assert command.startswith(". ~/environment.sh && ")
        if "ray start" in command:
            assert set(re.findall(r"--[a-z-]+", command)) <= options
    assert "--dashboard-host=127.0.0.1" in heads[-1]
    mounts = config["file_mounts"]
    assert mounts["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert (ROOT / mounts["~/environment.sh"]).is_file()
    shell = f". {CLOUD / 'environment.sh'} && env"
    own = {"PATH": os.environ["PATH"], "HOME": "/home/x"}
    printed = subprocess.check_output(["sh", "-c", shell], env=own, text=True)
    assert "RAY_AUTH_MODE=token\n" in printed
    assert "PATH=/home/x/venv/bin:" in printed
    assert not re.search(r"(KEY|SECRET|PASSWORD|TOKEN)\w*=", printed)


def test_setup_installs_the_locked_versions_and_can_run_again(tmp_path: Path) -> None:
    source, uv = tmp_path / "orchestrator", tmp_path / ".uv" / "bin" / "uv"
    packages = tmp_path / "venv" / "lib" / "python3.11" / "site-packages"
    for folder in (source, uv.parent, packages, tmp_path / "venv" / "bin", tmp_path / ".ray"):
        folder.mkdir(parents=True)
    calls, token = tmp_path / "calls", tmp_path / ".ray" / "auth_token"
    token.write_text("token")
    token.chmod(0o644)
    # Replaces uv, and records its arguments and working directory.
    uv.write_text(f'#!/bin/sh\necho "$PWD $VIRTUAL_ENV $*" >>{calls}\n')
    uv.chmod(0o755)
    (tmp_path / "venv" / "bin" / "python").symlink_to(sys.executable)
    own = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    for _ in range(2):
        subprocess.run([str(CLOUD / "setup.sh")], env=own, check=True, capture_output=True)
    expected = (
        f"{source} {tmp_path / 'venv'} pip install --quiet --require-hashes "
        "--constraints requirements.lock --requirements pyproject.toml --extra cloud --extra data"
    )
    assert calls.read_text().splitlines() == [expected, expected]
    assert token.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / ".bashrc").read_text().count("environment.sh") == 1
    assert (packages / "orchestrator.pth").read_text() == f"{source}\n"
    command = (tmp_path / "venv" / "bin" / "orchestrator").read_text()
    assert command.startswith(f"#!{tmp_path}/venv/bin/python\n")

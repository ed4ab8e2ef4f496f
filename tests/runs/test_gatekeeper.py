"""The gate at a real MLflow server: what it refuses, what it lets through, and what it records."""

import json
import threading
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from mlflow import MlflowClient
from PIL import Image
from torch import Tensor

from orchestrator.config.job import Job
from orchestrator.data.format.images import to_png
from orchestrator.data.format.shard_index import open_set
from orchestrator.data.format.writer import ShardWriter
from orchestrator.errors import UsageError
from orchestrator.evaluation.extractors.extractor import Extractor
from orchestrator.evaluation.kid import random_features
from orchestrator.image_grid import to_pixels
from orchestrator.model_evaluation.latency import describe_machine
from orchestrator.models.base import GenerativeModel, build_model
from orchestrator.registry.aliases import force, roll_back
from orchestrator.registry.gate import GateDecision
from orchestrator.registry.registry import RegisteredVersion, register
from orchestrator.runs.gatekeeper import Gatekeeper
from orchestrator.tracking import RunRef, connect
from services.mlflow_server import MlflowServer
from support.onnx_networks import channel_means
from support.small import small_config

pytestmark = [pytest.mark.server, pytest.mark.slow]

CONFIG = small_config("dcgan")
N = 100
TRUE_SEED, OTHER_SEED = 0, 1
"""Of the weights: the data are drawn by the first, so a model with them is as good as can be."""


class RandomFeatures:
    """An extractor that needs no package."""

    name, frechet_name, images_per_pass = "random", "frechet", 64

    def __call__(self, images: Tensor) -> Tensor:
        return random_features(images.float() / 127.5 - 1)


RANDOM = RandomFeatures()


def model_of(seed: int) -> GenerativeModel:
    """A generator whose pictures differ from seed to seed in their colours, too."""
    torch.manual_seed(seed)
    model = build_model(CONFIG)
    for parameter in model.inference_module().parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def write_drawings(folder: Path, seeds: range) -> str:
    """A set of pictures that the true model draws with these seeds."""
    channels: Literal[1, 3] = 3 if CONFIG.channels == 3 else 1
    writer = ShardWriter(
        str(folder), ("image",), image_size=CONFIG.image_size, channels=channels, classes=()
    )
    for number, image in zip(seeds, model_of(TRUE_SEED).sample(torch.tensor(seeds)), strict=True):
        picture = Image.fromarray(to_pixels(image)).convert("RGB" if channels == 3 else "L")
        writer.add(f"s{number}", {"image": to_png(picture)}, None, None)
    writer.finish()
    return str(folder)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("sets")
    return {
        "validation": write_drawings(folder / "validation", range(10_000, 10_000 + N)),
        "newer": write_drawings(folder / "newer", range(20_000, 20_000 + N)),
        "training": write_drawings(folder / "training", range(30_000, 30_000 + N)),
        "copied": write_drawings(folder / "copied", range(N)),
    }


class Registry:
    """One registered model, and the gate of a job for it."""

    def __init__(self, uri: str, name: str, sets: dict[str, str], folder: Path) -> None:
        self.uri, self.name, self.sets, self.folder = uri, name, sets, folder
        with connect(uri) as client:
            self.experiment = client.create_experiment(name)
        self.client = MlflowClient(uri)

    def add(self, weights: dict[str, Tensor]) -> RegisteredVersion:
        with connect(self.uri) as client:
            run = RunRef(self.uri, self.experiment, client.create_run(self.experiment).info.run_id)
        return register(run, self.name, CONFIG, weights, example=None, notes={})

    def gate(
        self,
        validation: str = "validation",
        train: str = "training",
        given: Extractor | None = RANDOM,
        **rules: Any,
    ) -> Gatekeeper:
        values = {
            "name": "gated",
            "model": CONFIG.model_dump(mode="json"),
            "data": {"train": self.sets[train], "validation": self.sets[validation]},
            "train": {"images": 8, "batch_size": 4},
            "tracking": {"uri": self.uri},
            "storage": str(self.folder),
            "register": {
                "name": self.name,
                "promote": {
                    "alias": "champion", "better": {"kid": {}}, "num_images": N, **rules,
                },
            },
        }  # fmt: skip
        return Gatekeeper(Job.model_validate(values, strict=False), given)

    def champion(self) -> int | None:
        found = self.client.get_registered_model(self.name).aliases.get("champion")
        return None if found is None else int(found)

    def record(self, version: RegisteredVersion) -> dict[str, Any]:
        tags = self.client.get_model_version(self.name, str(version.version)).tags
        found: dict[str, Any] = json.loads(tags["gate.champion"])
        return found


def weights_of(seed: int) -> dict[str, Tensor]:
    return dict(model_of(seed).inference_module().state_dict())


@pytest.fixture
def registry(
    running_mlflow: MlflowServer,
    request: pytest.FixtureRequest,
    sets: dict[str, str],
    tmp_path: Path,
) -> Registry:
    return Registry(running_mlflow.uri, request.node.name[:40], sets, tmp_path)


def refused(decision: GateDecision, reason: str) -> None:
    assert not decision.promoted
    assert any(reason in each for each in decision.reasons), decision.reasons


def test_only_a_better_version_gets_the_alias(registry: Registry) -> None:
    gate = registry.gate(at_most={"kid": 1e6, "nearest": 0.5, "latency_ms": 1e6})
    bad = registry.add(weights_of(OTHER_SEED))
    first = gate.judge(bad)
    assert (first.promoted, first.reasons) == (True, ("no version had the alias",))

    good = registry.add(weights_of(TRUE_SEED))
    better = gate.judge(good)
    (difference,) = better.differences
    assert better.promoted
    assert difference.low <= difference.difference <= difference.high < 0
    assert registry.champion() == good.version
    record = registry.record(good)
    assert record["champion"] == bad.version
    assert record["about"]["data_digest"] == open_set(registry.sets["validation"]).digest
    assert record["differences"][0]["high"] == difference.high
    card = registry.client.get_model_version(registry.name, str(good.version)).description or ""
    (kid,) = [each for each in better.measured if each.metric == "kid.random"]
    row = f"| kid.random | {kid.value:.3g} | {kid.low:.3g} to {kid.high:.3g} | 100 |"
    assert card.count("## Evaluation") == card.count(row) == 1
    (latency,) = [each for each in record["measured"] if each["metric"] == "latency_ms"]
    assert latency["n"] >= 5
    assert record["about"]["machine"] == describe_machine()
    assert f"Latency: one image alone on {describe_machine()}." in card

    equal = registry.add(weights_of(TRUE_SEED))
    refused(gate.judge(equal), "not better: kid.random")
    refused(gate.judge(bad), "not better: kid.random")
    broken = weights_of(TRUE_SEED)
    key = next(key for key, value in broken.items() if value.dim() > 1)
    broken[key].view(-1)[0] = torch.nan
    refused(gate.judge(registry.add(broken)), "1 of ")
    assert registry.champion() == good.version

    for changed, reason in (
        (registry.gate("newer"), f"data_digest is {open_set(registry.sets['newer']).digest}"),
        (registry.gate(num_images=60), "num_images is 60, and the champion was judged with 100"),
    ):
        decision = changed.judge(equal)
        refused(decision, reason)
        assert registry.record(equal)["reasons"] == list(decision.reasons)
    assert registry.champion() == good.version

    assert roll_back(registry.name, "champion", "too dark", registry.uri) == (
        good.version, bad.version,
    )  # fmt: skip
    assert registry.champion() == bad.version
    assert registry.record(good)["rolled_back"] == "too dark"
    with pytest.raises(UsageError, match="has no record of a version that had champion before"):
        roll_back(registry.name, "champion", "again", registry.uri)
    force(f"{registry.name}/{equal.version}", "champion", "by hand", registry.uri)
    assert registry.champion() == equal.version
    assert registry.record(equal)["forced"] == "by hand"
    with pytest.raises(UsageError, match="has the alias champion already"):
        gate.judge(equal)
    back = roll_back(registry.name, "champion", "by hand, too", registry.uri)
    assert back == (equal.version, bad.version)


def test_a_generator_that_copies_its_training_images_is_refused(registry: Registry) -> None:
    """Its training set is what it draws with the seeds of the evaluation."""
    version = registry.add(weights_of(TRUE_SEED))
    decision = registry.gate(train="copied", at_most={"nearest": 0.2}).judge(version)
    refused(decision, "nearest.random is 1, and at most 0.2 is allowed")
    refused(decision, "the model copies training images: 100.00% are as near to one as")
    assert registry.champion() is None
    assert registry.gate(at_most={"nearest": 0.2}).judge(version).promoted


def test_a_champion_that_another_extractor_judged_stays(registry: Registry) -> None:
    settings = registry.folder / "means.json"
    content = {"name": "means", "path": "means.onnx", "size": 16}
    content |= {"sha256": channel_means(registry.folder / "means.onnx")}
    settings.write_text(json.dumps(content))
    by_file = registry.gate(given=None, extractor=f"onnx:{settings}")
    name = by_file.extractor.name
    bad, good = (registry.add(weights_of(seed)) for seed in (OTHER_SEED, TRUE_SEED))
    assert registry.gate().judge(bad).promoted
    refused(by_file.judge(good), f"extractor is {name}, and the champion was judged with random")
    assert registry.champion() == bad.version
    force(f"{registry.name}/{good.version}", "champion", "other features", registry.uri)
    again = by_file.judge(bad)  # a champion without a record of its extractor is measured anew
    assert again.about["extractor"] == name
    refused(again, f"not better: kid.{name}")


def test_two_promoters_at_once_leave_one_alias_and_two_records(registry: Registry) -> None:
    assert registry.gate().judge(registry.add(weights_of(OTHER_SEED))).promoted
    both = [registry.add(weights_of(TRUE_SEED)) for _ in range(2)]
    decisions: list[GateDecision] = []
    start = threading.Barrier(2)

    def judge(version: RegisteredVersion) -> None:
        start.wait()
        decisions.append(registry.gate().judge(version))

    threads = [threading.Thread(target=judge, args=(version,)) for version in both]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert registry.champion() in [version.version for version in both]
    assert len(decisions) == 2
    assert any(decision.promoted for decision in decisions)
    for version in both:
        assert registry.record(version)["differences"]

"""What the gate measures for its limits, on versions in folders as `models pull` writes them."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.config.job import Job
from orchestrator.config.load import load_job
from orchestrator.data.format.shard_index import open_set
from orchestrator.errors import DataError, JobFileError, UsageError
from orchestrator.export.onnx_program import OnnxProgram
from orchestrator.model_evaluation.draw_images import likelihoods
from orchestrator.model_evaluation.latency import describe_machine
from orchestrator.model_evaluation.reference_set import ImageReading, ReferenceSet
from orchestrator.models.base import ModelConfig, build_model
from orchestrator.models.parts.abilities import HasLikelihood
from orchestrator.registry.bundle import load_bundle, write_bundle
from orchestrator.registry.gate import decide
from orchestrator.runs.gatekeeper import Gatekeeper, check_gate
from support.onnx_networks import channel_means
from support.packed_sets import write_set
from support.small import small_config

N = 50


def gate_of(config: ModelConfig, folder: Path, **rules: Any) -> Gatekeeper:
    """The gate of a job for a model; its features are the means of the channels."""
    settings = folder / "means.json"
    if not settings.exists():
        sha256 = channel_means(folder / "means.onnx")
        content = {"name": "means", "path": "means.onnx", "sha256": sha256, "size": 16}
        settings.write_text(json.dumps(content))
    promote = {
        "alias": "champion", "better": {"kid": {}}, "num_images": N,
        "extractor": f"onnx:{settings}", **rules,
    }  # fmt: skip
    values = {
        "name": "gated",
        "model": config.model_dump(mode="json"),
        "data": {"train": "none", "validation": str(folder / "validation")},
        "train": {"images": 8, "batch_size": 4},
        "storage": str(folder),
        "register": {"name": "x", "promote": promote},
    }
    return Gatekeeper(Job.model_validate(values, strict=False))


def version_of(config: ModelConfig, folder: Path, **notes: Any) -> str:
    """A version with random weights, and the validation set."""
    torch.manual_seed(0)
    version = folder / "version"
    write_bundle(version, config, build_model(config).inference_module().state_dict(), notes)
    write_set(folder / "validation", config, N)
    return str(version)


def test_a_version_that_is_too_slow_is_refused_with_its_time_and_the_machine(
    tmp_path: Path,
) -> None:
    config = small_config("dcgan")
    version = version_of(config, tmp_path)
    for bound, passes in ((1e-6, False), (1e6, True)):
        gate = gate_of(config, tmp_path, at_most={"latency_ms": bound})
        decision = decide(gate.rules, gate.measure(version, limited=True), None)
        assert decision.promoted is passes
        (latency,) = [each for each in decision.measured if each.metric == "latency_ms"]
        assert latency.n >= 5
        assert decision.about["machine"] == describe_machine()
    gate = gate_of(config, tmp_path, at_most={"latency_ms": 1e-6})
    (reason,) = decide(gate.rules, gate.measure(version, limited=True), None).reasons
    assert reason.startswith("latency_ms is ")
    assert reason.endswith(", and at most 1e-06 is allowed")
    unlimited = gate.measure(version, limited=False)
    assert [each.metric for each in unlimited.report.measurements] == ["kid." + gate.extractor.name]


@pytest.mark.parametrize(
    ("name", "options", "limit", "binarize"),
    [
        ("vae", {}, "negative_elbo_nats", False),
        ("vae", {"channels": 1, "likelihood": "bernoulli"}, "negative_elbo_nats", True),
        ("pixelcnn", {}, "nll_nats", False),
    ],
)
def test_a_limit_of_the_nats_is_that_of_the_validation_images(
    tmp_path: Path, name: str, options: dict[str, Any], limit: str, binarize: bool
) -> None:
    config = small_config(name, **options)
    version = version_of(config, tmp_path, binarize=binarize)
    model, packed = load_bundle(Path(version)), open_set(str(tmp_path / "validation"))
    assert isinstance(model, HasLikelihood)
    reference = ReferenceSet(packed, N, ImageReading(binarize=binarize))
    found = likelihoods(model, reference, torch.device("cpu"), seed=0)
    full = f"{limit}_binarized" if binarize else limit
    expected = float(found[full].mean())
    for bound, passes in ((expected * 0.999, False), (expected * 1.001, True)):
        gate = gate_of(config, tmp_path, at_most={limit: bound})
        decision = decide(gate.rules, gate.measure(version, limited=True), None)
        assert decision.promoted is passes
        assert passes or decision.reasons == (
            f"{full} is {expected:.4g}, and at most {bound:g} is allowed",
        )


def test_what_the_extractor_needs_is_checked_before_the_training(tmp_path: Path) -> None:
    config = small_config("dcgan")
    job = gate_of(config, tmp_path).job
    check_gate(job)
    check_gate(job.model_copy(update={"register_as": None}))
    (tmp_path / "means.onnx").write_bytes(b"another")
    with pytest.raises(DataError, match=r"^register\.promote\.extractor: .*is not the file of the"):
        check_gate(job)
    (tmp_path / "means.json").unlink()
    with pytest.raises(UsageError, match="cannot read the extractor's settings: No such file"):
        check_gate(job)


def test_the_features_are_those_of_the_extractor_that_the_job_names(tmp_path: Path) -> None:
    config = small_config("dcgan")
    version = version_of(config, tmp_path)
    gate = gate_of(config, tmp_path)
    found = gate.measure(version, limited=True)
    assert str(found.about["extractor"]).startswith("means-")
    assert found.reference is not None
    mean = torch.stack(
        [b.images for b in ReferenceSet(open_set(f"{tmp_path}/validation"), N).batches(1)]
    )
    expected = (mean.mean((1, 3, 4)) + 1) / 2
    default = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])
    assert found.reference.features == pytest.approx((expected - default[0]) / default[1], abs=1e-4)
    assert asdict(decide(gate.rules, found, None))["about"]["extractor"] == found.about["extractor"]


@pytest.mark.slow
@pytest.mark.parametrize("format_", ["onnx", "pt2"])
def test_a_version_that_is_exported_well_is_measured_so(tmp_path: Path, format_: str) -> None:
    config = small_config("pix2pix")
    version = version_of(config, tmp_path)
    gate = gate_of(config, tmp_path, exports=[format_])
    found = gate.measure(version, limited=True)
    (measured,) = [m for m in found.report.measurements if m.metric == f"export.{format_}"]
    assert 0 <= measured.value <= 1e-4
    assert measured.n == 64
    others = gate.measure(version, limited=False).report.measurements
    assert not any(m.metric.startswith("export.") for m in others)


@pytest.mark.slow
def test_a_version_whose_export_draws_other_images_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config("vae")
    version = version_of(config, tmp_path)
    gate = gate_of(config, tmp_path, exports=["onnx"])
    draw = OnnxProgram.__call__
    monkeypatch.setattr(
        OnnxProgram, "__call__", lambda self, seeds, given: draw(self, seeds + 1, given)
    )
    with pytest.raises(DataError, match=r"other images as onnx: largest difference .* \(limit"):
        gate.measure(version, limited=True)


def test_a_gate_does_not_ask_for_the_export_of_what_draws_value_by_value(tmp_path: Path) -> None:
    text = """\
name: digits
model: {name: pixelcnn}
data: {train: a, validation: b}
train: {images: 8, batch_size: 4}
register: {name: x, promote: {alias: champion, better: {kid: {}}, exports: [onnx]}}
"""
    (tmp_path / "job.yaml").write_text(text)
    with pytest.raises(JobFileError, match="the model pixelcnn is not exported: "):
        load_job(tmp_path / "job.yaml")

"""`orchestrator evaluate`: one model by all its addresses, and what is refused in one line."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from orchestrator.cli import app
from orchestrator.config.load import load_job
from orchestrator.models.base import build_model
from orchestrator.registry.bundle import write_bundle
from orchestrator.registry.registry import pull
from orchestrator.runs.driver import run_job
from support.packed_sets import write_set
from support.small import small_config
from support.small_runs import checkpoints_of, only_run, pack_pairs, write_job


@dataclass
class Evaluate:
    """Runs the command in this process."""

    monkeypatch: pytest.MonkeyPatch
    capsys: pytest.CaptureFixture[str]

    def __call__(self, *arguments: object) -> tuple[int, str, str]:
        self.monkeypatch.setattr("sys.argv", ["orchestrator", "evaluate", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            app.main()
        printed = self.capsys.readouterr()
        return int(end.value.code or 0), printed.out, printed.err

    def values(self, *arguments: object) -> dict[str, float]:
        code, out, err = self(*arguments, "--json")
        assert code == 0, err
        return {m["metric"]: m["value"] for m in json.loads(out)["measurements"]}

    def fails(self, code: int, *arguments: object) -> str:
        """Return the only line of an error."""
        found, out, err = self(*arguments)
        assert (found, out) == (code, ""), err
        assert len(err.splitlines()) == 1, err
        return err


@pytest.fixture
def evaluate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Evaluate:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Evaluate(monkeypatch, capsys)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A VAE with random weights, `model`, and sets of 54 and 20 images for it."""
    folder = tmp_path_factory.mktemp("evaluate")
    config = small_config("vae", channels=3)
    torch.manual_seed(0)
    weights = build_model(config).inference_module().state_dict()
    (folder / "model").mkdir()
    write_bundle(folder / "model", config, weights, {"job": "x"})
    write_set(folder / "set", config, 54)
    write_set(folder / "small", config, 20)
    write_set(folder / "grey", small_config("vae", channels=1), 54)
    write_set(folder / "large", small_config("vae", channels=3, image_size=32), 54)
    return folder


@pytest.mark.slow
def test_a_trained_model_has_the_values_of_its_validation_by_every_address(
    tmp_path: Path, evaluate: Evaluate, capsys: pytest.CaptureFixture[str]
) -> None:
    data = pack_pairs(tmp_path)
    job = write_job(tmp_path / "x", data)
    run_job(load_job(job, ["train.images=16", "train.log_every=4"]))
    run = only_run(job.parent)
    storage = f"{job.parent}/runs"
    uri = f"sqlite:///{job.parent}/mlflow.db"
    pull("small", tmp_path / "pulled", uri)
    (name,) = checkpoints_of(storage, run).names()[-1:]
    capsys.readouterr()
    options = ("--data", f"{data}/validation", "--metrics", "pairs", "--tracking-uri", uri)
    folder = f"{storage}/{run.info.run_name}"
    by_address = {
        address: evaluate.values(address, *options)
        for address in (
            "small@candidate", "small/1", "small", tmp_path / "pulled", folder,
            f"{folder}/checkpoints/{name}",
        )
    }  # fmt: skip
    (first, *others) = by_address.values()
    assert first["l1"] == pytest.approx(run.data.metrics["validation/l1"], rel=1e-5)
    assert first["psnr"] == pytest.approx(run.data.metrics["validation/psnr"], rel=1e-5)
    assert all(other == first for other in others)
    wrong = ("--data", f"{data}/train", "--training-data", f"{data}/validation")
    assert "is not the set that" in evaluate.fails(4, folder, *wrong)
    code, _, err = evaluate(folder, *options[2:], "--data", f"{data}/train")
    assert code == 0
    assert "values on images that the training never saw say more" in err


@pytest.mark.slow
def test_the_second_evaluation_extracts_no_reference_image_and_says_the_same(
    folder: Path, tmp_path: Path, evaluate: Evaluate
) -> None:
    options = (folder / "model", "--data", folder / "set", "--num-images", 54)
    code, table, log = evaluate(*options, "--output", tmp_path / "report.json")
    assert code == 0, log
    assert "images of the reference: 54 of 54" in log
    assert max(map(len, table.splitlines())) <= 80
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["about"]["extractor"] == "lite0"
    assert report["about"]["data"] == str(folder / "set")
    names = [each["metric"] for each in report["measurements"]]
    for name in ("kid.lite0", "frechet.lite0.n54", "coverage.lite0.n54", "negative_elbo_nats"):
        assert name in names
        assert name in table
    code, again, log = evaluate(*options)
    assert (code, again) == (0, table)
    assert "images of the reference" not in log
    assert "generated images: 54 of 54" in log


def test_what_does_not_fit_is_one_line_with_its_exit_code(folder: Path, evaluate: Evaluate) -> None:
    model = folder / "model"
    line = evaluate.fails(4, model, "--data", folder / "small")
    assert "small has 20 images, too few: the metrics need at least 50; give a larger set" in line
    line = evaluate.fails(4, model, "--data", folder / "grey")
    assert "has grey images, but the model draws colour ones" in line
    line = evaluate.fails(4, model, "--data", folder / "large")
    assert "has images of 32 px, but the model draws 16 px; make a copy of the set with" in line
    assert "there is no packed set" in evaluate.fails(4, model, "--data", folder / "nowhere")
    line = evaluate.fails(2, model, "--data", folder / "set", "--num-images", 49)
    assert "--num-images 49 is too few: the metrics need at least 50" in line
    line = evaluate.fails(2, model, "--data", folder / "set", "--metrics", "kid,fid")
    assert "--metrics fid: no such metric; there are kid, frechet" in line
    line = evaluate.fails(2, model, "--data", folder / "set", "--metrics", "pairs")
    assert "--metrics pairs: the model does not translate" in line
    line = evaluate.fails(2, model, "--data", folder / "set", "--output", folder / "no" / "x.json")
    assert "give a file in an existing folder" in line
    line = evaluate.fails(2, "runs/x", "--data", folder / "set")
    assert "there are no checkpoints at runs/x" in line
    line = evaluate.fails(2, "nosuch", "--data", folder / "set")
    assert "there is no MLflow database" in line


def test_a_wrong_extractor_is_one_line(folder: Path, tmp_path: Path, evaluate: Evaluate) -> None:
    options = (folder / "model", "--data", folder / "set", "--extractor")
    assert "use lite0, inception:FILE or onnx:SETTINGS.json" in evaluate.fails(2, *options, "vgg")
    line = evaluate.fails(2, *options, "inception:weights.pth")
    assert "weights.pth: cannot read the file of the extractor inception" in line
    (tmp_path / "weights.pth").write_bytes(b"other")
    line = evaluate.fails(4, *options, "inception:weights.pth")
    assert "this is not the file of the extractor inception" in line
    assert "cannot read the extractor's settings" in evaluate.fails(
        2, *options, "onnx:settings.json"
    )
    (tmp_path / "settings.json").write_text('{"name": "x", "path": "x.onnx"}')
    line = evaluate.fails(2, *options, "onnx:settings.json")
    assert "settings.json: sha256: Field required" in line


def test_a_damaged_sample_of_the_set_ends_the_evaluation(
    folder: Path, tmp_path: Path, evaluate: Evaluate
) -> None:
    shutil.copytree(folder / "set", tmp_path / "set")
    (shard,) = (tmp_path / "set").glob("*.tar")
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    options = ("--data", tmp_path / "set", "--metrics", "likelihood")
    line = evaluate.fails(4, folder / "model", *options)
    assert "the bytes differ from those that were packed" in line


def test_a_storage_that_does_not_answer_is_one_line(
    folder: Path, evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    found, out, err = evaluate(folder / "model", "--data", "s3://bucket/set")
    assert (found in (3, 75), out) == (True, ""), err
    assert len(err.splitlines()) == 1
    assert "127.0.0.1:1" in err

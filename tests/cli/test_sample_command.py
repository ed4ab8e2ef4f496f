"""`orchestrator sample`: what it refuses, in one line with its exit code."""

from pathlib import Path

import pytest
import torch

from orchestrator.cli import app
from orchestrator.models.base import build_model
from orchestrator.registry.bundle import write_bundle
from support.small import small_config

LABELS = "expected CLASS:COUNT,CLASS:COUNT,... such as 0:500,3:2000"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with small models: one with 3 classes, one without, one that translates."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("gated_pixelcnn", "dcgan", "pix2pix"):
        config = small_config(name)
        weights = build_model(config).inference_module().state_dict()
        write_bundle(folder / name.removesuffix("_pixelcnn"), config, weights, {})
    return folder


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("gated --labels 0:5,3:2", "--labels: class 3: model gated_pixelcnn has classes 0 to 2"),
        ("gated --label 1 --label 7 --num-images 4", "--label 7: model gated_pixelcnn has classes"),
        ("dcgan --labels 0:5", "--labels: class 0: model dcgan has no classes: leave it out"),
        ("dcgan --label 0 --num-images 5", "--label 0: model dcgan has no classes: leave it out"),
        ("gated --labels 0", f"--labels: '0' is not a class and its count; {LABELS}"),
        ("gated --labels 0:0", f"--labels: '0:0' is not a class and its count; {LABELS}"),
        ("gated --labels 1:-5", f"--labels: '1:-5' is not a class and its count; {LABELS}"),
        ("gated --labels 1:5,1:6", f"--labels: '1:5,1:6' has a class twice; {LABELS}"),
        ("gated --labels 1:999999,2:2", "--labels: 1,000,001 images are too many; at most"),
        ("gated --labels 1:5 --num-images 5", "--labels has classes and numbers: leave --label"),
        ("gated --num-images 5 --field b", "--field goes with --input, not with --num-images"),
        ("pix2pix --input images --field b", "--field b: images is no packed set"),
        ("pix2pix --input odd", r"odd: 'a\\b.png' has a backslash in its name; rename it"),
        ("dcgan --num-images 5 --cluster", "--cluster needs RAY_ADDRESS, the address of a Ray"),
        ("dcgan --num-images 5 --cluster --device cuda", "--cluster draws on the CPUs"),
        ("dcgan --num-images 5 --shard-bytes many", "--shard-bytes: 'many' is not a valid size"),
        ("dcgan", "give either --input FOLDER to translate or --num-images N to sample"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(
    models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: str,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    Path("images").mkdir()
    Path("odd").mkdir()
    Path("odd", r"a\b.png").touch()
    name, *rest = arguments.split()
    assert _run(monkeypatch, str(models / name), *rest, "--output", "out") == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1
    assert not Path("out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_named_and_auto_takes_the_cpu(
    models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = [str(models / "dcgan"), "--num-images", "3", "--output", str(tmp_path / "out")]
    assert _run(monkeypatch, *command, "--device", "cuda") == 3
    assert "error: --device cuda: PyTorch finds no GPU on this machine" in capsys.readouterr().err
    assert _run(monkeypatch, *command) == 0
    assert capsys.readouterr().err == (
        "drawing: 3 of 3\n"
        f"3 images in {tmp_path / 'out'}; the first of them: {tmp_path / 'out' / 'grid.png'}\n"
    )


def _run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["orchestrator", "sample", *arguments])
    with pytest.raises(SystemExit) as end:
        app.main()
    return int(end.value.code or 0)

"""A run with a gate, from the job file to the alias, with the default extractor."""

from pathlib import Path

import pytest
from mlflow import MlflowClient
from typer.testing import CliRunner

from orchestrator.cli.app import app
from orchestrator.config.load import load_job
from orchestrator.data.prepare.pack import pack_folder
from orchestrator.registry.gate import GateRefused
from orchestrator.runs.driver import run_job
from support.drawings import draw_pairs
from support.small_runs import write_job

pytestmark = pytest.mark.slow

PROMOTE = "register.promote={alias: champion, better: {kid: {}}, num_images: 50}"


def test_the_first_version_is_the_champion_and_an_equal_one_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = draw_pairs(tmp_path / "pairs", count=110, size=16)
    pack_folder(pairs, str(tmp_path / "data"), size=16, validation_share=0.5)
    job = write_job(tmp_path / "x", str(tmp_path / "data"))
    settings = ["train.images=8", "train.log_every=4", PROMOTE]
    for _ in range(2):
        run_job(load_job(job, settings))
    printed = capsys.readouterr().err
    assert "champion is small/1 now: no version had the alias" in printed
    assert "champion stays, small/2 is refused: not better: kid.lite0" in printed
    client = MlflowClient(f"sqlite:///{job.parent}/mlflow.db")
    assert int(client.get_model_version_by_alias("small", "champion").version) == 1
    assert int(client.get_model_version_by_alias("small", "candidate").version) == 2
    options = ["--job", str(job), *(part for one in settings for part in ("--set", one))]
    refused = CliRunner().invoke(app, ["models", "promote", "small/2", *options])
    assert isinstance(refused.exception, GateRefused)
    assert refused.exception.exit_code == 5
    compared = CliRunner().invoke(app, ["models", "compare", "small/2", "small/1", *options])
    assert compared.exit_code == 0, compared.output
    names, numbers = (line.split() for line in compared.stdout.splitlines()[:2])
    assert names[:3] == ["metric", "small/2", "small/1"]
    assert numbers[0] == "kid.lite0"
    assert numbers[1] == numbers[2]
    assert float(numbers[3]) == 0

"""Commands that show versions and move aliases, with a small model in a SQLite registry."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from orchestrator.cli.app import app
from orchestrator.config.load import load_job
from orchestrator.diagnostics.describe_sections import describe_gate
from orchestrator.errors import DataError, OrchestratorError, UsageError
from orchestrator.runs.gatekeeper import check_gate
from orchestrator.runs.resolved_job import resolve_job
from support.onnx_networks import channel_means
from support.registries import make_registry, register_random
from support.small import small_config

JOB = """\
name: gated
model: {name: vae}
data: {train: data/train, validation: data/validation}
train: {images: 8, batch_size: 4}
register:
  name: digits
  promote: {alias: champion, better: {kid: {margin: 0.01}}, at_most: {nearest: 0.02}}
"""


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A registry with two versions of ``digits``."""
    folder = tmp_path_factory.mktemp("gate")
    uri = make_registry(folder)
    for _ in range(2):
        register_random(uri, "digits", small_config("vae"), {"job": "gated"})
    return uri


def test_an_alias_is_forced_shown_and_rolled_back_with_its_reasons(uri: str) -> None:
    def works(*words: str) -> str:
        done = CliRunner().invoke(app, ["models", *words, "--tracking-uri", uri])
        assert done.exit_code == 0, done.output
        return done.output

    for version, reason in (("1", "the first"), ("2", "brighter")):
        works("promote", f"digits/{version}", "--alias", "champion", "--force", reason)
    works("rollback", "digits", "--alias", "champion", "--reason", "too bright")
    shown = works("show", "digits/2")
    assert shown.startswith("# digits\n")
    assert "promoted without the gate: brighter; rolled back: too bright" in shown
    found = json.loads(works("show", "digits@champion", "--json"))
    assert (found["version"], found["aliases"]) == (1, ["champion"])
    assert found["gate"]["champion"]["forced"] == "the first"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["promote", "digits/1"], "give either --job JOB, whose gate judges, or --force REASON"),
        (["promote", "digits/1", "--force", "x"], "--force needs --alias, such as --alias champ"),
        (["promote", "digits/1", "--alias", "a", "--force", " "], "the reason has 1 characters; "),
        (["rollback", "digits", "--alias", "best", "--reason", "x"], "digits has no alias 'best'"),
        (["rollback", "digits", "--alias", "candidate", "--reason", "x"], "has no record of a ver"),
    ],
)
def test_what_cannot_be_moved_is_a_line(uri: str, words: list[str], message: str) -> None:
    done = CliRunner().invoke(app, ["models", *words, "--tracking-uri", uri])
    assert isinstance(done.exception, UsageError)
    assert message in str(done.exception)


def write(folder: Path, text: str = JOB) -> Path:
    path = folder / "job.yaml"
    path.write_text(text)
    return path


def test_the_plan_says_what_the_gate_will_ask(tmp_path: Path) -> None:
    assert describe_gate(load_job(write(tmp_path)).job) == (
        "champion moves if kid.lite0 is lower by more than 0.01 (95 %), nearest at most 0.02; "
        "1,000 images each, on the validation set"
    )
    changes = ["register.promote.extractor=onnx:dino.json", "register.promote.at_most.latency_ms=9"]
    assert describe_gate(load_job(write(tmp_path), changes).job) == (
        "champion moves if kid is lower by more than 0.01 (95 %), nearest at most 0.02, latency_ms "
        "at most 9; 1,000 images each, on the validation set, by features of onnx:dino.json"
    )
    assert describe_gate(load_job(write(tmp_path), ["register.promote=null"]).job) is None


def test_an_extractor_is_checked_before_the_training_from_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "jobs").mkdir()
    path = write(tmp_path / "jobs")

    def checked(extractor: str) -> BaseException | None:
        loaded = load_job(path, [f"register.promote.extractor={extractor}"])
        try:
            check_gate(resolve_job(loaded).job)
        except OrchestratorError as error:
            return error
        return None

    missing = checked("inception:weights.pth")
    assert isinstance(missing, UsageError)
    assert str(missing).startswith(
        f"register.promote.extractor: {tmp_path}/weights.pth: cannot read the file of the extractor"
    )
    (tmp_path / "weights.pth").write_bytes(b"other")
    assert isinstance(checked("inception:weights.pth"), DataError)
    content = {"name": "means", "path": "means.onnx", "size": 16}
    content |= {"sha256": channel_means(tmp_path / "means.onnx")}
    (tmp_path / "means.json").write_text(json.dumps(content))
    assert checked("onnx:means.json") is None
    assert checked("lite0") is None
    loaded = load_job(path, ["register.promote.extractor=onnx:means.json"])
    register = resolve_job(loaded).job.register_as
    assert register is not None
    assert register.promote is not None
    assert register.promote.extractor == f"onnx:{tmp_path}/means.json"
    assert "extractor: onnx:means.json" in loaded.render()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.validation=null", "register.promote: needs a validation set to measure on; set"),
        ("register.promote.alias=candidate", "'candidate' is an alias of its own; use another"),
        ("register.promote.num_images=60", "60 is too few for register.promote.at_most.nearest"),
        (
            "data.train=[{path: a, weight: 1}, {path: b, weight: 1}]",
            "register.promote.at_most.nearest: looks for copies in one training set",
        ),
        ("register.promote.at_most={l1: 0.1}", "the model vae does not translate, so its images"),
        (
            "register.promote.better={}",
            "register.promote.better: names no metric; give kid or frechet",
        ),
        ("register.promote.better={kidd: {}}", "better.kidd: unknown key; did you mean kid?"),
        ("register.promote.at_most={kid: .nan}", "register.promote.at_most.kid: "),
        (
            "register.promote.extractor=vgg",
            "register.promote.extractor: 'vgg' is not an extractor; use lite0, inception:FILE or",
        ),
        ("register.promote.extractor='onnx:'", "'onnx:' is not an extractor; use lite0, incep"),
        (
            "register.promote.at_most={nll_nats: 90}",
            "at_most.nll_nats: is a bound of nll_nats, but the model vae has negative_elbo_nats: "
            "use that",
        ),
        (
            "register.promote.at_most={latency_ms: fast}",
            "register.promote.at_most.latency_ms: ",
        ),
    ],
)
def test_a_gate_that_cannot_be_asked_is_a_mistake_in_the_job(
    tmp_path: Path, override: str, message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        load_job(write(tmp_path), [override])
    assert message in str(caught.value)


@pytest.mark.parametrize("metric", ["nll_nats", "negative_elbo_nats"])
def test_a_limit_of_nats_needs_a_model_with_a_likelihood(tmp_path: Path, metric: str) -> None:
    path = write(tmp_path, JOB.replace("{name: vae}", "{name: dcgan}"))
    with pytest.raises(UsageError, match="the model dcgan has no likelihood: remove it"):
        load_job(path, [f"register.promote.at_most={{{metric}: 90}}"])


@pytest.mark.parametrize(
    ("model", "metric", "binarize"),
    [
        ("vae", "negative_elbo_nats", "null"),
        ("vae", "negative_elbo_nats", "dynamic"),
        ("gated_pixelcnn", "nll_nats", "null"),
        ("gated_pixelcnn", "nll_nats", "fixed"),
    ],
)
def test_a_limit_of_the_nats_that_the_model_has_is_accepted(
    tmp_path: Path, model: str, metric: str, binarize: str
) -> None:
    path = write(tmp_path, JOB.replace("{name: vae}", f"{{name: {model}}}"))
    limit = f"register.promote.at_most={{{metric}: 90}}"
    loaded = load_job(path, [limit, f"data.binarize={binarize}"])
    assert f"{metric} at most 90" in (describe_gate(loaded.job) or "")

"""The catalog of models, against the files and published numbers."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from orchestrator import models
from orchestrator.cli import app
from orchestrator.config.load import load_job
from orchestrator.config.logged_metrics import validation_metrics
from orchestrator.config.metric_descriptions import VALIDATION_METRICS
from orchestrator.errors import JobFileError, UsageError
from orchestrator.models.base import build_model, model_names
from orchestrator.registry import catalog as module
from orchestrator.registry.catalog import (
    CatalogEntry,
    build_catalog,
    parse_docstring,
)
from orchestrator.training.evaluate import validate
from orchestrator.training.interfaces import Worker
from support.fakes import ListRecorder, MemoryCheckpoints, small_job
from support.small import small_batch, small_config

ROOT = Path(__file__).parents[2]

MINIMAL = """\
name: a
model: {{name: {model}, image_size: 32}}
data: {{train: x}}
train: {{batch_size: 2, epochs: 1}}
"""


@pytest.fixture(scope="module")
def entries() -> dict[str, CatalogEntry]:
    """All models at the settings of this repository's jobs."""
    return {entry.model: entry for entry in build_catalog(ROOT / "jobs", environ={})}


@pytest.fixture(scope="module")
def defaults(tmp_path_factory: pytest.TempPathFactory) -> dict[str, CatalogEntry]:
    """All models at their defaults, from a folder without jobs."""
    none = tmp_path_factory.mktemp("none")
    return {entry.model: entry for entry in build_catalog(none, environ={})}


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Add the working directory to models/ and yield its aaa.py, which the test writes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(models, "__path__", [*models.__path__, str(tmp_path)])
    monkeypatch.setattr(module, "model_names", lambda: ["aaa"])
    yield tmp_path / "aaa.py"
    import sys

    sys.modules.pop("orchestrator.models.aaa", None)
    vars(models).pop("aaa", None)


def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[int, str, str]:
    """Run a command in this process; return its exit code, stdout and stderr."""
    monkeypatch.setattr("sys.argv", ["orchestrator", *arguments])
    code = 0
    try:
        app.main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(bool(end.code))
    return code, *capsys.readouterr()


def test_every_model_is_in_the_catalog(entries: dict[str, CatalogEntry]) -> None:
    assert list(entries) == model_names()


@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        ("vae", {"encoder": 330_040, "decoder": 322_784}),
        ("pix2pix", {"generator": 54_409_603, "discriminator": 2_767_809}),
        ("gan", {"generator": 2_503_984, "discriminator": 1_231_441}),
        ("dcgan", {"generator": 3_576_704, "discriminator": 2_765_568}),
        ("began", {"generator": 1_716_611, "discriminator": 11_192_643}),
        ("autoencoder", {"autoencoder": 2_837_314, "codes": 60}),
        ("cyclegan", {"generators": 2 * 11_378_179, "discriminators": 2 * 2_764_737}),
        ("inpainting", {"generator": 71_124_611, "discriminator": 2_765_633}),
        ("pixelcnn_pp", {"network": 53_659_080}),
    ],
)
def test_numbers_of_parameters_at_the_jobs_settings_are_the_published_ones(
    entries: dict[str, CatalogEntry], model: str, parameters: dict[str, int]
) -> None:
    assert entries[model].parameters == parameters
    assert entries[model].job == f"jobs/{model}.yaml"


def test_a_model_without_a_job_is_listed_at_its_defaults(defaults: dict[str, CatalogEntry]) -> None:
    """pix2pix: the paper's batch norm; pixelcnn and pixelrnn: the networks for CIFAR-10."""
    assert {entry.job for entry in defaults.values()} == {None}
    assert defaults["pix2pix"].image_size == 256
    assert defaults["pix2pix"].parameters["generator"] == 54_413_955
    assert defaults["pix2pix"].parameters["discriminator"] == 2_768_705
    assert defaults["pixelcnn"].num_parameters == 4_290_816
    assert defaults["pixelrnn"].num_parameters == 7_788_288
    assert defaults["vae"].num_parameters == 652_824


def test_small_networks_have_their_published_sizes(
    entries: dict[str, CatalogEntry],
) -> None:
    assert entries["vae"].num_parameters == 652_824
    assert entries["pixelcnn"].num_parameters == 813_121
    assert entries["pixelrnn"].num_parameters == 64_737
    assert entries["cyclegan"].num_parameters == 28_285_832


@pytest.mark.parametrize("name", model_names())
def test_all_parameters_are_counted(name: str) -> None:
    """Also those outside of networks, such as the variance of the Gaussian VAE."""
    options = {"likelihood": "gaussian"} if name == "vae" else {}
    model = build_model(small_config(name, **options))
    counted = module._count_parameters(model)
    assert sum(counted.values()) == sum(p.numel() for p in model.parameters())
    assert ("other" in counted) == (name == "vae")


def test_likelihoods_are_exact_or_a_bound_or_none(entries: dict[str, CatalogEntry]) -> None:
    kinds = {name: entry.likelihood for name, entry in entries.items()}
    exact = {name for name, kind in kinds.items() if kind == "exact"}
    assert exact == {"pixelcnn", "gated_pixelcnn", "pixelrnn", "pixelcnn_pp"}
    assert {name for name, kind in kinds.items() if kind == "bound"} == {"vae"}


def test_inputs_and_sampling_costs(
    entries: dict[str, CatalogEntry], defaults: dict[str, CatalogEntry]
) -> None:
    assert entries["pix2pix"].takes == ("pairs",)
    assert entries["cyclegan"].takes == ("unpaired",)
    assert entries["gated_pixelcnn"].takes == ("labels",)
    assert entries["gated_pixelcnn"].classes == 10
    assert entries["gan"].takes == ()
    assert (entries["gan"].sampling_steps, entries["gan"].sampling) == (1, "one pass")
    assert entries["pixelrnn"].sampling_steps == 28 * 28
    assert defaults["pixelcnn"].sampling == "32 x 32 x 3 = 3,072 cached steps"
    assert defaults["pixelcnn_pp"].sampling == "32 x 32 = 1,024 cached steps"


def test_the_paper_is_the_first_link_of_the_docstring() -> None:
    docstring = """Xyz: a model of all.

    Doe and Roe, "All of
    It", 2020, https://arxiv.org/abs/2001.00001. Followed: equation 1.

    Besides, https://example.org/other.
    """
    paper = "https://arxiv.org/abs/2001.00001"
    assert parse_docstring(docstring) == (
        "Xyz",
        "a model of all",
        'Doe and Roe, "All of It", 2020',
        paper,
    )
    with pytest.raises(ValueError, match="has no link to a paper"):
        parse_docstring("Xyz: a model.")


@pytest.mark.parametrize("name", model_names())
@pytest.mark.parametrize("binarize", [None, "fixed"])
def test_the_catalog_lists_exactly_the_validation_metrics_that_are_logged(
    name: str, binarize: str | None
) -> None:
    torch.manual_seed(0)
    model = build_model(small_config(name))
    job = small_job()
    data = job.data.model_copy(update={"binarize": binarize})
    job = job.model_copy(update={"data": data})
    worker = Worker(ListRecorder(), MemoryCheckpoints(), torch.device("cpu"))
    measured = validate(model, iter([small_batch(model.config, 4)]), job, worker)
    listed = validation_metrics(model, binarize)
    assert {f"validation/{metric}" for metric in listed} == measured.means.keys()
    plain = {metric.removesuffix("_binarized_fixed") for metric in listed}
    assert plain <= VALIDATION_METRICS.keys(), (
        "describe it in orchestrator/config/metric_descriptions.py"
    )


@pytest.mark.parametrize("path", sorted((ROOT / "jobs").glob("*.yaml")), ids=lambda p: p.stem)
def test_a_job_named_after_a_model_trains_that_model(path: Path) -> None:
    job = load_job(path, environ={}).job
    if path.stem in model_names():
        assert job.model.name == path.stem


def test_the_command_prints_a_table_or_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("ORCHESTRATOR_DATA", raising=False)
    code, out, err = run(monkeypatch, capsys, "models", "catalog")
    assert (code, err) == (0, f"next:\n  orchestrator plan jobs/{first_job()}.yaml\n")
    head, *rows = out.splitlines()
    assert head.split()[0] == "model"
    assert [row.split()[0] for row in rows] == model_names()
    assert "57,177,412 (generator 54,409,603, discriminator 2,767,809)" in out
    code, out, err = run(monkeypatch, capsys, "models", "catalog", "--json")
    assert (code, err) == (0, "")
    listed = {model["model"]: model for model in json.loads(out)}
    assert list(listed) == model_names()
    assert listed["vae"]["num_parameters"] == 652_824
    assert listed["vae"]["likelihood"] == "bound"
    assert listed["vae"]["job"] == "jobs/vae.yaml"
    assert listed["pixelcnn"]["paper"] == "https://arxiv.org/abs/1601.06759"


def first_job() -> str:
    return next(name for name in model_names() if (ROOT / f"jobs/{name}.yaml").is_file())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("class Config(:\n", "models/aaa.py cannot be used: SyntaxError: invalid syntax"),
        ('"""A: b. http://x"""\n', "has no attribute 'Config'"),
        ("import nothing_like_it\n", "ModuleNotFoundError: No module named 'nothing_like_it'"),
        (
            "from models.gan import Config, Model\n",
            "ValueError: its docstring has no link to a paper",
        ),
        (
            '"""A: b.\n\nC, http://x.\n"""\nfrom models.gan import Config\n'
            "class Model:\n    def __init__(self, config):\n        raise KeyError('w')\n",
            "models/aaa.py cannot be built with its defaults: KeyError: 'w'",
        ),
    ],
)
def test_a_broken_model_file_is_an_error_of_one_line_that_names_it(
    broken: Path,
    text: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    broken.write_text(text)
    code, out, err = run(monkeypatch, capsys, "models", "catalog")
    assert (code, out) == (UsageError.exit_code, "")
    assert message in err
    assert err.startswith("error: models/aaa.py ")
    assert err.count("\n") == 1


def test_an_invalid_job_is_an_error_and_a_job_for_another_model_is_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "model_names", lambda: ["vae"])
    job = tmp_path / "vae.yaml"
    job.write_text(MINIMAL.format(model="vae"))
    assert build_catalog(tmp_path)[0].image_size == 32
    job.write_text(MINIMAL.format(model="pix2pix"))
    assert (build_catalog(tmp_path)[0].job, build_catalog(tmp_path)[0].image_size) == (None, 28)
    job.write_text(MINIMAL.format(model="vae") + "trian: {}\n")
    with pytest.raises(JobFileError, match=r"vae\.yaml:5:1: trian"):
        build_catalog(tmp_path)

"""The catalog of models and its pages: told from the files, true to them and up to date."""

import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from orchestrator import models
from orchestrator.cli import app
from orchestrator.config.load import load_job
from orchestrator.errors import JobFileError, UsageError
from orchestrator.models.base import build_model, model_names
from orchestrator.registry import catalog as module
from orchestrator.registry.catalog import (
    VALIDATION_METRICS,
    CatalogEntry,
    parse_docstring,
    catalog,
    validation_metrics,
)
from orchestrator.training.evaluate import validate
from orchestrator.training.interfaces import Worker
from support.fakes import ListRecorder, MemoryCheckpoints, small_job
from support.small import small_batch, small_config

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs/models"

MINIMAL = """\
name: a
model: {{name: {model}, image_size: 32}}
data: {{train: x}}
train: {{batch_size: 2, epochs: 1}}
"""


@pytest.fixture(scope="module")
def entries() -> dict[str, CatalogEntry]:
    """All models at the settings of this repository's jobs."""
    return {entry.model: entry for entry in catalog(ROOT / "jobs", environ={})}


@pytest.fixture(scope="module")
def defaults(tmp_path_factory: pytest.TempPathFactory) -> dict[str, CatalogEntry]:
    """All models at their defaults: no jobs at hand."""
    return {entry.model: entry for entry in catalog(tmp_path_factory.mktemp("none"), environ={})}


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder; models/ has one more file, aaa.py, that is to be written into it."""
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
    """Exit code, stdout and stderr of a command in this process."""
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
def test_parameters_at_the_jobs_settings_are_the_published_ones(
    entries: dict[str, CatalogEntry], model: str, parameters: dict[str, int]
) -> None:
    assert entries[model].parameters == parameters
    assert entries[model].job == f"jobs/{model}.yaml"


def test_without_jobs_the_defaults_count(defaults: dict[str, CatalogEntry]) -> None:
    """pix2pix: the paper's batch norm; pixelcnn and pixelrnn: the networks for CIFAR-10."""
    assert {entry.job for entry in defaults.values()} == {None}
    assert defaults["pix2pix"].image_size == 256
    assert defaults["pix2pix"].parameters["generator"] == 54_413_955
    assert defaults["pix2pix"].parameters["discriminator"] == 2_768_705
    assert defaults["pixelcnn"].num_parameters == 4_290_816
    assert defaults["pixelrnn"].num_parameters == 7_788_288
    assert defaults["vae"].num_parameters == 652_824


def test_small_networks_have_their_published_sizes_too(entries: dict[str, CatalogEntry]) -> None:
    assert entries["vae"].num_parameters == 652_824
    assert entries["pixelcnn"].num_parameters == 813_121
    assert entries["pixelrnn"].num_parameters == 64_737
    assert entries["cyclegan"].num_parameters == 28_285_832


@pytest.mark.parametrize("name", model_names())
def test_no_parameter_is_left_out(name: str) -> None:
    """Also those that hang on the model itself, as the Gaussian VAE's variance does."""
    options = {"likelihood": "gaussian"} if name == "vae" else {}
    model = build_model(small_config(name, **options))
    counted = module._parameters(model)
    assert sum(counted.values()) == sum(p.numel() for p in model.parameters())
    assert ("other" in counted) == (name == "vae")


def test_likelihoods_are_exact_bounds_or_none(entries: dict[str, CatalogEntry]) -> None:
    kinds = {name: entry.likelihood for name, entry in entries.items()}
    exact = {name for name, kind in kinds.items() if kind == "exact"}
    assert exact == {"pixelcnn", "gated_pixelcnn", "pixelrnn", "pixelcnn_pp"}
    assert {name for name, kind in kinds.items() if kind == "bound"} == {"vae"}


def test_what_models_take_and_what_an_image_costs(
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


def test_the_paper_is_what_the_docstring_links_first() -> None:
    docstring = """Xyz: a model of all.

    Doe and Roe, "All of
    It", 2020, https://arxiv.org/abs/2001.00001. Followed: equation 1.

    Besides, https://example.org/other.
    """
    paper = "https://arxiv.org/abs/2001.00001"
    assert parse_docstring(docstring) == ("a model of all", 'Doe and Roe, "All of It", 2020', paper)
    with pytest.raises(ValueError, match="links no paper"):
        parse_docstring("Xyz: a model.")


@pytest.mark.parametrize("name", model_names())
@pytest.mark.parametrize("binarize", [None, "fixed"])
def test_what_is_measured_on_held_out_images_is_what_the_catalog_says(
    name: str, binarize: str | None
) -> None:
    torch.manual_seed(0)
    model = build_model(small_config(name))
    job = small_job()
    data = job.data.model_copy(update={"binarize": binarize})
    job = job.model_copy(update={"data": data})
    worker = Worker(ListRecorder(), MemoryCheckpoints(), torch.device("cpu"))
    measured = validate(model, iter([small_batch(model.config, 4)]), job, worker)
    said = validation_metrics(model, binarize)
    assert {f"validation/{metric}" for metric in said} == measured.keys()
    plain = {metric.removesuffix("_binarized_fixed") for metric in said}
    assert plain <= VALIDATION_METRICS.keys(), (
        "each is explained in orchestrator/registry/catalog.py"
    )


@pytest.mark.parametrize("path", sorted((ROOT / "jobs").glob("*.yaml")), ids=lambda p: p.stem)
def test_a_job_named_after_a_model_trains_that_model(path: Path) -> None:
    job = load_job(path, environ={}).job
    if path.stem in model_names():
        assert job.model.name == path.stem


def test_the_command_prints_a_table_and_json_for_a_script(
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
    ("text", "said"),
    [
        ("class Config(:\n", "models/aaa.py cannot be used: SyntaxError: invalid syntax"),
        ('"""A: b. http://x"""\n', "has no attribute 'Config'"),
        ("import nothing_like_it\n", "ModuleNotFoundError: No module named 'nothing_like_it'"),
        ("from models.gan import Config, Model\n", "ValueError: its docstring links no paper"),
        (
            '"""A: b.\n\nC, http://x.\n"""\nfrom models.gan import Config\n'
            "class Model:\n    def __init__(self, config):\n        raise KeyError('w')\n",
            "models/aaa.py cannot be built with its defaults: KeyError: 'w'",
        ),
    ],
)
def test_a_broken_model_file_is_one_error_that_names_it(
    broken: Path,
    text: str,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    broken.write_text(text)
    code, out, err = run(monkeypatch, capsys, "models", "catalog")
    assert (code, out) == (UsageError.exit_code, "")
    assert said in err
    assert err.startswith("error: models/aaa.py ")
    assert err.count("\n") == 1


def test_a_job_that_does_not_load_is_an_error_and_one_for_another_model_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "model_names", lambda: ["vae"])
    job = tmp_path / "vae.yaml"
    job.write_text(MINIMAL.format(model="vae"))
    assert catalog(tmp_path)[0].image_size == 32
    job.write_text(MINIMAL.format(model="pix2pix"))
    assert (catalog(tmp_path)[0].job, catalog(tmp_path)[0].image_size) == (None, 28)
    job.write_text(MINIMAL.format(model="vae") + "trian: {}\n")
    with pytest.raises(JobFileError, match=r"vae\.yaml:5:1: trian"):
        catalog(tmp_path)


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    """docs/models/generate.py, which is no part of a package."""
    spec = importlib.util.spec_from_file_location("generate", PAGES / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def test_the_committed_pages_are_current(generate: ModuleType) -> None:
    made = generate.pages()
    committed = {path.name: path.read_text() for path in PAGES.glob("*.md")}
    stale = [
        name for name in made.keys() | committed.keys() if made.get(name) != committed.get(name)
    ]
    assert sorted(stale) == [], "run `python docs/models/generate.py`; delete pages of no model"


def test_a_page_says_everything_that_a_docstring_lists_as_departures(
    generate: ModuleType, entries: dict[str, CatalogEntry]
) -> None:
    def plain(text: str) -> str:
        return re.sub(r"[`\\]", "", text)

    for name, entry in entries.items():
        docstring = plain(generate.model_module(name).__doc__)
        listed = docstring[docstring.lower().index("departures") :].partition("\n\n")[0]
        bullets = re.findall(r"^- .+", listed, re.MULTILINE)
        page = plain(generate.page(entry))
        assert bullets, name
        assert [bullet for bullet in bullets if f"\n{bullet}\n" not in page] == [], name
        assert re.search(r"^## .*[Dd]epartures", page, re.MULTILINE), name


def test_a_page_explains_every_option_and_every_metric(
    generate: ModuleType, entries: dict[str, CatalogEntry]
) -> None:
    for name, entry in entries.items():
        page = generate.page(entry)
        for option in type(entry.config).model_fields.keys() - {"name"}:
            assert f"\n| `{option}` | " in page, f"{name}: {option}"
        for metric in (*entry.metrics, *(f"validation/{held}" for held in entry.validation)):
            assert f"`{metric}`" in page, f"{name}: {metric}"


def test_results_and_a_picture_get_into_the_page(
    generate: ModuleType,
    entries: dict[str, CatalogEntry],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(generate, "HERE", tmp_path)
    assert "## Results" not in generate.page(entries["vae"])
    for file, text in (("results/vae.md", "86.76 nats | a_b <c>\n"), ("pictures/vae.png", "")):
        (tmp_path / file).parent.mkdir()
        (tmp_path / file).write_text(text)
    page = generate.page(entries["vae"])
    assert "\n## Results\n\n86.76 nats | a_b <c>\n\n## " in page
    assert "](pictures/vae.png)" in page


def test_text_becomes_markdown_that_shows_it_as_it_is(generate: ModuleType) -> None:
    text = "``a_b`` times |x| < 2 * 3"
    assert generate.escaped(text) == r"`a_b` times |x| \< 2 \* 3"
    assert (
        generate.table(("a", "b"), [("|x|", "y\nz")])
        == "| a | b |\n| --- | --- |\n| \\|x\\| | y z |"
    )
    values = [None, True, 2.0, 1.000004, 1e-6, (400, 20), "relu"]
    shown = ["null", "true", "2", "1.000004", "1e-06", "[400, 20]", "relu"]
    assert [generate.yaml_value(value) for value in values] == shown

"""The model card: true, short, working code, and covered by the sums of the version."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
from torch import Tensor

from orchestrator.errors import DataError
from orchestrator.models.base import build_model, model_names
from orchestrator.registry.bundle import load_bundle, write_bundle
from orchestrator.registry.bundle_manifest import MANIFEST
from orchestrator.registry.card import LONGEST_DESCRIPTION, NOT_RECORDED, render_card
from orchestrator.registry.registry import pull
from support.registries import make_registry, register_random
from support.small import small_config

REPOSITORY = Path(__file__).parents[2]
NOTES = {
    "validation/l1": 0.123456,
    "validation/random_feature_mmd": 0.25,
    "intervals": {"validation/l1": [0.111111, 0.135801]},
    "chosen": "the best of its run by validation/l1 (min)",
    "job": "tiny",
    "job_digest": "c0ffee",
    "images_seen": 1_000,
    "checkpoint": "000000001000-abcd",
    "data": "openmoji at 16 px",
    "data_images": 4_200,
    "data_digest": "abc",
    "data_licence": "CC BY-SA 4.0",
    "validation_images": 55,
}


def weights_of(name: str) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return build_model(small_config(name)).inference_module().state_dict()


def run_snippet(folder: Path, card: str) -> Tensor:
    """Run the card's Python in a process of its own in ``folder``; return its images."""
    match = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    assert match is not None
    code = match[1] + "torch.save(images, 'images.pt')\n"
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, check=True)
    images: Tensor = torch.load(folder / "images.pt", weights_only=True)
    return images


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A registry with one version of a model that translates."""
    folder = tmp_path_factory.mktemp("card")
    uri = make_registry(folder)
    register_random(uri, "colours", small_config("pix2pix"), NOTES)
    return uri


def test_the_card_is_in_the_version_and_its_description_and_its_code_draws(
    uri: str, tmp_path: Path
) -> None:
    folder = pull("colours", tmp_path / "colours", uri)
    card = (folder / "README.md").read_text()
    version = MlflowClient(uri).get_model_version("colours", "1")
    assert version.description == card
    assert "README.md" in json.loads((folder / MANIFEST).read_text())["files"]
    for fact in (
        "# colours\n",
        "`tiny`, sha256 `c0ffee`",
        "`000000001000-abcd`, after 1,000 images, the best of its run by validation/l1 (min) |",
        "openmoji at 16 px, 4,200 images, digest `abc`",
        "| licence of the data | CC BY-SA 4.0 |",
        f"of the MLflow run `{version.run_id}`",
        "| validation/l1 | 0.1235 | 0.1111 to 0.1358 | 55 |",
        "| validation/random_feature_mmd | 0.25 |  | 55 |",
        "It translates images into colour images of 16 x 16 pixels.",
        "Each image belongs to its seed and its input, whatever is drawn beside it.",
    ):
        assert fact in card
    drawings = torch.ones(4, 3, 16, 16)
    expected = load_bundle(folder).sample(torch.zeros(4, dtype=torch.int64), drawings)
    torch.testing.assert_close(run_snippet(folder, card), expected)


def test_a_card_that_was_changed_is_refused(uri: str, tmp_path: Path) -> None:
    folder = pull("colours", tmp_path / "colours", uri)
    card = (folder / "README.md").read_text()
    (folder / "README.md").write_text(card.replace("0.1235", "0.0235"))
    with pytest.raises(DataError, match=r"README\.md is damaged"):
        load_bundle(folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["text2image", "gated_pixelcnn"])
def test_the_code_gives_what_a_model_that_samples_needs(name: str, tmp_path: Path) -> None:
    config = small_config(name)
    card = render_card("x", config, {})
    write_bundle(tmp_path, config, weights_of(name), {}, card)
    assert len(run_snippet(tmp_path, card)) == 4


@pytest.mark.parametrize("name", model_names())
def test_every_model_has_a_card_of_a_page(name: str) -> None:
    config = small_config(name)
    for notes in ({}, {**NOTES, "mlflow_run": "0" * 32}):
        card = render_card(name, config, notes)
        assert len(card) < LONGEST_DESCRIPTION / 2
        assert len(card.splitlines()) < 60
        assert "{" not in card.replace("`{", "")
        assert not re.search(r"\bNone\b(?! was measured)", card)
    assert NOT_RECORDED in render_card(name, config, {})


def test_the_card_says_how_the_inputs_were_made() -> None:
    config = small_config("pix2pix")
    assert "| input |" not in render_card("x", config, NOTES)
    for kind, said in (
        ("grey", "grey values"),
        ("edges", "edges"),
        ("holes", "#ff00ff"),
        ("lowres", "quarter"),
    ):
        card = render_card("x", config, {**NOTES, "derived_input": kind})
        (row,) = re.findall(r"^\| input \| (.*) \|$", card, re.MULTILINE)
        assert said in row

"""A static folder that draws in a browser: the page, the model and what runs it."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from orchestrator.export.onnxruntime_web import write_runtime
from orchestrator.models.base import GenerativeModel
from orchestrator.page.page_facts import Backend, page_facts
from orchestrator.page.page_files import ASSETS, FOLDER, INDEX, page_files
from orchestrator.registry.bundle import CARD, read_notes, read_source

FACTS, MODEL, RUNTIME = "model.json", "model.onnx", "onnxruntime"
SERVER, BROWSER = (f'<meta name="backend" content="{kind}">' for kind in ("server", "browser"))
"""What index.html says about who draws."""
MOST_IMAGES = 64


def model_facts(model: GenerativeModel, origin: Path) -> Mapping[str, Any]:
    """Return what the page must know, with the keys of the service's ``/v1/model``.

    The exported network draws from seeds and conditions alone, so there are no latents, rows and
    likelihoods. ``origin`` is the pulled folder.
    """
    source, card = read_source(origin), origin / CARD
    text = card.read_text() if card.is_file() else ""
    limits = {"bytes": None, "pixels": None, "images": MOST_IMAGES}
    facts = page_facts(model, source.model, source.version, text, read_notes(origin), Backend())
    return {**facts, "limits": limits}


def write_browser_folder(
    folder: Path, facts: Mapping[str, Any], write_model: Callable[[Path], None], runtime: Path
) -> None:
    """Write the files to a new folder.

    Args:
        folder: to make.
        facts: of ``model_facts``.
        write_model: writes the ONNX file, with 8-bit images, to a path.
        runtime: the package of ``fetch_runtime``.
    """
    (folder / FOLDER).mkdir(parents=True)
    index = (ASSETS / INDEX).read_text()
    assert index.count(SERVER) == 1
    (folder / INDEX).write_text(index.replace(SERVER, BROWSER))
    for path in page_files():
        shutil.copyfile(path, folder / FOLDER / path.name)
    (folder / FACTS).write_text(json.dumps(facts, indent=2) + "\n")
    write_model(folder / MODEL)
    write_runtime(runtime, folder / RUNTIME)

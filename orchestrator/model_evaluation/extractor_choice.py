"""Make the extractor that a user names."""

from pathlib import Path

import torch
from pydantic import ValidationError

from orchestrator.errors import OrchestratorError, UsageError
from orchestrator.evaluation.extractors.extractor import Extractor
from orchestrator.evaluation.extractors.inception import Inception
from orchestrator.evaluation.extractors.lite0 import Lite0
from orchestrator.evaluation.extractors.onnx_file import OnnxExtractor, OnnxFile
from orchestrator.extractor_name import FORMS, parse_extractor


def make_extractor(spec: str, device: torch.device | str = "cpu") -> Extractor:
    """Make the extractor ``spec``: lite0, inception:FILE or onnx:SETTINGS.json.

    The settings are those of ``OnnxFile`` as JSON; a relative path in them starts at their folder.

    Raises:
        UsageError: there is no such extractor or file, or the settings are wrong.
        DataError: a file is another one than its sha256 says.
        EnvironmentProblem: a package is missing.
    """
    if (name := parse_extractor(spec)) is None:
        raise UsageError(f"--extractor {spec}: no such extractor; use {FORMS}")
    if name.kind == "lite0":
        return Lite0(device)
    if name.kind == "inception":
        return Inception(Path(name.file), device)
    return OnnxExtractor(read_settings(Path(name.file)))


def check_extractor(spec: str, key: str) -> Extractor:
    """Make the extractor to see that it can be made. Raises as ``make_extractor``, with ``key``."""
    try:
        return make_extractor(spec)
    except OrchestratorError as error:
        raise type(error)(f"{key}: {error}") from error


def read_settings(path: Path) -> OnnxFile:
    """Read the settings of an .onnx file. Raises UsageError if they are wrong or not there."""
    try:
        settings = OnnxFile.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UsageError(
            f"{path}: cannot read the extractor's settings: {error.strerror}"
        ) from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise UsageError(
            f"{path}: {place}: {first['msg']}; the settings of an .onnx file are JSON with name, "
            "path, sha256 and size"
        ) from None
    return settings.model_copy(update={"path": path.parent / settings.path})

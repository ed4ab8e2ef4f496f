"""Write and read a trained model as a folder: weights, config, notes, model card and manifest.

Sampling needs only this folder and `orchestrator.models`, neither Ray nor MLflow.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import PositiveInt
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from orchestrator.errors import DataError, EnvironmentProblem, UsageError
from orchestrator.models.base import GenerativeModel, ModelConfig, build_model
from orchestrator.models.parts.meta_device import build_on_meta
from orchestrator.record_reader import (
    MAX_RECORD_BYTES,
    DamagedRecord,
    parse_format,
    parse_record,
)
from orchestrator.registry.bundle_manifest import MANIFEST, check_files, write_manifest

WEIGHTS, CONFIG, NOTES = "weights.safetensors", "config.json", "notes.json"
CARD = "README.md"
SOURCE = "source.json"
FILES = (WEIGHTS, CONFIG, NOTES)
"""Files of every model; the manifest lists them, and the card where there is one."""
FORMAT = 2
"""Says how images are drawn: in format 2 each has a seed of its own, in 1 a batch had one."""
READERS = {1: "0.2.0"}
"""Versions that draw as the older formats do."""
_REMEDY = "pull the model again"
T = TypeVar("T")


@dataclass(frozen=True)
class _KnownNotes:
    """Notes that sampling uses; there may be others."""

    preparation: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """The registered version that a pulled folder is from."""

    model: str = ""
    version: PositiveInt | None = None


def write_bundle(
    folder: Path,
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    notes: Mapping[str, Any],
    card: str | None = None,
) -> None:
    """Write weights, config, notes and the model card to ``folder``, and the manifest of these.

    ``weights`` is the state dict of the ``inference_module()`` of the model of ``config``.
    """
    expected = build_on_meta(config).inference_module().state_dict()
    shapes = {key: tensor.shape for key, tensor in weights.items()}
    assert shapes == {key: tensor.shape for key, tensor in expected.items()}
    folder.mkdir(parents=True, exist_ok=True)
    # safetensors refuses tensors that share memory, as tied weights do.
    copies = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in weights.items()}
    save_file(copies, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(config.model_dump_json(indent=2) + "\n")
    written = {**notes, "format": FORMAT}
    (folder / NOTES).write_text(json.dumps(written, indent=2, default=str) + "\n")
    names = list(FILES)
    if card is not None:
        (folder / CARD).write_text(card)
        names.append(CARD)
    write_manifest(folder, names)


def load_bundle(folder: Path) -> GenerativeModel:
    """Build the model in ``folder`` and load its weights, on the CPU.

    Raises:
        UsageError: a file is missing.
        EnvironmentProblem: another version of the orchestrator wrote it, and drew otherwise.
        DataError: a file differs from what was written, or the weights do not fit the config.
    """
    check_pulled(folder)
    config = read_config(folder)
    model = build_model(config)
    try:
        weights = load_file(_present(folder, WEIGHTS))
        model.inference_module().load_state_dict(weights)
    # load_state_dict raises RuntimeError, naming every missing, unexpected or misshapen key.
    except (SafetensorError, RuntimeError) as error:
        raise DataError(
            f"{folder / WEIGHTS} is corrupt or does not fit the model in {CONFIG}: {error}\n"
            "Pull it again"
        ) from error
    return model


def read_config(folder: Path) -> ModelConfig:
    """Read the config in ``folder``. Raises DataError if it is not one of a model in models/."""
    return _read(ModelConfig, _present(folder, CONFIG))


def read_notes(folder: Path) -> dict[str, Any]:
    """Read the notes of the registration: metrics, data digest, job.

    Raises UsageError if they are missing, and DataError if they are corrupt.
    """
    path = _present(folder, NOTES)
    _read(_KnownNotes, path)
    return _read(dict[str, Any], path)


def write_source(folder: Path, source: Source) -> None:
    """Write to ``folder`` which registered version it is from."""
    (folder / SOURCE).write_text(json.dumps(asdict(source)) + "\n")


def read_source(folder: Path) -> Source:
    """Read which version ``folder`` is from; it may be unknown. Raises DataError if corrupt."""
    path = folder / SOURCE
    return _read(Source, path) if path.is_file() else Source()


def read_format(folder: Path) -> int:
    """Return the format of the model in ``folder``. Raises as ``read_notes`` does."""
    path = _present(folder, NOTES)
    return parse_format(_content(path), str(path), _REMEDY, default=1)


def check_pulled(folder: Path) -> None:
    """Refuse a pulled model that would draw other images; see ``check_bundle``."""
    upgrade = "register its version anew with `orchestrator models upgrade`"
    check_bundle(folder, str(folder), if_damaged=_REMEDY, if_older=upgrade)


def check_bundle(folder: Path, title: str, *, if_damaged: str, if_older: str) -> None:
    """Refuse the model in ``folder`` if it would draw other images than when it was registered.

    Raises, with what to do at the end of the message:
        DataError: a file is not what was registered.
        EnvironmentProblem: it has another format, in which the same seed draws another image.
        UsageError: a file is missing.
    """
    if (folder / MANIFEST).is_file():  # before the format, which may be what is damaged
        place = f"{title}/" if title == str(folder) else f"{title}: "
        check_files(folder, FILES, place, if_damaged, optional=(CARD,))
    _check_format(folder, title, if_older)
    if not (folder / MANIFEST).is_file():
        raise DataError(f"{title} has no {MANIFEST}, which tells its damage: {if_damaged}")


def _check_format(folder: Path, title: str, remedy: str) -> None:
    if (found := read_format(folder)) == FORMAT:
        return
    reader, instead = READERS.get(found, "newer than this one"), f", or {remedy}"
    raise EnvironmentProblem(
        f"{title} has format {found}, and this version of the orchestrator draws format {FORMAT}, "
        f"in which a seed gives another image; draw it with orchestrator {reader}"
        f"{instead if found < FORMAT else ''}"
    )


def format_note(value: Any) -> str:
    """Format the value of a note for people."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _read(kind: type[T], path: Path) -> T:
    return parse_record(kind, _content(path), str(path), _REMEDY)


def _content(path: Path) -> bytes:
    if path.stat().st_size > MAX_RECORD_BYTES:
        raise DamagedRecord(str(path), "it is too large for a record", _REMEDY)
    return path.read_bytes()


def _present(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.is_file():
        raise UsageError(
            f"{folder} has no {name}: give a folder that `orchestrator models pull` wrote"
        )
    return path

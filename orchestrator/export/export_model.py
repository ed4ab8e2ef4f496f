"""Export a trained model to a file, or a folder, that is written only if it draws the same."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeAlias

from torch import Tensor

from orchestrator.errors import UsageError
from orchestrator.export.browser_folder import model_facts, write_browser_folder
from orchestrator.export.exported_facts import ExportedFrom, facts_of
from orchestrator.export.exported_sampler import Kind
from orchestrator.export.onnx_program import OnnxProgram
from orchestrator.export.parity import Parity, ParityFailed, measure_parity
from orchestrator.export.torch_program import TorchProgram
from orchestrator.export.weights_folder import write_weights
from orchestrator.file_sums import sum_file
from orchestrator.models.base import GenerativeModel
from orchestrator.registry.bundle import WEIGHTS, read_source

ProgramFormat: TypeAlias = Literal["onnx", "pt2"]
PROGRAMS: dict[ProgramFormat, type[OnnxProgram] | type[TorchProgram]] = {
    "onnx": OnnxProgram,
    "pt2": TorchProgram,
}


def check_destination(dest: Path, *, is_folder: bool) -> None:
    """Raise UsageError unless ``dest`` can be made: a new file, or a new or empty folder."""
    if not dest.absolute().parent.is_dir():
        raise UsageError(f"{dest}: there is no folder {dest.parent}; make it, or give another one")
    if is_folder and dest.is_dir() and not any(dest.iterdir()):
        return
    if dest.exists() or dest.is_symlink():
        what = "a new or an empty folder" if is_folder else "a new file"
        raise UsageError(f"{dest} exists already: give {what}")


def export_program(
    model: GenerativeModel, format_: ProgramFormat, kind: Kind, origin: Path, dest: Path,
    real: Tensor | None = None,
) -> Parity:  # fmt: skip
    """Export the sampler of a model to a new file, after it has drawn what the model draws.

    Args:
        model: loaded from ``origin``, on the CPU.
        format_: onnx, or pt2 of torch.export.
        kind: whether images are float in [-1, 1] or uint8.
        origin: the pulled folder, whose name, version and sum are noted in the file.
        dest: the file to write.
        real: conditions from a set, which the check draws from besides random ones.

    Raises:
        UsageError: the model cannot be exported, or ``dest`` exists.
        EnvironmentProblem: a package is missing.
        DataError: the model draws values that are not finite.
        ParityFailed: the exported model draws other images; nothing is written.
    """
    check_destination(dest, is_folder=False)
    program, parity = _checked_program(model, format_, kind, origin, real)
    _write(dest, program.write, is_folder=False)
    return parity


def export_browser(
    model: GenerativeModel, origin: Path, dest: Path, runtime: Path, real: Tensor | None = None
) -> Parity:
    """Export a model to a new folder that draws in a browser, after the check of the ONNX file.

    ``runtime`` is the package of ``fetch_runtime``. Arguments and errors are those of
    ``export_program``; the images are uint8.
    """
    check_destination(dest, is_folder=True)
    program, parity = _checked_program(model, "onnx", "uint8", origin, real)
    facts = model_facts(model, origin)
    _write(
        dest,
        lambda path: write_browser_folder(path, facts, program.write, runtime),
        is_folder=True,
    )
    return parity


def _checked_program(
    model: GenerativeModel, format_: ProgramFormat, kind: Kind, origin: Path, real: Tensor | None
) -> tuple[OnnxProgram | TorchProgram, Parity]:
    """Make a program that draws what the model draws; see ``export_program``."""
    source = read_source(origin)
    found = ExportedFrom(source.model, source.version, sum_file(origin / WEIGHTS).sha256)
    program = PROGRAMS[format_](model, kind, facts_of(model.config, kind, found))
    refused = f"{found.title or origin} is not exported as {format_}: "
    try:
        parity = measure_parity(model, program, kind, real)
    except ParityFailed as error:
        raise ParityFailed(f"{refused}{error}") from error
    if not parity.holds:
        raise ParityFailed(f"{refused}it draws other images than the model: {parity}")
    return program, parity


def export_weights(model: GenerativeModel, origin: Path, dest: Path) -> None:
    """Export the weights of a model to a new folder; see ``write_weights``.

    Raises UsageError if ``dest`` is there and not empty.
    """
    check_destination(dest, is_folder=True)
    _write(dest, lambda path: write_weights(model, origin, path), is_folder=True)


def _write(dest: Path, write: Callable[[Path], None], *, is_folder: bool) -> None:
    """Write beside ``dest`` and rename, so that it is whole or not there."""
    with tempfile.TemporaryDirectory(
        prefix=".orchestrator-export-", dir=dest.absolute().parent
    ) as temporary:
        made = Path(temporary) / "exported"
        write(made)
        check_destination(dest, is_folder=is_folder)  # another process may have been faster
        made.rename(dest)

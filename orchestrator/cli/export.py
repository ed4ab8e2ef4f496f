"""``orchestrator models export``: a trained model for other runtimes."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from orchestrator.cli.models import DEFAULT_URI, TrackingUri
from orchestrator.cli.output import print_next_steps, quote
from orchestrator.console import log_info
from orchestrator.errors import UsageError
from orchestrator.temporary_folder import temporary_folder

_Format = Annotated[
    Literal["onnx", "pt2", "safetensors"],
    typer.Option(
        "--format",
        help="onnx: for onnxruntime and browsers; pt2: a program of torch.export; safetensors: a "
        "folder that `orchestrator sample` draws with.",
    ),
]
_Uint8 = Annotated[
    bool,
    typer.Option("--uint8", help="Images are uint8 from 0 to 255, not float32 from -1 to 1."),
]
_RealData = Annotated[
    str | None,
    typer.Option("--data", help="Packed set with inputs for the check, besides random ones."),
]


def export(
    model: Annotated[
        str,
        typer.Argument(
            help="NAME (its newest version), NAME@ALIAS, NAME/VERSION, or a pulled folder."
        ),
    ],
    dest: Annotated[
        Path, typer.Argument(help="A new file; for safetensors a new or empty folder.")
    ],
    format_: _Format,
    uint8: _Uint8 = False,
    data: _RealData = None,
    tracking_uri: TrackingUri = DEFAULT_URI,
) -> None:
    """Write a trained model for other runtimes, after a check that it draws the same images."""
    if format_ == "safetensors" and (uint8 or data is not None):
        raise UsageError("--uint8 and --data go with --format onnx or pt2, not with safetensors")
    from orchestrator.export.export_model import (
        check_destination,
        export_program,
        export_weights,
    )
    from orchestrator.export.onnx_program import require_packages
    from orchestrator.export.real_conditions import read_conditions
    from orchestrator.export.tracing import check_traceable
    from orchestrator.registry.bundle import load_bundle, read_notes

    check_destination(dest, is_folder=format_ == "safetensors")
    if format_ == "onnx":
        require_packages()
    with temporary_folder(f"the files of {model}") as temporary:
        folder = Path(model)
        if not folder.is_dir():
            from orchestrator.registry import registry  # a pulled folder needs no MLflow

            folder = registry.pull(model, temporary / "model", tracking_uri)
        loaded = load_bundle(folder)
        if format_ == "safetensors":
            export_weights(loaded, folder, dest)
            log_info(f"{dest}: the weights of {model}; read back, they draw the same images")
            print_next_steps(f"orchestrator sample {quote(dest)} --output FOLDER")
            return
        check_traceable(loaded)
        real = None if data is None else read_conditions(loaded, data, read_notes(folder))
        log_info(f"exporting {model}, which takes up to some minutes")
        kind: Literal["float", "uint8"] = "uint8" if uint8 else "float"
        parity = export_program(loaded, format_, kind, folder, dest, real)
    inputs = "random inputs" if real is None else "random inputs and the set's"
    size = dest.stat().st_size / 1e6
    log_info(f"{dest}: {size:.1f} MB, {kind} images; on {inputs} {parity}")

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
    Literal["onnx", "pt2", "safetensors", "browser"],
    typer.Option(
        "--format",
        help="onnx: for onnxruntime; pt2: a program of torch.export; safetensors: a folder that "
        "`orchestrator sample` draws with; browser: a folder for any web server, to draw on.",
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
        Path,
        typer.Argument(help="A new file; for safetensors and browser a new or empty folder."),
    ],
    format_: _Format,
    uint8: _Uint8 = False,
    data: _RealData = None,
    tracking_uri: TrackingUri = DEFAULT_URI,
) -> None:
    """Write a trained model for other runtimes, after a check that it draws the same images."""
    if format_ == "safetensors" and (uint8 or data is not None):
        raise UsageError(
            "--uint8 and --data go with --format onnx, pt2 or browser, not with safetensors"
        )
    from orchestrator.export.export_model import check_destination
    from orchestrator.export.onnx_program import require_packages

    check_destination(dest, is_folder=format_ in ("safetensors", "browser"))
    if format_ in ("onnx", "browser"):
        require_packages(format_)
    with temporary_folder(f"the files of {model}") as temporary:
        folder = Path(model)
        if not folder.is_dir():
            from orchestrator.registry import registry  # a pulled folder needs no MLflow

            folder = registry.pull(model, temporary / "model", tracking_uri)
        if format_ == "safetensors":
            _export_weights(model, folder, dest)
        else:
            _export_program(model, folder, dest, format_, "uint8" if uint8 else "float", data)


def _export_weights(title: str, folder: Path, dest: Path) -> None:
    """Export the weights of the model in ``folder``."""
    from orchestrator.export.export_model import export_weights
    from orchestrator.registry.bundle import load_bundle

    export_weights(load_bundle(folder), folder, dest)
    log_info(f"{dest}: the weights of {title}; read back, they draw the same images")
    print_next_steps(f"orchestrator sample {quote(dest)} --output FOLDER")


def _export_program(
    title: str,
    folder: Path,
    dest: Path,
    format_: Literal["onnx", "pt2", "browser"],
    kind: Literal["float", "uint8"],
    data: str | None,
) -> None:
    """Export the sampler of the model in ``folder``, and say how well it draws."""
    from orchestrator.export.export_model import export_browser, export_program
    from orchestrator.export.onnxruntime_web import fetch_runtime
    from orchestrator.export.real_conditions import read_conditions
    from orchestrator.export.tracing import check_traceable
    from orchestrator.registry.bundle import load_bundle, read_notes

    model = load_bundle(folder)
    check_traceable(model)
    real = None if data is None else read_conditions(model, data, read_notes(folder))
    about = f"exporting {title}, which takes up to some minutes"
    if format_ == "browser":
        runtime = fetch_runtime()
        log_info(about)
        kind, parity = "uint8", export_browser(model, folder, dest, runtime, real)
    else:
        log_info(about)
        parity = export_program(model, format_, kind, folder, dest, real)
    inputs = "random inputs" if real is None else "random inputs and the set's"
    files = [dest] if dest.is_file() else [path for path in dest.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files) / 1e6
    log_info(f"{dest}: {size:.1f} MB, {kind} images; on {inputs} {parity}")
    if format_ == "browser":
        print_next_steps(f"python -m http.server --bind 127.0.0.1 --directory {quote(dest)}")

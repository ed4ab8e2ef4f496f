"""A model's sampler as an ONNX file, run by onnxruntime."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from orchestrator.distribution import install_command
from orchestrator.errors import EnvironmentProblem, UsageError
from orchestrator.export.exported_sampler import BATCH, Kind, inputs_of, output_of
from orchestrator.export.onnx_session import OnnxSession
from orchestrator.export.tracing import quiet, summary, trace
from orchestrator.models.base import GenerativeModel

LARGEST_BYTES = 2_000_000_000
"""Of the weights: a file of protobuf, which ONNX is, has at most 2 GiB."""


class OnnxProgram:
    """The content of an ONNX file, and the session that runs it on the CPU."""

    def __init__(self, model: GenerativeModel, kind: Kind, facts: Mapping[str, str]) -> None:
        """Export the model; ``facts`` become the file's metadata.

        Raises:
            EnvironmentProblem: a package is missing.
            UsageError: the model cannot be exported.
        """
        require_packages()
        self.content = _export(model, kind, facts)
        self._session = OnnxSession(self.content)

    def __call__(self, seeds: Tensor, condition: Tensor | None) -> Tensor:
        """Draw images with onnxruntime."""
        given = (seeds,) if condition is None else (seeds, condition)
        return torch.from_numpy(self._session.draw(*(x.numpy() for x in given)))

    def write(self, path: Path) -> None:
        """Write the file that was run."""
        path.write_bytes(self.content)


def require_packages(format_: str = "onnx") -> None:
    """Raise EnvironmentProblem unless the packages that export and run ONNX are installed.

    ``format_`` is that of the command line.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise EnvironmentProblem(
            f"--format {format_} needs the package {error.name}; get it with "
            f"`{install_command('export')}`"
        ) from None


def _export(model: GenerativeModel, kind: Kind, facts: Mapping[str, str]) -> bytes:
    inputs, name = inputs_of(model.config, kind), model.config.name
    weights = model.inference_module().state_dict().values()
    if (size := sum(x.numel() * x.element_size() for x in weights)) > LARGEST_BYTES:
        raise UsageError(
            f"the weights of model {name} have {size / 1e9:.1f} GB, and an ONNX file holds at most "
            f"{LARGEST_BYTES / 1e9:.0f} GB; use --format pt2 or safetensors"
        )
    program = trace(model, kind)
    with quiet():
        try:
            made = torch.onnx.export(
                program,
                input_names=[info.name for info in inputs],
                output_names=[output_of(model.config, kind).name],
                dynamic_shapes={info.name: {0: BATCH} for info in inputs},
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            raise UsageError(
                f"model {name} cannot be exported as ONNX: {summary(error)}; use --format pt2 or "
                "safetensors"
            ) from error
        assert made is not None
        proto = made.model_proto
    _remove_notes(proto.graph)
    for key, value in facts.items():
        proto.metadata_props.add(key=key, value=value)
    content: bytes = proto.SerializeToString(deterministic=True)
    return content


def _remove_notes(graph: Any) -> None:
    """Remove what the exporter notes for its own developers: code, and paths of this machine."""
    graph.ClearField("value_info")
    for part in (*graph.node, *graph.input, *graph.output, *graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")

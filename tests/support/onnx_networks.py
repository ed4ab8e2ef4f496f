"""Small networks as .onnx files, written with the package onnx."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Shape = Sequence[int | str]


def write(
    path: Path,
    nodes: Sequence[Any],
    *,
    input_shape: Shape = ("n", 3, 16, 16),
    outputs: Sequence[tuple[str, Shape]] = (("features", ("n", 3)),),
    weights: dict[str, np.ndarray] | None = None,
    input_type: int = TensorProto.FLOAT,
) -> str:
    """Write a network of ``nodes`` with the input ``images``; return the file's sha256."""
    graph = helper.make_graph(
        list(nodes),
        "network",
        [helper.make_tensor_value_info("images", input_type, input_shape)],
        [helper.make_tensor_value_info(name, input_type, shape) for name, shape in outputs],
        [numpy_helper.from_array(value, name) for name, value in (weights or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, str(path))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def channel_means(path: Path, **options: Any) -> str:
    """Write a network whose features are the means of the channels."""
    nodes = [helper.make_node("ReduceMean", ["images"], ["features"], axes=[2, 3], keepdims=0)]
    return write(path, nodes, **options)

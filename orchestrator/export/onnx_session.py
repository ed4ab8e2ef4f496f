"""Draw with an exported ONNX file, by onnxruntime on the CPU."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


class OnnxSession:
    """An exported model that onnxruntime has loaded."""

    def __init__(self, content: bytes, threads: int | None = None) -> None:
        """Load the content of an ONNX file.

        Args:
            content: what `orchestrator models export --format onnx` writes.
            threads: that compute an operator; by default as many as torch has.
        """
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or torch.get_num_threads()
        # By default threads that wait keep their cores busy, which others need.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 4  # it would print its errors, which are raised as well
        self._session: Any = onnxruntime.InferenceSession(
            content, options, providers=["CPUExecutionProvider"]
        )
        self._names = [info.name for info in self._session.get_inputs()]

    def draw(self, *inputs: NDArray[Any]) -> NDArray[Any]:
        """Return images (B, C, H, W), given seeds int64 (B,) and the condition if there is one."""
        feed: Mapping[str, NDArray[Any]] = dict(zip(self._names, inputs, strict=True))
        (images,) = self._session.run(None, feed)
        return np.asarray(images)

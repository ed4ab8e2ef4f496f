"""Draw the images of a version: with PyTorch, or with its ONNX export by onnxruntime."""

import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor

from orchestrator.errors import EnvironmentProblem, OrchestratorError, UsageError
from orchestrator.export.exported_sampler import ExportedSampler
from orchestrator.export.onnx_program import require_packages
from orchestrator.export.onnx_session import OnnxSession
from orchestrator.models.base import GenerativeModel
from orchestrator.temporary_folder import temporary_folder

EngineName: TypeAlias = Literal["torch", "onnx"]
EngineChoice: TypeAlias = Literal["auto", "torch", "onnx"]
Device: TypeAlias = Literal["cpu", "cuda"]
NICENESS = 10
"""Of the process that exports, which must not delay requests."""
SLOW_S = 0.25
"""A batch that takes longer is not made larger: those behind it would wait."""
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)
MUCH_FASTER = 1.05
"""A larger batch is worth its delay if it draws so many times the images per second."""


class Engine(Protocol):
    """Draws images from seeds and conditions."""

    name: EngineName

    def draw(self, *inputs: NDArray[Any]) -> NDArray[Any]:
        """Return uint8 images (B, C, H, W).

        ``inputs`` are seeds, int64 (B,), and the condition of `orchestrator models export
        --uint8` if the model has one.
        """


class TorchEngine:
    """Draws with PyTorch, on the CPU or a GPU."""

    name: EngineName = "torch"

    def __init__(self, model: GenerativeModel, device: Device) -> None:
        """``model`` is in evaluation mode, on the device."""
        self._sampler, self._device = ExportedSampler(model, "uint8"), device

    def draw(self, *inputs: NDArray[Any]) -> NDArray[Any]:
        """Draw with the model; see ``Engine``."""
        with torch.inference_mode():
            images: Tensor = self._sampler(*(_to(x, self._device) for x in inputs))
        return images.cpu().numpy()


class OnnxEngine:
    """Draws with onnxruntime on the CPU."""

    name: EngineName = "onnx"

    def __init__(self, content: bytes) -> None:
        """``content`` is that of a file of ``export_onnx``."""
        self._session = OnnxSession(content)

    def draw(self, *inputs: NDArray[Any]) -> NDArray[Any]:
        """Draw with onnxruntime; see ``Engine``."""
        return self._session.draw(*inputs)


def make_engine(
    model: GenerativeModel, folder: Path, choice: EngineChoice, device: Device,
    example: Callable[[int], tuple[NDArray[Any], ...]],
) -> Engine:  # fmt: skip
    """Return the engine that is asked for; ``auto`` is what draws 8 images faster.

    Args:
        model: loaded from the pulled ``folder``, in evaluation mode, on ``device``.
        choice: torch, onnx, or auto.
        device: the ONNX engine needs cpu.
        example: returns inputs of so many images.

    Raises:
        UsageError: onnx is asked for and cannot be: the model cannot be exported, or for a GPU.
        EnvironmentProblem: onnx is asked for and a package is missing.
        ParityFailed: onnx is asked for and draws other images.
    """
    with_torch = TorchEngine(model, device)
    if choice == "torch" or (choice == "auto" and (device == "cuda" or model.not_exported)):
        return with_torch
    if device == "cuda":
        raise UsageError("--engine onnx runs on the CPU; leave it out, or give --device cpu")
    try:
        with_onnx = OnnxEngine(export_onnx(folder))
    except OrchestratorError:
        if choice == "onnx":
            raise
        return with_torch
    if choice == "onnx" or _time(with_onnx, example(8)) < _time(with_torch, example(8)):
        return with_onnx
    return with_torch


def export_onnx(folder: Path) -> bytes:
    """Export the model in a pulled folder in a process of its own; return the checked ONNX file.

    Tracing holds Python's lock for seconds, in which this process could not answer. Raises as
    `orchestrator models export` does.
    """
    require_packages()
    with temporary_folder("an exported model") as temporary:
        file = temporary / "model.onnx"
        command = [sys.executable, "-m", "orchestrator", "models", "export", str(folder), str(file)]
        exporter = subprocess.Popen(
            [*command, "--format", "onnx", "--uint8"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        with suppress(psutil.NoSuchProcess):
            psutil.Process(exporter.pid).nice(NICENESS)
        _, messages = exporter.communicate()
        if exporter.returncode:
            lines = [line for line in messages.splitlines() if line.startswith("error: ")]
            reason = lines[-1].removeprefix("error: ") if lines else messages.strip()[-300:]
            is_model = exporter.returncode == UsageError.exit_code
            raise (UsageError if is_model else EnvironmentProblem)(
                f"onnxruntime cannot draw this model: {reason}"
            )
        return file.read_bytes()


def choose_batch(engine: Engine, example: Callable[[int], tuple[NDArray[Any], ...]]) -> int:
    """Draw batches of growing size, which also warms the engine up; return the best size.

    It is the smallest that gives about the most images per second, and takes no longer than
    ``SLOW_S``.
    """
    best, best_rate = 1, 0.0
    for size in BATCH_SIZES:
        seconds = _time(engine, example(size))
        if size / seconds > MUCH_FASTER * best_rate:
            best, best_rate = size, size / seconds
        if 2 * seconds > SLOW_S:
            break
    return best


def _time(engine: Engine, inputs: tuple[NDArray[Any], ...]) -> float:
    """Return the seconds that a batch takes, the best of three; the first may compile."""
    engine.draw(*inputs)
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        engine.draw(*inputs)
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def _to(values: NDArray[Any], device: Device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(device)

"""Any network as an .onnx file with its sha256 and its preprocessing, run by onnxruntime."""

import hashlib
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from orchestrator.distribution import install_command
from orchestrator.errors import DataError, EnvironmentProblem, UsageError
from orchestrator.evaluation.extractors.resizing import ResizeMode, resize
from orchestrator.evaluation.extractors.weights import read_checked

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class OnnxFile(BaseModel):
    """An .onnx file and how images are prepared for it: resized, over 255, less mean, over std."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")
    """Name of the network, such as dinov2."""
    path: Path
    """The file, without external data."""
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """Of the file; `sha256sum FILE` prints it."""
    size: int = Field(ge=8, le=1024)
    """Height and width of its input."""
    mean: tuple[Finite, Finite, Finite] = (0.485, 0.456, 0.406)
    """Mean of red, green and blue in [0, 1]."""
    std: tuple[Positive, Positive, Positive] = (0.229, 0.224, 0.225)
    """Standard deviation of red, green and blue."""
    resize: ResizeMode = "bicubic"
    """How images are resized."""
    output: str | None = None
    """Output with the features, if the network has several."""

    @property
    def metric_name(self) -> str:
        """The name with 8 digits of a sum over the file and what is done to images.

        So metrics of another file or preprocessing never have the same name.
        """
        settings = self.model_dump_json(exclude={"name", "path"})
        return f"{self.name}-{hashlib.sha256(settings.encode()).hexdigest()[:8]}"


class OnnxExtractor:
    """Features (B, D) of images: one output of the network, on the CPU."""

    frechet_name = "frechet"

    def __init__(self, file: OnnxFile) -> None:
        """Load the file and try it on one image.

        Raises:
            EnvironmentProblem: onnxruntime is not installed.
            UsageError: there is no such file, or the settings do not fit it.
            DataError: its sha256 is another one, or it is not a usable ONNX network.
        """
        try:
            import onnxruntime
        except ImportError:
            raise EnvironmentProblem(
                f"the extractor {file.name} needs the package onnxruntime; get it with "
                f"`{install_command('evaluation')}`"
            ) from None

        self.file, self.name = file, file.metric_name
        data = read_checked(file.path, file.sha256, file.name)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 4  # it would print its errors, which are raised as well
        try:
            # From bytes, so that a file cannot refer to other files, whose sums nobody checked.
            self.session: Any = onnxruntime.InferenceSession(
                data, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise DataError(f"{file.path}: not a usable ONNX file: {_line(error)}") from None
        self.input, self.images_per_pass = self._check_input()
        self.output = self._check_output()
        mean, std = torch.tensor([file.mean, file.std]).view(2, 1, 3, 1, 1).unbind()
        self.mean, self.std = mean, std
        self._try()

    def __call__(self, images: Tensor) -> Tensor:
        """Return features (B, D) float32 of colour images (B, 3, H, W) uint8."""
        scaled = resize(images.cpu(), self.file.size, self.file.resize) / 255
        pixels = ((scaled - self.mean) / self.std).contiguous().numpy()
        (features,) = self.session.run([self.output], {self.input: pixels})
        return torch.from_numpy(features).float()

    def _check_input(self) -> tuple[str, int]:
        """Return the input's name and how many images it takes at a time."""
        inputs = self.session.get_inputs()
        shape = inputs[0].shape if len(inputs) == 1 else []
        expected = (1, 3, self.file.size, self.file.size)
        fits = len(shape) == 4 and all(
            not isinstance(found, int) or found == wanted
            for found, wanted in zip(shape, expected, strict=True)
        )
        if not fits or inputs[0].type != "tensor(float)":
            found = "; ".join(f"{each.name}: {each.type} {each.shape}" for each in inputs)
            raise UsageError(
                f"{self.file.path}: its input is {found}; expected one of float32 (images, 3, "
                f"{self.file.size}, {self.file.size}) with 1 or any number of images: export it "
                "anew, or correct `size`"
            )
        return inputs[0].name, 1 if isinstance(shape[0], int) else 4

    def _check_output(self) -> str:
        names = [each.name for each in self.session.get_outputs()]
        chosen = self.file.output or names[0]
        if chosen not in names or (self.file.output is None and len(names) > 1):
            raise UsageError(
                f"{self.file.path}: set `output` to one of its outputs: {', '.join(names)}"
            )
        return chosen

    def _try(self) -> None:
        """Run the network on a grey image."""
        image = torch.full((1, 3, self.file.size, self.file.size), 128, dtype=torch.uint8)
        try:
            features = self(image)
        except Exception as error:
            raise DataError(f"{self.file.path}: the network fails: {_line(error)}") from None
        if features.ndim != 2 or len(features) != 1 or not features.isfinite().all():
            raise DataError(
                f"{self.file.path}: output {self.output} has shape {tuple(features.shape)} for one "
                "image; expected finite features (1, D): choose another `output`, or export the "
                "network with pooling"
            )


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]

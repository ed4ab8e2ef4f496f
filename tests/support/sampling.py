"""Draw with a model of a test, which has no folder, as `orchestrator sample` does."""

from pathlib import Path

from torch import Tensor

from orchestrator.data.format.index_entries import Origin
from orchestrator.data.format.preparation import Preparation
from orchestrator.models.base import GenerativeModel, ModelConfig
from orchestrator.sampling.conditions import Conditions, choose_conditions
from orchestrator.sampling.image_blocks import Drawer
from orchestrator.sampling.image_inputs import FileInputs, open_inputs, to_square
from orchestrator.sampling.image_outputs import write_files
from orchestrator.sampling.sampling_record import SamplingRecord
from orchestrator.storage.open import open_storage


def origin(seed: int) -> Origin:
    return Origin(model="", version=None, weights_sha256="0" * 64, seed=seed)


def read_image(path: Path, config: ModelConfig) -> Tensor:
    """Read an image as the model takes it: float32 (C, H, W) in [-1, 1]."""
    inputs = FileInputs(open_storage(str(path.parent)), (path.name,), Preparation())
    image = inputs.load(0, 1 if config.channels == 1 else 3).image
    return to_square(image, config.image_size, inputs.fit)


def sample_folder(
    model: GenerativeModel,
    config: ModelConfig,
    source: Path,
    out: Path,
    *,
    seed: int,
    batch_size: int = 16,
    preparation: Preparation | None = None,
) -> list[Path]:
    """Translate a folder; return the files in order of the inputs' names."""
    inputs = open_inputs(str(source), config, preparation)
    drawer = Drawer(model, config, seed, inputs=inputs)
    record = SamplingRecord(origin(seed), drawer, Conditions(len(inputs.stems)), batch_size)
    return [out / key for key in write_files(record, str(out))]


def sample_images(
    model: GenerativeModel,
    num_images: int,
    out: Path,
    *,
    seed: int,
    label: int | None = None,
    caption: str | None = None,
    batch_size: int = 64,
) -> list[Path]:
    """Sample images; return their files in order."""
    labels = () if label is None else (label,)
    conditions = choose_conditions(model.config, num_images, labels, caption=caption)
    drawer = Drawer(model, model.config, seed, caption=conditions.caption)
    record = SamplingRecord(origin(seed), drawer, conditions, batch_size)
    return [out / key for key in write_files(record, str(out))]

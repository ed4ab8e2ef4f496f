"""A job that is accepted has a model that runs at its size; every other one is refused in a line.

Sizes are the smallest, odd and even ones; options are those that choose or deepen networks, one
at a time, each with the paper's other options at small widths.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import pytest
import torch
from pydantic import ValidationError

from orchestrator.bounds import KernelSide, Layers
from orchestrator.config.load import load_text
from orchestrator.errors import JobFileError
from orchestrator.models.base import ModelConfig, build_model, model_module, model_names
from support.small import SMALL, condition_for, small_batch

SIZES = (1, 2, 3, 4, 6, 7, 8, 9, 12, 16, 17, 32, 33)
LARGEST_OF_OPTIONS = 17
"""Of the sizes, for options besides the defaults, if they run at one: larger ones take longer."""
WIDTHS = ("filters", "units", "latent", "hidden", "width", "size", "projection", "bottleneck")
"""What ends the names of options that widen networks: the small ones are taken for speed."""
JOB = """\
name: sizes
data: {train: images}
train: {images: 8, batch_size: 2}
model:
"""


def literals(annotation: Any) -> Iterator[Any]:
    """All values of the Literal in an annotation."""
    if get_origin(annotation) is Literal:
        yield from get_args(annotation)
    elif get_origin(annotation) is Union or get_args(annotation):
        for part in get_args(annotation):
            yield from literals(part)


def variants(config: type[ModelConfig]) -> Iterator[dict[str, Any]]:
    """The defaults, and each option that changes networks with each of its values."""
    deepening = [bound.__metadata__ for bound in (Layers, KernelSide)]  # type: ignore[attr-defined]
    yield {}
    for name, info in config.model_fields.items():
        values = list(literals(info.annotation))
        if info.annotation is bool:
            values = [False, True]
        elif info.annotation is int and tuple(info.metadata) in deepening:
            values = [1, 2, 3, 4]
        elif name == "channels":
            values = [1, 3]
        yield from ({name: value} for value in values)


def narrow(name: str) -> dict[str, Any]:
    """Small widths, so that all depths are those of the defaults."""
    return {key: value for key, value in SMALL.get(name, {}).items() if key.endswith(WIDTHS)}


def write(name: str, size: int, options: dict[str, Any]) -> str:
    given = {"name": name, **narrow(name), **options, "image_size": size}
    shown = {key: list(v) if isinstance(v, tuple) else v for key, v in given.items()}
    return JOB + "".join(f"  {key}: {json.dumps(value)}\n" for key, value in shown.items())


def load(text: str) -> ModelConfig | str:
    """The model of a job, or why the job is refused."""
    try:
        return load_text(text, Path("job.yaml")).job.model
    except JobFileError as error:
        return str(error)


def check(name: str, size: int, options: dict[str, Any]) -> ModelConfig | None:
    """The config, or None if it is refused; a job with the defaults is refused as its config."""
    given = {"name": name, **narrow(name), **options, "image_size": size}
    try:
        config = ModelConfig.model_validate(given)
    except ValidationError as error:
        messages = [each["msg"] for each in error.errors()]
        assert [text for text in messages if "\n" in text] == []
        config = None
    if not options:
        loaded = load(write(name, size, options))
        if config is None:
            assert isinstance(loaded, str)
            assert loaded.startswith("job.yaml:")
            assert len(loaded.splitlines()) == 1
        else:
            assert loaded == config
    return config


def run_once(config: ModelConfig, images: int) -> None:
    """Take the forward pass of each phase, and draw where that takes no second."""
    torch.manual_seed(0)
    model = build_model(config)
    model.prepare(small_batch(config, 4))
    batch = small_batch(config, images)
    shared = model.shared(batch)
    for phase in model.phases():
        assert torch.isfinite(phase.loss(batch, shared).value)
    if config.image_size <= 9 or not model.not_exported:
        drawn = model.sample(torch.arange(images), condition_for(config, batch))
        assert drawn.shape == (images, config.channels, config.image_size, config.image_size)


@pytest.mark.slow
@pytest.mark.parametrize("name", model_names())
def test_what_is_accepted_runs_and_what_is_not_is_refused_in_a_line(name: str) -> None:
    accepted: list[int] = []
    for options in variants(model_module(name).Config):
        smaller: list[int] = []
        for size in SIZES:
            if options and smaller and size > LARGEST_OF_OPTIONS:
                break
            if (config := check(name, size, options)) is None:
                continue
            smaller.append(size)
            try:
                run_once(config, config.fewest_images)
            except (RuntimeError, ValueError) as error:
                pytest.fail(f"{config} is accepted and does not run: {error}")
        accepted += smaller
    assert len(accepted) >= 2


@pytest.mark.slow
@pytest.mark.parametrize("name", model_names())
def test_a_pass_of_fewer_images_than_it_needs_is_refused(name: str) -> None:
    """The smallest size that a model takes is the one whose maps come down to one pixel."""
    choices = [each for each in variants(model_module(name).Config) if "channels" not in each]
    for options in choices:
        if (config := check(name, 16, options) or check(name, 32, options)) is None:
            continue
        text = write(name, config.image_size, options).replace("batch_size: 2", "batch_size: 1")
        if config.fewest_images == 1:
            run_once(config, 1)
            continue
        with pytest.raises(ValueError, match=r"more than 1 value|at least 2"):
            run_once(config, 1)
        assert "leaves a forward pass of 1 image to a worker" in str(load(text))


@pytest.mark.parametrize(
    ("train", "workers", "refused"),
    [
        ("{images: 8, batch_size: 4}", "2", False),
        ("{images: 8, batch_size: 4}", "4", True),
        ("{images: 8, batch_size: 5, microbatch_size: 2}", "1", True),
        ("{images: 8, batch_size: 6, microbatch_size: 4}", "1", False),
        ("{images: 8, batch_size: 4, microbatch_size: 1}", "1", True),
        ("{images: 8, batch_size: 4}", "{min: 1, max: 2}", False),
        ("{images: 8, batch_size: 5}", "{min: 1, max: 3}", True),
    ],
)
def test_the_smallest_pass_counts_for_any_number_of_workers(
    train: str, workers: str, *, refused: bool
) -> None:
    text = write("text2image", 16, {}).replace("{images: 8, batch_size: 2}", train)
    text += f"cluster: {{workers: {workers}}}\n"
    if not refused:
        load_text(text, Path("job.yaml"))
        return
    with pytest.raises(JobFileError, match="model text2image needs 2 or more; use a larger"):
        load_text(text, Path("job.yaml"))


def test_a_default_that_does_not_fit_is_named() -> None:
    with pytest.raises(JobFileError) as error:
        load_text(write("pix2pix", 16, {}), Path("job.yaml"))
    assert str(error.value).endswith(
        "model: receptive_field is 70 by default, which is too large for image_size 16; use one of "
        "[1, 16, 34]"
    )

"""Every model in models/ implements models/base.py; new files are tested automatically."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from orchestrator.config.job import TrainSection
from orchestrator.config.metric_descriptions import PHASE_METRICS
from orchestrator.models.base import (
    GenerativeModel,
    ModelConfig,
    build_model,
    model_module,
    model_names,
)
from orchestrator.training.step import TrainingStep
from support.small import condition_for, small_batch, small_config


@pytest.fixture(params=model_names())
def model(request: pytest.FixtureRequest) -> GenerativeModel:
    torch.manual_seed(0)
    model = build_model(small_config(request.param))
    model.prepare(small_batch(model.config, 8))
    return model


def condition(model: GenerativeModel, size: int) -> torch.Tensor | None:
    """Return the condition that the model needs to draw ``size`` images."""
    return condition_for(model.config, small_batch(model.config, size))


def one_step(model: GenerativeModel, phases: object = None, **settings: object) -> dict[str, float]:
    section = TrainSection.model_validate({"images": 4, "batch_size": 4, **settings})
    step = TrainingStep(model, phases or model.phases(), section)  # type: ignore[arg-type]
    metrics = step(small_batch(model.config), step=0, progress=0.0)
    return {name: value.item() for name, value in metrics.items()}


def test_a_step_updates_every_parameter(model: GenerativeModel) -> None:
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    one_step(model)
    still = [name for name, p in model.named_parameters() if torch.equal(before[name], p)]
    assert still == []


def test_a_phase_updates_only_its_own_network(model: GenerativeModel) -> None:
    for phase in model.phases():
        own = {id(p) for p in phase.module.parameters()}
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        one_step(model, [phase])
        moved = [n for n, p in model.named_parameters() if not torch.equal(before[n], p)]
        assert moved
        assert {id(model.get_parameter(name)) for name in moved} <= own


def test_every_parameter_belongs_to_one_phase(model: GenerativeModel) -> None:
    owned = [id(p) for phase in model.phases() for p in phase.module.parameters()]
    assert sorted(owned) == sorted(id(p) for p in model.parameters())


def test_microbatches_give_the_losses_and_the_weights_of_the_whole_batch(
    model: GenerativeModel,
) -> None:
    if any(isinstance(m, torch.nn.modules.batchnorm._BatchNorm) for m in model.modules()):
        pytest.skip("batch norm depends on the microbatch, as models with it say")
    options = model.config.model_dump()
    if "dropout" in options:
        options["dropout"] = 0.0
    start, runs = model.double().state_dict(), []
    for microbatch in (None, 1, 3):
        twin = build_model(ModelConfig.model_validate(options)).double()
        twin.load_state_dict(start)
        section = TrainSection(images=4, batch_size=4, microbatch_size=microbatch)
        small = small_batch(model.config)
        given = None if small.condition is None else small.condition.double()
        data = replace(small, images=small.images.double(), condition=given)
        runs.append((TrainingStep(twin, twin.phases(), section)(data, 0, 0.0), twin.state_dict()))
    for metrics, weights in runs[1:]:
        torch.testing.assert_close(metrics, runs[0][0])
        torch.testing.assert_close(weights, runs[0][1])


def test_samples_are_images(model: GenerativeModel) -> None:
    config = model.config
    images = model.sample(torch.arange(2), condition(model, 2))
    assert images.shape == (2, config.channels, config.image_size, config.image_size)
    assert images.dtype == torch.float32
    assert images.abs().max() <= 1


def test_sampling_does_not_change_the_global_random_state(model: GenerativeModel) -> None:
    before = torch.get_rng_state()
    model.sample(torch.arange(2), condition(model, 2))
    assert torch.equal(before, torch.get_rng_state())


def test_the_inference_module_is_enough_to_sample(model: GenerativeModel) -> None:
    """A model with only the weights of the inference module draws the same samples."""
    torch.manual_seed(5)
    twin = build_model(model.config)
    twin.inference_module().load_state_dict(model.inference_module().state_dict())
    given, seeds = condition(model, 2), torch.arange(2)
    torch.testing.assert_close(model.sample(seeds, given), twin.sample(seeds, given))


def test_bf16_trains_and_keeps_float32_weights(model: GenerativeModel) -> None:
    exact = one_step(model)
    torch.manual_seed(0)
    twin = build_model(model.config)
    twin.prepare(small_batch(model.config, 8))
    rough = one_step(twin, precision="bf16")
    assert exact.keys() == rough.keys()
    losses = [name for name in exact if name.endswith("/loss")]
    assert [rough[n] for n in losses] == pytest.approx([exact[n] for n in losses], rel=0.05)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("name", model_names())
def test_a_models_file_names_its_paper_and_describes_every_option(name: str) -> None:
    import importlib

    module = importlib.import_module(f"orchestrator.models.{name}")
    assert "http" in (module.__doc__ or ""), "the docstring links the paper"
    bare = [key for key, field in module.Config.model_fields.items() if not field.description]
    assert bare == []


def test_models_and_the_training_package_need_only_torch_and_pydantic() -> None:
    """Import them in a process in which the other dependencies cannot be imported."""
    code = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"ray", "mlflow", "boto3", "botocore", "ruamel", "torchvision",
                                  "PIL", "rich", "typer", "safetensors", "resvg_py"}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocker())
import pkgutil, importlib, models
for module in pkgutil.iter_modules(models.__path__):
    importlib.import_module(f"orchestrator.models.{module.name}")
import orchestrator.training.loop, orchestrator.training.step, orchestrator.config.job
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


def test_every_logged_metric_is_described_in_the_models_file(
    model: GenerativeModel,
) -> None:
    name = model.config.name
    described = getattr(model_module(name), "METRICS", None)
    assert described is not None, f"models/{name}.py needs METRICS; see docs/add-a-model.md"
    shared = {f"{phase.name}/{metric}" for phase in model.phases() for metric in PHASE_METRICS}
    assert set(one_step(model)) - shared == set(described)
    unclear = [key for key, text in described.items() if len(text) < 15 or not text.endswith(".")]
    assert unclear == [], "write a sentence: what it is, its unit, what good and bad values are"

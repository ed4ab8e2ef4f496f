"""One image, one seed: a sampler's image depends on its seed and condition alone, in every model.

New files in models/ are tested automatically.
"""

import re
from collections.abc import Iterator
from typing import cast

import pytest
import torch
from torch import Tensor

from orchestrator.models.base import GenerativeModel, build_model, model_names
from orchestrator.models.parts.abilities import DrawsRows, HasLatents
from orchestrator.models.parts.sampler import check_condition, evaluating
from support.small import condition_for, scattered_model, small_batch, small_config

VARIANTS: list[tuple[str, dict[str, object]]] = [
    *((name, {}) for name in model_names()),
    ("dcgan", {"classes": 3}),
    ("dcgan", {"architecture": "original", "latent_distribution": "normal"}),
    ("pix2pix", {"norm": "batch"}),
    ("pix2pix", {"norm": "batch", "generator": "encoder_decoder"}),
    ("pixelcnn_pp", {"classes": 3, "dropout": 0.5}),
    ("pixelrnn", {"layer": "row_lstm"}),
    ("vae", {"architecture": "convolutional", "hidden": (32,)}),
]
"""All models, and options that change how one draws."""
DETERMINISTIC = {"cyclegan", "inpainting"}
"""Models that translate without noise."""
ROUNDING = 1e-5
"""A product of matrices rounds a row by its place and the number of rows."""
SEEDS = torch.tensor([7, 3, 2**52 + 1, 0, 11])


@pytest.fixture(params=VARIANTS, ids=lambda v: "-".join([v[0], *map(str, v[1].values())]))
def model(request: pytest.FixtureRequest) -> GenerativeModel:
    name, options = request.param
    return scattered_model(name, **options)


def conditions(model: GenerativeModel, size: int, first: int = 0) -> Tensor | None:
    return condition_for(model.config, small_batch(model.config, size, first))


def picked(condition: Tensor | None, numbers: list[int]) -> Tensor | None:
    return None if condition is None else condition[numbers]


def test_an_image_is_the_same_in_a_batch_of_1_2_or_5(model: GenerativeModel) -> None:
    given = conditions(model, 5)
    whole = model.sample(SEEDS, given)
    for size in (1, 2):
        numbers = torch.arange(5).split(size)
        parts = [model.sample(SEEDS[n], picked(given, n.tolist())) for n in numbers]
        torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=ROUNDING)


def test_other_company_changes_no_bit_and_another_place_only_rounding(
    model: GenerativeModel,
) -> None:
    mine, others = conditions(model, 5), conditions(model, 5, first=50)
    whole, other_seeds = model.sample(SEEDS, mine), SEEDS + 1000
    for place in range(5):
        seeds, given = other_seeds.clone(), None if others is None else others.clone()
        seeds[place] = SEEDS[0]
        if given is not None and mine is not None:
            given[place] = mine[0]
        image = model.sample(seeds, given)[place]
        torch.testing.assert_close(image, whole[0], rtol=0, atol=ROUNDING)
        assert place or torch.equal(image, whole[0])


def test_a_permuted_batch_gives_the_permuted_images(model: GenerativeModel) -> None:
    given, order = conditions(model, 5), [3, 0, 4, 2, 1]
    whole = model.sample(SEEDS, given)
    permuted = model.sample(SEEDS[order], picked(given, order))
    torch.testing.assert_close(permuted, whole[order], rtol=0, atol=ROUNDING)


def test_an_image_belongs_to_its_seed(model: GenerativeModel) -> None:
    given = picked(conditions(model, 1), [0] * 5)
    seeds = torch.tensor([4, 5, 4, 6, 5])
    images = model.sample(seeds, given)
    assert torch.equal(images, model.sample(seeds, given))
    distances = (images[:, None] - images[None]).abs().amax((2, 3, 4))
    same = (seeds[:, None] == seeds[None]) | (model.config.name in DETERMINISTIC)
    assert torch.equal(distances < ROUNDING, same)


def test_a_condition_changes_its_own_image_alone(model: GenerativeModel) -> None:
    given, other = conditions(model, 3), conditions(model, 3, first=50)
    if given is None or other is None:
        pytest.skip("the model draws from noise alone")
    changed = given.clone()
    changed[1] = other[2] if not model.config.num_classes else (given[1] + 1) % 3
    before, after = (model.sample(SEEDS[:3], x) for x in (given, changed))
    assert torch.equal(before[[0, 2]], after[[0, 2]])
    assert not torch.equal(before[1], after[1])


def test_classes_that_are_not_given_belong_to_the_seeds(model: GenerativeModel) -> None:
    if not model.config.num_classes:
        pytest.skip("the model has no classes")
    whole = model.sample(SEEDS)
    alone = torch.cat([model.sample(seed[None]) for seed in SEEDS])
    torch.testing.assert_close(alone, whole, rtol=0, atol=ROUNDING)
    of_class = [model.sample(SEEDS, torch.full((5,), k)) for k in range(3)]
    chosen = {k for i in range(5) for k in range(3) if torch.equal(of_class[k][i], whole[i])}
    assert len(chosen) > 1


def test_training_mode_changes_no_image_and_is_restored(model: GenerativeModel) -> None:
    given = conditions(model, 2)
    before = model.eval().sample(SEEDS[:2], given)
    model.train()
    modes = [part.training for part in model.modules()]
    images = model.sample(SEEDS[:2], given)
    assert torch.equal(images, before)
    assert not images.requires_grad
    assert [part.training for part in model.modules()] == modes


def test_a_sampler_holds_the_weights_of_the_inference_module_alone(model: GenerativeModel) -> None:
    sampler, given = model.sampler(), conditions(model, 2)
    own = {id(p) for p in model.inference_module().parameters()}
    assert {id(p) for p in sampler.parameters()} == own
    assert torch.equal(sampler(SEEDS[:2], given), model.sample(SEEDS[:2], given))


@pytest.mark.slow
def test_a_sampler_exports_for_any_batch_or_the_model_says_why_not(model: GenerativeModel) -> None:
    given = conditions(model, 3)
    if reason := model.not_exported:
        pytest.skip(reason)
    batch = torch.export.Dim("batch", min=1, max=64)
    shapes = ({0: batch}, None if given is None else {0: batch})
    with torch.no_grad():
        exported = torch.export.export(model.sampler(), (SEEDS[:3], given), dynamic_shapes=shapes)
        for size in (1, 5):
            given = conditions(model, size, first=9)
            drawn = exported.module()(SEEDS[:size], given)
            expected = model.sample(SEEDS[:size], given)
            torch.testing.assert_close(drawn, expected, rtol=0, atol=1e-6)


def pix2pix(**options: object) -> GenerativeModel:
    torch.manual_seed(0)
    return build_model(small_config("pix2pix", **options))


def test_batch_norm_draws_each_image_as_training_does_alone() -> None:
    """The oracle: the generator in training mode, with one image at a time."""
    model = pix2pix(norm="batch", dropout=0.0)
    inputs = small_batch(model.config, 5).condition
    assert inputs is not None
    drawn = model.sample(SEEDS, inputs)
    with torch.no_grad():
        network = model.train().inference_module()
        alone = torch.cat([network(x[None]) for x in inputs])
        together = network(inputs)
    torch.testing.assert_close(drawn, alone, rtol=0, atol=1e-6)
    assert (drawn - together).abs().max() > 0.01


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_dropout_at_test_time_differs_by_seed_and_drops_its_share(norm: str) -> None:
    model = pix2pix(norm=norm, dropout=0.5)
    inputs = small_batch(model.config, 1).condition
    assert inputs is not None
    images = model.sample(torch.arange(5), inputs.expand(5, -1, -1, -1))
    distances = (images[:, None] - images[None]).abs().amax((2, 3, 4))
    assert (distances + torch.eye(5) > 1e-4).all()
    still = pix2pix(norm=norm, dropout=0.0)
    same = still.sample(torch.arange(5), inputs.expand(5, -1, -1, -1))
    assert (same == same[:1]).all()


def refused() -> Iterator[tuple[str, tuple[object, ...], bool, str]]:
    images, seeds = torch.zeros(2, 3, 4, 4), torch.arange(2)
    shape = (3, 4, 4)
    yield (
        "seeds",
        (seeds.float(), None, None, 0),
        False,
        "seeds are int64 (B,), not torch.float32 (2,)",
    )
    yield (
        "no images",
        (seeds, None, shape, 0),
        False,
        ("2 images need images to translate, (2, 3, 4, 4); got none"),
    )
    yield "one image", (seeds, images[:1], shape, 0), False, "got torch.float32 (1, 3, 4, 4)"
    yield "large", (seeds, torch.zeros(2, 3, 8, 8), shape, 0), False, "(2, 3, 4, 4); got"
    yield "no text", (seeds, None, None, 0), True, "2 images need captions, uint8 (2, T); got none"
    yield "one text", (seeds, torch.zeros(1, 9), None, 0), True, "(2, T); got torch.float32 (1, 9)"
    yield (
        "class",
        (seeds, torch.tensor([0, 3]), None, 3),
        False,
        ("2 images need classes from 0 to 2, int64 (2,); got [0, 3]"),
    )
    yield "negative", (seeds, torch.tensor([-1, 0]), None, 3), False, "got [-1, 0]"
    yield "float", (seeds, torch.zeros(2), None, 3), False, "int64 (2,); got torch.float32 (2,)"
    yield "unwanted", (seeds, seeds, None, 0), False, "need no condition; got torch.int64 (2,)"


@pytest.mark.parametrize(
    ("given", "captions", "message"), [pytest.param(*r[1:], id=r[0]) for r in refused()]
)
def test_a_wrong_condition_is_refused_with_what_is_needed(
    given: tuple[object, ...], captions: bool, message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        check_condition(*cast("tuple[Tensor, None, None, int]", given), captions=captions)


def test_an_image_is_decoded_from_the_latents_of_its_seed(model: GenerativeModel) -> None:
    if not isinstance(model, HasLatents):
        pytest.skip("the model has no latents")
    given = conditions(model, 5)
    with evaluating(model.inference_module()):
        latents = model.latents(SEEDS)
        decoded = model.decode(latents.flip(0), picked(given, [4, 3, 2, 1, 0])).flip(0)
    assert latents.dim() == 2
    assert len(latents.unique(dim=0)) == 5
    torch.testing.assert_close(decoded.float(), model.sample(SEEDS, given), rtol=0, atol=ROUNDING)


def test_rows_drawn_from_the_top_are_those_of_the_images(model: GenerativeModel) -> None:
    if not isinstance(model, DrawsRows):
        pytest.skip("the model does not draw rows")
    given = conditions(model, 5)
    with evaluating(model.inference_module()):
        rows = [row.clone() for row in model.draw_rows(SEEDS, given)]
    assert torch.equal(torch.stack(rows, 2), model.sample(SEEDS, given))


def test_all_models_but_those_that_translate_have_latents_or_rows() -> None:
    without = {
        name
        for name in model_names()
        if not isinstance(scattered_model(name), HasLatents | DrawsRows)
    }
    assert without == {name for name in model_names() if small_config(name).translates}

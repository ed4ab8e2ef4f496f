"""One model on one packed set: every metric against functions that are tested by themselves."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from orchestrator.data.format.shard_index import ShardSet, open_set
from orchestrator.errors import DataError, UsageError
from orchestrator.evaluation.feature_set import to_pixels_batch
from orchestrator.evaluation.image_metrics import l1_distance, psnr
from orchestrator.evaluation.kid import kid
from orchestrator.evaluation.similarity import ssim
from orchestrator.model_evaluation.evaluate_model import (
    Evaluation,
    EvaluationSettings,
    Sets,
    evaluate_model,
)
from orchestrator.model_evaluation.feature_cache import FeatureCache
from orchestrator.models.base import GenerativeModel, build_model, model_names
from orchestrator.models.parts.abilities import HasLikelihood
from orchestrator.seeding import seed_of
from orchestrator.storage.local import FolderStorage
from support.packed_sets import write_set
from support.small import small_batch, small_config


class Means:
    """Features: the means over the quarters of an image. Counts the images."""

    name, frechet_name, images_per_pass = "means", "frechet", 32

    def __init__(self) -> None:
        self.extracted = 0

    def __call__(self, images: Tensor) -> Tensor:
        self.extracted += len(images)
        return torch.nn.functional.adaptive_avg_pool2d(images.float() / 255, 2).flatten(1)


def small_model(name: str, **options: object) -> GenerativeModel:
    torch.manual_seed(0)
    return build_model(small_config(name, **options))


def packed_for(model: GenerativeModel, folder: Path, count: int, first: int = 0) -> ShardSet:
    write_set(folder, model.config, count, first)
    return open_set(str(folder))


def evaluated(
    model: GenerativeModel, packed: ShardSet, num_images: int = 60, *metrics: str
) -> Evaluation:
    settings = EvaluationSettings(num_images, metrics or None)
    return evaluate_model(model, Sets(packed), settings, Means())


def test_a_model_that_draws_from_noise_is_measured_on_the_images_of_its_seeds(
    tmp_path: Path,
) -> None:
    model = small_model("dcgan", classes=3)
    packed = packed_for(model, tmp_path / "set", 60)
    batch = small_batch(model.config, 60)
    found = evaluated(model, packed, 90)
    assert batch.labels is not None
    labels = torch.cat([batch.labels, batch.labels[:30]])
    drawn = model.sample(torch.arange(90), labels)
    x, y = (Means()(to_pixels_batch(images)) for images in (drawn, batch.images))
    assert found.generated is not None
    torch.testing.assert_close(found.generated.features, x)
    assert found.generated.labels is not None
    assert torch.equal(found.generated.labels, labels)
    names = found.report.values()
    assert names["kid.means"] == pytest.approx(kid(x, y), rel=1e-4)
    assert list(names) == [
        "kid.means", "frechet.means.n90", "precision.means.n90", "recall.means.n90",
        "density.means.n90", "coverage.means.n90", "ms_ssim_pairs.scales1",
    ]  # fmt: skip
    assert found.report["kid.means"].reference_n == 60


def test_a_translation_is_measured_against_its_target(tmp_path: Path) -> None:
    model = small_model("pix2pix")
    packed = packed_for(model, tmp_path / "set", 60)
    batch = small_batch(model.config, 60)
    found = evaluated(model, packed)
    drawn = model.sample(batch.positions, batch.condition)
    expected = {"l1": l1_distance, "psnr": psnr, "ssim": ssim}
    for name, metric in expected.items():
        value = float(metric(drawn, batch.images).mean())
        assert found.report[name].value == pytest.approx(value, rel=1e-5), name
        assert found.report[name].n == 60
    x, y = (Means()(to_pixels_batch(images)) for images in (drawn, batch.images))
    assert found.report["kid.means"].value == pytest.approx(kid(x, y), rel=1e-3)


def test_likelihoods_are_means_over_the_set_in_nats_and_bits(tmp_path: Path) -> None:
    model = small_model("pixelcnn")
    assert isinstance(model, HasLikelihood)
    packed = packed_for(model, tmp_path / "set", 40)
    found = evaluated(model, packed, 40, "likelihood").report
    nats = model.negative_log_likelihood(small_batch(model.config, 40))["nll_nats"].mean()
    assert found["nll_nats"].value == pytest.approx(float(nats), rel=1e-5)
    values = 8 * 8 * 3
    assert found["bits_per_dim"].value == pytest.approx(float(nats) / values / math.log(2))


def test_a_vae_has_its_elbo_and_a_tighter_bound(tmp_path: Path) -> None:
    model = small_model("vae", importance_samples=20)
    assert isinstance(model, HasLikelihood)
    packed = packed_for(model, tmp_path / "set", 40)
    found = evaluated(model, packed, 40, "likelihood").report
    keyed = replace(small_batch(model.config, 40), seed=seed_of("evaluation", 0))
    expected = model.negative_log_likelihood(keyed)
    for name in ("negative_elbo_nats", "importance_weighted_nats"):
        assert found[name].value == pytest.approx(float(expected[name].mean()), rel=1e-5)
    assert found["importance_weighted_nats"].value < found["negative_elbo_nats"].value
    assert "negative_elbo_bits_per_dim" in found.values()


@pytest.mark.parametrize("name", model_names())
def test_every_model_can_be_evaluated_from_the_weights_that_are_registered(
    name: str, tmp_path: Path
) -> None:
    model, other = small_model(name), build_model(small_config(name))
    other.inference_module().load_state_dict(model.inference_module().state_dict())
    packed = packed_for(model, tmp_path / "set", 54)
    metrics = ["kid"]
    metrics += ["pairs"] if model.config.translates else []
    metrics += ["likelihood"] if isinstance(model, HasLikelihood) else []
    first, second = (
        evaluated(each, packed, 54, *metrics).report.values() for each in (model, other)
    )
    assert first == second
    assert "kid.means" in first
    assert ("l1" in first) == model.config.translates
    assert any("nats" in metric for metric in first) == isinstance(model, HasLikelihood)


def test_copies_of_training_images_ring_the_alarm(tmp_path: Path) -> None:
    model = small_model("pix2pix")
    packed = packed_for(model, tmp_path / "held-out", 120)
    training = packed_for(model, tmp_path / "training", 150, first=1000)
    batch = small_batch(model.config, 120, first=1000)
    stolen = {int(position): image for position, image in enumerate(batch.images)}
    model.sample = lambda seeds, condition=None: torch.stack(  # type: ignore[method-assign]
        [stolen[int(seed)] for seed in seeds]
    )
    settings = EvaluationSettings(120, ("nearest",))
    extractor = Means()
    found = evaluate_model(model, Sets(packed, training), settings, extractor).report
    assert found["nearest.means"].details["alarm"] == 1
    assert found["nearest.means"].value == 1
    assert extractor.extracted == 120 + 120 + 150


def test_classes_are_measured_by_themselves_where_they_are_large(tmp_path: Path) -> None:
    model = small_model("dcgan", classes=2)
    packed = packed_for(model, tmp_path / "set", 120)
    found = evaluated(model, packed, 120).report.values()
    assert {"kid.means.class_0", "kid.means.class_1"} <= found.keys()
    small = evaluated(model, packed, 60).report.values()
    assert not [name for name in small if "class" in name]
    with pytest.raises(DataError, match="of class 0: 32 images are too few"):
        evaluated(model, packed, 60, "kid_per_class")


def test_a_second_evaluation_extracts_no_reference_image(tmp_path: Path) -> None:
    model = small_model("dcgan", classes=3)
    packed = packed_for(model, tmp_path / "set", 60)
    cache, extractor = FeatureCache(FolderStorage(tmp_path / "cache")), Means()
    settings = EvaluationSettings(60)
    first = evaluate_model(model, Sets(packed), settings, extractor, cache=cache)
    assert extractor.extracted == 120
    again = evaluate_model(model, Sets(packed), settings, extractor, cache=cache)
    assert extractor.extracted == 180, "the generated images alone"
    assert again.report == first.report


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "other file", "metadata"])
def test_a_damaged_cache_is_extracted_again_and_mended(
    damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = small_model("dcgan")
    packed = packed_for(model, tmp_path / "set", 60)
    cache, extractor = FeatureCache(FolderStorage(tmp_path / "cache")), Means()
    settings = EvaluationSettings(60, ("kid",))
    first = evaluate_model(model, Sets(packed), settings, extractor, cache=cache)
    (file,) = (tmp_path / "cache").glob("*.safetensors")
    intact = file.read_bytes()
    broken = bytearray(intact)
    broken[-3 if damage == "flip" else 12] ^= 1
    file.write_bytes(
        {"cut": intact[:-7], "empty": b"", "other file": b"\x00" * 50}.get(damage, bytes(broken))
    )
    extractor.extracted = 0
    again = evaluate_model(model, Sets(packed), settings, extractor, cache=cache)
    assert extractor.extracted == 120
    assert again.report == first.report
    assert file.read_bytes() == intact
    assert "is damaged; extracting them again" in capsys.readouterr().err


def test_other_images_extractors_and_readings_have_other_files(tmp_path: Path) -> None:
    model = small_model("dcgan")
    packed = packed_for(model, tmp_path / "set", 70)
    cache, extractor = FeatureCache(FolderStorage(tmp_path / "cache")), Means()
    for count in (60, 70):
        settings = EvaluationSettings(count, ("kid",))
        evaluate_model(model, Sets(packed), settings, extractor, cache=cache)
    extractor.name = "others"
    evaluate_model(model, Sets(packed), settings, extractor, cache=cache)
    other = packed_for(model, tmp_path / "other", 70, first=500)
    evaluate_model(model, Sets(other), settings, extractor, cache=cache)
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 4


@pytest.mark.parametrize(
    ("model", "data", "metrics", "kind", "message"),
    [
        ({}, {"channels": 1}, (), DataError, "has grey images, but the model draws colour ones"),
        ({}, {"image_size": 32}, (), DataError, "has images of 32 px, but the model draws 16 px"),
        ({"classes": 3}, {}, (), DataError, "has no classes, but the model draws 3"),
        ({}, {}, ("fid",), UsageError, "--metrics fid: no such metric; there are kid,"),
        ({}, {}, ("pairs",), UsageError, "--metrics pairs: the model does not translate images"),
        ({}, {}, ("likelihood",), UsageError, "--metrics likelihood: model dcgan has no"),
        ({}, {}, ("nearest",), UsageError, "--metrics nearest: it needs the training set"),
        ({}, {}, ("kid_per_class",), UsageError, "has no classes"),
    ],
)
def test_what_does_not_fit_is_refused_before_an_image_is_drawn(
    model: dict[str, object], data: dict[str, object], metrics: tuple[str, ...],
    kind: type[Exception], message: str, tmp_path: Path,
) -> None:  # fmt: skip
    write_set(tmp_path / "set", small_config("dcgan", **data), 54)
    drawing = small_model("dcgan", **model)
    drawing.sample = None  # type: ignore[method-assign,assignment]
    with pytest.raises(kind, match=message):
        evaluated(drawing, open_set(str(tmp_path / "set")), 54, *metrics)


def test_too_few_images_of_either_are_refused(tmp_path: Path) -> None:
    model = small_model("dcgan")
    packed = packed_for(model, tmp_path / "set", 55)
    with pytest.raises(UsageError, match="--num-images 40 is too few"):
        evaluated(model, packed, 40)
    small = packed_for(model, tmp_path / "small", 49)
    with pytest.raises(DataError, match="has 49 images, too few"):
        evaluated(model, small, 60)


def test_the_training_set_is_no_held_out_set(tmp_path: Path) -> None:
    model = small_model("dcgan")
    packed = packed_for(model, tmp_path / "set", 100)
    with pytest.raises(DataError, match="are the same set"):
        evaluate_model(model, Sets(packed, packed), EvaluationSettings(100), Means())

"""Networks as .onnx files: what they compute, how they are named, and which are refused."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from pydantic import ValidationError
from torch import Generator

from orchestrator.errors import DataError, UsageError
from orchestrator.evaluation.extractors.extractor import extract
from orchestrator.evaluation.extractors.onnx_file import OnnxExtractor, OnnxFile
from support.onnx_networks import channel_means, write

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.5)


def settings(path: Path, sha256: str, /, **changes: Any) -> OnnxFile:
    values = {"name": "means", "path": path, "sha256": sha256, "size": 16, "mean": MEAN, "std": STD}
    return OnnxFile.model_validate({**values, **changes})


@pytest.mark.parametrize("batch", ["n", 1], ids=["any batch", "one image at a time"])
def test_features_are_what_the_network_computes_from_prepared_images(
    tmp_path: Path, batch: int | str
) -> None:
    path = tmp_path / "means.onnx"
    sha256 = channel_means(path, input_shape=(batch, 3, 16, 16), outputs=[("features", (batch, 3))])
    extractor = OnnxExtractor(settings(path, sha256))
    noise = Generator().manual_seed(1)
    images = torch.randint(256, (7, 3, 16, 16), generator=noise, dtype=torch.uint8)
    expected = (images.double().numpy() / 255 - np.array(MEAN).reshape(3, 1, 1)) / np.array(
        STD
    ).reshape(3, 1, 1)
    found = extract(extractor, [images], "images")
    assert found.features.numpy() == pytest.approx(expected.mean((2, 3)), abs=1e-5)
    assert found.extractor == extractor.name
    assert found.frechet_name == "frechet"


def test_images_are_resized_to_the_networks_size(tmp_path: Path) -> None:
    path = tmp_path / "means.onnx"
    extractor = OnnxExtractor(settings(path, channel_means(path), mean=(0, 0, 0), std=(1, 1, 1)))
    image = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    image[:, 1, :32] = 255
    assert extractor(image)[0].tolist() == pytest.approx([0, 0.5, 0], abs=1e-3)


def test_the_name_changes_with_the_file_and_with_the_preprocessing_but_not_with_its_place(
    tmp_path: Path,
) -> None:
    given = settings(tmp_path / "a.onnx", "0" * 64)
    others = [
        settings(tmp_path / "a.onnx", "1" * 64),
        settings(tmp_path / "a.onnx", "0" * 64, size=32),
        settings(tmp_path / "a.onnx", "0" * 64, mean=(0, 0, 0)),
        settings(tmp_path / "a.onnx", "0" * 64, std=(1, 1, 1)),
        settings(tmp_path / "a.onnx", "0" * 64, resize="bilinear"),
        settings(tmp_path / "a.onnx", "0" * 64, output="pooled"),
    ]
    names = {each.metric_name for each in (given, *others)}
    assert len(names) == 7
    assert settings(tmp_path / "b.onnx", "0" * 64).metric_name == given.metric_name
    assert given.metric_name.startswith("means-")


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "Dino V2"}, {"name": "../x"}, {"sha256": "abc"}, {"size": 0}, {"size": 10**6},
        {"std": (0, 1, 1)}, {"std": (-1, 1, 1)}, {"mean": (float("nan"), 0, 0)}, {"mean": (0, 0)},
        {"resize": "nearest"}, {"pixels": 3},
    ],
    ids=str,
)  # fmt: skip
def test_settings_outside_their_bounds_are_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="1 validation error"):
        settings(tmp_path / "a.onnx", "0" * 64, **changes)


def test_another_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "means.onnx"
    sha256 = channel_means(path)
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(
        DataError, match=r"means\.onnx: this is not the file of .* means: its sha256"
    ):
        OnnxExtractor(settings(path, sha256))
    with pytest.raises(UsageError, match="cannot read the file of the extractor means: No such"):
        OnnxExtractor(settings(tmp_path / "missing.onnx", sha256))


Writer = Callable[[Path], str]


def garbage(path: Path) -> str:
    path.write_bytes(b"not a network" * 100)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def unknown_operator(path: Path) -> str:
    nodes = [helper.make_node("NoSuchOperator", ["images"], ["features"])]
    return write(path, nodes)


def fails_when_run(path: Path) -> str:
    nodes = [helper.make_node("Reshape", ["images", "shape"], ["features"])]
    shape = {"shape": np.array([7, 5], np.int64)}
    return write(path, nodes, weights=shape, outputs=[("features", (7, 5))])


def not_pooled(path: Path) -> str:
    nodes = [helper.make_node("Relu", ["images"], ["features"])]
    return write(path, nodes, outputs=[("features", ("n", 3, 16, 16))])


def not_finite(path: Path) -> str:
    nodes = [
        helper.make_node("ReduceMean", ["images"], ["mean"], axes=[2, 3], keepdims=0),
        helper.make_node("Div", ["mean", "zero"], ["features"]),
    ]
    return write(path, nodes, weights={"zero": np.zeros(3, np.float32)})


def external_data(path: Path) -> str:
    """Weights in a file beside it, whose sum nobody would check."""
    nodes = [
        helper.make_node("ReduceMean", ["images"], ["mean"], axes=[2, 3], keepdims=0),
        helper.make_node("MatMul", ["mean", "weights"], ["features"]),
    ]
    write(path, nodes, weights={"weights": np.ones((3, 3), np.float32)})
    onnx.save(
        onnx.load(str(path)), str(path), save_as_external_data=True, location="weights.bin",
        size_threshold=0,
    )  # fmt: skip
    assert (path.parent / "weights.bin").exists()
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("writer", "problem"),
    [
        (garbage, "not a usable ONNX file"),
        (unknown_operator, "not a usable ONNX file.*NoSuchOperator"),
        (external_data, "not a usable ONNX file"),
        (fails_when_run, "the network fails: .*Reshape"),
        (not_pooled, r"output features has shape \(1, 3, 16, 16\) for one image"),
        (not_finite, "expected finite features"),
    ],
)
def test_a_file_that_gives_no_features_is_refused(
    tmp_path: Path, writer: Writer, problem: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "network.onnx"
    with pytest.raises(DataError, match=problem) as caught:
        OnnxExtractor(settings(path, writer(path)))
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert capfd.readouterr().err == ""


def of_another_size(path: Path) -> str:
    return channel_means(path, input_shape=("n", 3, 32, 32))


def grey(path: Path) -> str:
    return channel_means(path, input_shape=("n", 1, 16, 16), outputs=[("features", ("n", 1))])


def eight_at_a_time(path: Path) -> str:
    return channel_means(path, input_shape=(8, 3, 16, 16), outputs=[("features", (8, 3))])


def of_half_precision(path: Path) -> str:
    return channel_means(path, input_type=TensorProto.FLOAT16)


def of_vectors(path: Path) -> str:
    nodes = [helper.make_node("Relu", ["images"], ["features"])]
    return write(path, nodes, input_shape=("n", 3))


@pytest.mark.parametrize(
    "writer", [of_another_size, grey, eight_at_a_time, of_half_precision, of_vectors]
)
def test_a_network_for_other_images_is_refused(tmp_path: Path, writer: Writer) -> None:
    path = tmp_path / "network.onnx"
    with pytest.raises(
        UsageError, match=r"its input is images: .*; expected one of float32"
    ) as caught:
        OnnxExtractor(settings(path, writer(path)))
    assert caught.value.exit_code == 2


def test_one_of_several_outputs_has_to_be_chosen(tmp_path: Path) -> None:
    path = tmp_path / "network.onnx"
    nodes = [
        helper.make_node("Relu", ["images"], ["tokens"]),
        helper.make_node("ReduceMean", ["images"], ["pooled"], axes=[2, 3], keepdims=0),
    ]
    outputs = [("tokens", ("n", 3, 16, 16)), ("pooled", ("n", 3))]
    sha256 = write(path, nodes, outputs=outputs)
    for output in (None, "missing"):
        with pytest.raises(UsageError, match="set `output` to one of its outputs: tokens, pooled"):
            OnnxExtractor(settings(path, sha256, output=output))
    extractor = OnnxExtractor(settings(path, sha256, output="pooled"))
    assert extractor(torch.zeros(2, 3, 20, 20, dtype=torch.uint8)).shape == (2, 3)

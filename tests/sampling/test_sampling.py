"""Grids of images, sampling, and translating a folder with a small pix2pix."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from orchestrator.data.format.image_files import FILE_ENDINGS
from orchestrator.data.format.images import Fit
from orchestrator.data.format.pixel_values import ValueRange
from orchestrator.data.format.preparation import Preparation, preparation_of
from orchestrator.data.loading.transforms import to_float
from orchestrator.errors import DataError, UsageError
from orchestrator.image_grid import GAP, tile, to_pixels, write_png
from orchestrator.models.base import (
    GenerativeModel,
    Input,
    ModelConfig,
    Phase,
    build_model,
)
from orchestrator.models.parts.noise import uniform
from orchestrator.registry.bundle import read_notes
from support.sampling import read_image, sample_folder, sample_images


def config(**changes: Any) -> ModelConfig:
    small = {"name": "pix2pix", "image_size": 16, "filters": 4, "receptive_field": 16}
    return ModelConfig.model_validate(small | changes)


def model(**changes: Any) -> GenerativeModel:
    torch.manual_seed(0)
    return build_model(config(**changes))


class NoiseConfig(ModelConfig):
    """Config of a model that has no file."""

    classes: int = 0
    captions: bool = False

    @property
    def num_classes(self) -> int:
        return self.classes

    @property
    def takes(self) -> frozenset[Input]:
        return frozenset({"captions"} if self.captions else ())


class FromNoise(GenerativeModel):
    """A model that only samples; its first pixel shows the condition."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.config = NoiseConfig(name="noise", image_size=16, channels=1, **options)

    def phases(self) -> tuple[Phase, ...]:
        return ()

    def draw(self, seeds: Tensor, condition: Tensor | None) -> Tensor:
        images = 2 * uniform(seeds, "image", (1, 16, 16)) - 1
        if condition is not None:
            images[:, 0, 0, 0] = condition.reshape(len(seeds), -1)[:, 0] / 127.5 - 1
        return images


def first_pixels(folder: Path) -> list[int]:
    files = sorted(folder.glob("0*.png"))
    return [int(np.asarray(Image.open(path).convert("L"))[0, 0]) for path in files]


def test_each_row_of_the_grid_is_a_class_unless_a_label_is_given(tmp_path: Path) -> None:
    sample_images(FromNoise(classes=3), 26, tmp_path / "all", seed=0, batch_size=10)
    assert first_pixels(tmp_path / "all") == [0] * 8 + [1] * 8 + [2] * 8 + [0] * 2
    sample_images(FromNoise(classes=3), 3, tmp_path / "two", seed=0, label=2)
    assert first_pixels(tmp_path / "two") == [2, 2, 2]


def test_a_caption_reaches_the_model_as_bytes(tmp_path: Path) -> None:
    sample_images(FromNoise(captions=True), 2, tmp_path, seed=0, caption="Zebra")
    assert first_pixels(tmp_path) == [ord("Z")] * 2


@pytest.mark.parametrize(
    ("options", "given", "message"),
    [
        ({}, {"label": 1}, "--label 1: model noise has no classes: leave it out"),
        ({"classes": 3}, {"label": 3}, "--label 3: model noise has classes 0 to 2"),
        ({"classes": 3}, {"label": -1}, "--label -1: model noise has classes 0 to 2"),
        ({}, {"caption": "a cat"}, "model noise takes no caption; leave --caption out"),
        ({"captions": True}, {}, "model noise samples from a caption; give --caption TEXT"),
    ],
)
def test_an_invalid_or_unsupported_label_or_caption_is_refused(
    options: dict[str, object], given: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        sample_images(FromNoise(**options), 1, tmp_path, seed=0, **given)  # type: ignore[arg-type]


@pytest.fixture
def drawings(tmp_path: Path) -> Path:
    folder = tmp_path / "drawings"
    folder.mkdir()
    for i in range(5):
        pixels = np.full((16, 16, 3), 255, dtype=np.uint8)
        pixels[i : i + 6, 2:9] = 0
        Image.fromarray(pixels).save(folder / f"{i}.png")
    (folder / "notes.txt").write_text("not an image")
    return folder


def test_a_grid_has_rows_of_images_with_white_gaps_and_grey_as_rgb() -> None:
    black, red = (
        -torch.ones(1, 4, 5),
        torch.tensor([1.0, -1.0, -1.0])[:, None, None].expand(3, 4, 5),
    )
    grid = tile([[black, red], [red, black]])
    assert grid.dtype == np.uint8
    expected = np.full((8 + 3 * GAP, 10 + 3 * GAP, 3), 255)
    upper, lower = slice(GAP, GAP + 4), slice(GAP + 4 + GAP, -GAP)
    left, right = slice(GAP, GAP + 5), slice(GAP + 5 + GAP, -GAP)
    expected[upper, left] = expected[lower, right] = 0
    expected[upper, right] = expected[lower, left] = [255, 0, 0]
    assert np.array_equal(grid, expected)


def test_pixels_survive_the_conversion_to_floats_and_back() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16)
    assert np.array_equal(to_pixels(to_float(pixels))[:, :, 0], pixels[0].numpy())


def test_floats_are_clamped_and_rounded_to_pixels() -> None:
    floats = torch.tensor([[[-1.2, 1.2, 0.0, 1 / 127.5 * 0.4 - 1, 1 / 127.5 * 0.6 - 1]]])
    assert to_pixels(floats)[0, :, 0].tolist() == [0, 255, 128, 0, 1]
    assert to_pixels(floats.bfloat16()).dtype == np.uint8


def test_a_grid_is_written_losslessly(tmp_path: Path) -> None:
    values = torch.linspace(-1.5, 1.5, 48).reshape(3, 4, 4)
    grid = tile([[values]])
    write_png(tmp_path / "new folder" / "a.png", grid)
    assert np.array_equal(np.array(Image.open(tmp_path / "new folder" / "a.png")), grid)
    assert grid.min() == 0
    assert grid.max() == 255


def test_every_image_becomes_a_png_of_the_same_name_beside_a_grid(
    drawings: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    written = sample_folder(model(), config(), drawings, out, seed=1, batch_size=2)
    assert written == [out / f"{i}.png" for i in range(5)]
    assert all(Image.open(path).size == (16, 16) for path in written)
    assert Image.open(out / "grid.png").size == (32 + 3 * GAP, 5 * 16 + 6 * GAP)
    overview = np.array(Image.open(out / "grid.png"))[GAP : GAP + 16]
    left, right = overview[:, GAP : GAP + 16], overview[:, 16 + 2 * GAP : -GAP]
    assert np.array_equal(left, np.array(Image.open(drawings / "0.png")))
    assert np.array_equal(right, np.array(Image.open(out / "0.png")))


def test_every_image_format_that_can_be_packed_can_be_translated(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    writable = [e for e in FILE_ENDINGS if e not in (".psd", ".ras", ".pfm")]
    for ending in writable:
        mode = "L" if ending in (".pgm", ".bw") else "1" if ending == ".pbm" else "RGB"
        mode = "RGBA" if ending == ".rgba" else mode
        Image.new(mode, (16, 16), "white").save(tmp_path / "in" / f"{ending[1:]}{ending.upper()}")
    out = tmp_path / "out"
    written = sample_folder(model(), config(), tmp_path / "in", out, seed=1, batch_size=4)
    assert [path.stem for path in written] == sorted(ending[1:] for ending in writable)


def test_only_the_same_seed_gives_the_same_images(drawings: Path, tmp_path: Path) -> None:
    def images(name: str, seed: int) -> bytes:
        written = sample_folder(
            model(), config(), drawings, tmp_path / name, seed=seed, batch_size=2
        )
        return b"".join(path.read_bytes() for path in written)

    assert images("a", 1) == images("b", 1)
    assert images("a", 1) != images("c", 2)


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_a_drawing_is_translated_alike_alone_and_in_a_folder(
    norm: str, drawings: Path, tmp_path: Path
) -> None:
    """With dropout, and with batch statistics; a pixel may round to the next of 256 levels."""
    network, settings = model(norm=norm), config(norm=norm)
    together = sample_folder(network, settings, drawings, tmp_path / "all", seed=5)
    (tmp_path / "one").mkdir()
    (drawings / "3.png").rename(tmp_path / "one/3.png")
    (alone,) = sample_folder(network, settings, tmp_path / "one", tmp_path / "out", seed=5)
    pixels = [np.asarray(Image.open(path)).astype(int) for path in (together[3], alone)]
    assert np.abs(pixels[0] - pixels[1]).max() <= 1


def test_sample_number_i_has_the_seed_plus_i(tmp_path: Path) -> None:
    whole = sample_images(FromNoise(), 9, tmp_path / "a", seed=3, batch_size=4)
    rest = sample_images(FromNoise(), 5, tmp_path / "b", seed=7)
    assert [p.read_bytes() for p in whole[4:]] == [p.read_bytes() for p in rest]
    assert len({p.read_bytes() for p in whole}) == 9


def test_images_are_rotated_by_exif_put_on_white_and_padded_to_a_square(tmp_path: Path) -> None:
    black = Image.new("RGB", (32, 16), "black")
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    black.save(tmp_path / "turned.jpg", exif=exif, quality=100)
    upright = read_image(tmp_path / "turned.jpg", config())
    assert upright.shape == (3, 16, 16)
    assert upright[:, :, 7:9].max() < -0.9
    assert upright[:, :, :3].min() > 0.9
    assert upright[:, :, -3:].min() > 0.9

    clear = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    clear.save(tmp_path / "clear.png")
    assert read_image(tmp_path / "clear.png", config()).min() == 1
    clear.quantize().save(tmp_path / "palette.png")
    assert read_image(tmp_path / "palette.png", config()).min() == 1
    assert read_image(tmp_path / "clear.png", config(channels=1)).shape == (1, 16, 16)


class Inverter(GenerativeModel):
    """A model that makes a negative."""

    def __init__(self) -> None:
        super().__init__()
        self.config = config()

    def phases(self) -> tuple[Phase, ...]:
        return ()

    def draw(self, seeds: Tensor, condition: Tensor | None) -> Tensor:
        assert condition is not None
        return -condition


def negative(path: Path, out: Path, preparation: Preparation | None = None) -> Image.Image:
    (written,) = sample_folder(
        Inverter(), config(), path.parent, out, seed=0, batch_size=1, preparation=preparation
    )
    return Image.open(written).convert("L")


@pytest.mark.parametrize(
    ("fit", "size", "said"),
    [
        (None, (16, 8), "padded with white, which is cut off the outputs"),
        ("pad", (16, 8), "padded with white, which is cut off the outputs"),
        ("stretch", (16, 8), "stretched"),
        ("crop", (16, 16), "only their middle is translated"),
    ],
)
def test_the_output_has_the_proportions_of_the_input_and_no_padding(
    tmp_path: Path,
    fit: Fit | None,
    size: tuple[int, int],
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "in").mkdir()
    Image.new("RGB", (64, 32), (200, 200, 200)).save(tmp_path / "in" / "wide.png")
    found = negative(tmp_path / "in" / "wide.png", tmp_path / "out", Preparation(fit))
    assert found.size == size
    # The padding would be black in a negative; bicubic scaling rings beside it.
    assert np.abs(np.asarray(found).astype(int) - 55).max() <= 5
    message = capsys.readouterr().err
    assert "1 of 1 images are not square" in message
    assert said in message


def test_square_images_are_translated_without_a_word(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    Image.new("RGB", (20, 20)).save(tmp_path / "in" / "x.png")
    assert negative(tmp_path / "in" / "x.png", tmp_path / "out").size == (16, 16)
    assert capsys.readouterr().err == ""


def test_floats_are_translated_by_the_range_of_the_training_set(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    Image.fromarray(np.full((16, 16), 20, "f4")).save(tmp_path / "in" / "depth.tif")
    trained = Preparation(None, ValueRange(0, 80))
    notes = json.loads(json.dumps(trained.note()))  # as in notes.json
    assert preparation_of(notes) == trained
    found = negative(tmp_path / "in" / "depth.tif", tmp_path / "out", preparation_of(notes))
    assert found.getextrema() == (191, 191)
    with pytest.raises(DataError, match=r"depth\.tif .*--range LOW,HIGH"):
        negative(tmp_path / "in" / "depth.tif", tmp_path / "again", preparation_of({}))


@pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff", b""])
def test_corrupt_notes_are_a_data_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "notes.json").write_bytes(content)
    with pytest.raises(DataError, match=r"notes\.json is damaged: .*; pull the model again"):
        read_notes(tmp_path)


def test_metrics_that_are_not_finite_can_be_noted(tmp_path: Path) -> None:
    noted = {"validation/l1": float("inf"), "classes": ["a"], "preparation": {"fit": "crop"}}
    (tmp_path / "notes.json").write_text(json.dumps(noted))
    assert read_notes(tmp_path) == noted


def test_a_preparation_of_a_later_version_is_a_data_error() -> None:
    with pytest.raises(DataError, match=r"prepared as \{'fit': 'zoom'\}, which this version"):
        preparation_of({"preparation": {"fit": "zoom"}})


def test_the_requested_number_of_images_is_sampled(tmp_path: Path) -> None:
    written = sample_images(FromNoise(), 11, tmp_path / "a", seed=3, batch_size=4)
    assert [path.name for path in written] == [f"{i:04d}.png" for i in range(11)]
    assert Image.open(tmp_path / "a" / "grid.png").size == (8 * 16 + 9 * GAP, 2 * 16 + 3 * GAP)
    again = sample_images(FromNoise(), 11, tmp_path / "b", seed=3, batch_size=4)
    assert [p.read_bytes() for p in again] == [p.read_bytes() for p in written]


def test_unusable_folders_and_models_are_refused(drawings: Path, tmp_path: Path) -> None:
    def sample(folder: Path, out: Path) -> None:
        sample_folder(model(), config(), folder, out, seed=0, batch_size=1)

    with pytest.raises(UsageError, match="is not a folder"):
        sample(tmp_path / "missing", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"holds no image; images end in \.png, \.jpg"):
        sample(tmp_path / "empty", tmp_path / "out")
    with pytest.raises(UsageError, match="is also the input folder"):
        sample(drawings, drawings)
    (drawings / "0.jpg").write_bytes((drawings / "0.png").read_bytes())
    with pytest.raises(UsageError, match=r"0\.png and 0\.jpg would both become 0\.png"):
        sample(drawings, tmp_path / "out")
    with pytest.raises(UsageError, match="makes images from noise"):
        sample_folder(FromNoise(), FromNoise().config, drawings, tmp_path / "out", seed=0)
    with pytest.raises(UsageError, match="give a folder of images"):
        sample_images(model(), 1, tmp_path / "out", seed=0)


@pytest.mark.parametrize("cut", [0, 20, 70])
def test_a_corrupt_image_is_named(drawings: Path, tmp_path: Path, cut: int) -> None:
    corrupt = drawings / "3.png"
    corrupt.write_bytes(corrupt.read_bytes()[:cut])
    with pytest.raises(
        DataError, match=r"3\.png cannot be decoded as an image .*; repair or remove it"
    ):
        sample_folder(model(), config(), drawings, tmp_path / "out", seed=0, batch_size=5)

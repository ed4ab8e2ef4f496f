"""Folders of images with any values, shapes and colours, packed as the command packs them."""

import io
from pathlib import Path
from typing import Any

import numpy
import pytest
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

from orchestrator.cli import app
from orchestrator.data.format.images import Fit
from orchestrator.data.format.pixel_values import ValueRange
from orchestrator.data.format.preparation import Preparation
from orchestrator.data.format.shard_index import ShardSet, open_set
from orchestrator.data.prepare.field_selection import FieldSelection
from orchestrator.data.prepare.folder_scan import scan_folder
from orchestrator.data.prepare.folders import FolderLayout
from orchestrator.data.prepare.index_tars import IndexOptions, index_set
from orchestrator.data.prepare.pack import pack_folder, pack_scanned
from orchestrator.data.prepare.value_range import AskedRange
from orchestrator.errors import DataError, UsageError
from support.encoded_images import encode
from support.tars import write_tar

RAMP: NDArray[numpy.float64] = numpy.linspace(0, 1, 8 * 8).reshape(8, 8)


def save(values: NDArray[Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def decoded(packed: ShardSet) -> list[dict[str, NDArray[Any]]]:
    places = [(s, i) for s, size in enumerate(packed.shard_sizes) for i in range(size)]
    return [packed.decode(packed.read(*place), "here").images for place in places]


def pack(
    folder: Path, size: int | None = None, fit: Fit | None = None, value_range: AskedRange = None
) -> tuple[ShardSet, list[str]]:
    dest = str(folder.parent / "out")
    layout = FolderLayout(validation_share=0)
    scan = scan_folder(folder, layout, size=size, fit=fit, value_range=value_range, channels=1)
    notes = [finding.line() for finding in scan.findings]
    return open_set(pack_scanned(scan, dest).train_uri), notes


def test_float_images_share_one_range_so_that_a_dim_one_stays_dim(tmp_path: Path) -> None:
    save(RAMP.astype("f4"), tmp_path / "in" / "0.tif")
    save((RAMP / 4).astype("f4"), tmp_path / "in" / "1.tif")
    packed, notes = pack(tmp_path / "in")
    bright, dim = decoded(packed)
    assert (bright["image"].max(), dim["image"].max()) == (255, 64)
    assert packed.index.preparation == Preparation(None, ValueRange(0, 1))
    assert any("0,1 is taken for black and white" in note for note in notes)


def test_a_file_with_nan_is_named_and_nothing_is_packed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    values = RAMP.astype("f4")
    save(values, tmp_path / "in" / "good.tif")
    values[0, 3] = numpy.nan
    save(values, tmp_path / "in" / "hole.tif")
    found = CliRunner().invoke(
        app.app, ["data", "pack", str(tmp_path / "in"), str(tmp_path / "out")]
    )
    assert isinstance(found.exception, DataError)  # exit code 4
    assert "hole.tif" in str(found.exception)
    assert "NaN" in str(found.exception)
    assert not (tmp_path / "out" / "train").exists()


def test_the_command_refuses_unknown_values_and_packs_with_a_range(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save((RAMP * 80).astype("f4"), tmp_path / "in" / "depth.tif")
    command = ["data", "pack", str(tmp_path / "in"), str(tmp_path / "out"), "--grey"]
    command += ["--validation-share", "0"]
    refused = CliRunner().invoke(app.app, command)
    assert isinstance(refused.exception, DataError)  # exit code 4
    for part in ("depth.tif", "0 to 80", "--range"):
        assert part in str(refused.exception)
    wrong = CliRunner().invoke(app.app, [*command, "--range", "10"])
    assert isinstance(wrong.exception, UsageError)
    assert CliRunner().invoke(app.app, [*command, "--range", "0,160"]).exit_code == 0
    (sample,) = decoded(open_set(str(tmp_path / "out" / "train")))
    assert sample["image"].max() == round(255 / 2)


def test_8_bit_photographs_keep_their_range_beside_depths_in_metres(tmp_path: Path) -> None:
    photograph = (RAMP * 200).astype("u1")
    save(photograph, tmp_path / "in" / "A" / "0.png")
    save((RAMP * 80).astype("f4"), tmp_path / "in" / "B" / "0.tif")
    with pytest.raises(DataError, match=r"several kinds of values .*--range"):
        pack(tmp_path / "in")
    packed, _ = pack(tmp_path / "in", value_range="auto")
    (sample,) = decoded(packed)
    numpy.testing.assert_array_equal(sample["a"][..., 0], photograph)
    numpy.testing.assert_array_equal(sample["b"][..., 0], (RAMP * 255).round())


def test_dim_masks_of_8_bits_are_told_and_spread_once(tmp_path: Path) -> None:
    save((RAMP * 40).astype("u1"), tmp_path / "in" / "mask.png")
    packed, notes = pack(tmp_path / "in")
    assert decoded(packed)[0]["image"].max() == 40
    assert any("--range 0,40" in note for note in notes)
    spread = pack_folder(
        tmp_path / "in", str(tmp_path / "spread"), value_range=ValueRange(0, 40), validation_share=0
    )
    # The range is recorded for sampling, and not applied again when the set is read.
    image = decoded(open_set(spread.train_uri))[0]["image"]
    assert sorted(set(image.ravel().tolist())) == [round(n * 255 / 40) for n in range(41)]


@pytest.mark.parametrize(("fit", "kept"), [(None, "crop"), ("pad", "pad"), ("stretch", "stretch")])
def test_wide_photographs_are_cropped_by_default_and_told(
    tmp_path: Path, fit: Fit | None, kept: Fit
) -> None:
    left, middle = numpy.full((40, 10), 0), numpy.full((40, 40), 100)
    save(numpy.hstack([left, middle, left]).astype("u1"), tmp_path / "in" / "wide.png")
    save(numpy.full((40, 40), 200, "u1"), tmp_path / "in" / "x.png")
    packed, notes = pack(tmp_path / "in", size=20, fit=fit)
    image = decoded(packed)[0]["image"][..., 0]
    corner, side, said = {
        "crop": (100, 100, "1 image is cropped to the square in the middle"),
        "pad": (255, 0, "1 image is padded with white to a square"),
        "stretch": (0, 0, "1 image is stretched to a square"),
    }[kept]
    assert (image[0, 0], image[10, 0]) == (corner, side)
    assert (image[10, 10], image.shape) == (100, (20, 20))
    assert packed.index.preparation.fit == kept
    assert f"{said} (--fit): wide.png" in notes, notes


def test_both_images_of_a_pair_are_cropped_alike(tmp_path: Path) -> None:
    values = numpy.random.default_rng(0).integers(0, 256, (8, 13), "u1")
    save(values, tmp_path / "in" / "A" / "0.png")
    save(values, tmp_path / "in" / "B" / "0.png")
    packed, _ = pack(tmp_path / "in", size=8)
    (sample,) = decoded(packed)
    numpy.testing.assert_array_equal(sample["a"], sample["b"])
    numpy.testing.assert_array_equal(sample["a"][..., 0], values[:, 2:10])


def test_without_a_size_images_must_be_square_unless_fit_makes_them(tmp_path: Path) -> None:
    save((RAMP * 255).astype("u1")[:, :5], tmp_path / "in" / "0.png")
    with pytest.raises(DataError, match=r"5x8.*--size"):
        pack(tmp_path / "in")
    packed, _ = pack(tmp_path / "in", fit="crop")
    assert packed.image_size == 5


def float_tar(folder: Path, scale: float) -> str:
    folder.mkdir()
    files = {f"{n}.tif": encode(Image.fromarray((RAMP * scale).astype("f4")), "TIFF") for n in "01"}
    write_tar(folder / "x.tar", files)
    return str(folder)


def test_floats_in_a_tar_get_a_range_in_the_index_or_are_refused(tmp_path: Path) -> None:
    uri = float_tar(tmp_path / "unit", 1)
    summary = index_set(uri)
    assert any("0,1 is taken" in note for note in summary.notes)
    packed = open_set(uri)
    assert packed.channels == 1
    numpy.testing.assert_array_equal(decoded(packed)[0]["image"][..., 0], (RAMP * 255).round())
    with pytest.raises(DataError, match=r"0 to 80.*--range"):
        index_set(float_tar(tmp_path / "metres", 80))
    asked = IndexOptions(FieldSelection(value_range=ValueRange(0, 80)))
    assert index_set(str(tmp_path / "metres"), asked).index.preparation.value_range is not None
    image = decoded(open_set(str(tmp_path / "metres")))[0]["image"][..., 0]
    numpy.testing.assert_array_equal(image, (RAMP * 255).round())


def test_tars_of_16_bits_need_no_range_and_those_of_8_bits_take_none(tmp_path: Path) -> None:
    deep = encode(Image.fromarray((RAMP * 65535).astype("u2")), "PNG")
    (tmp_path / "deep").mkdir()
    write_tar(tmp_path / "deep" / "x.tar", {"0.png": deep})
    assert index_set(str(tmp_path / "deep")).index.preparation == Preparation()
    image = decoded(open_set(str(tmp_path / "deep")))[0]["image"][..., 0]
    numpy.testing.assert_array_equal(image, (RAMP * 255).round())
    (tmp_path / "flat").mkdir()
    buffer = io.BytesIO()
    Image.fromarray((RAMP * 40).astype("u1")).save(buffer, "PNG")
    write_tar(tmp_path / "flat" / "x.tar", {"0.png": buffer.getvalue()})
    with pytest.raises(UsageError, match=r"--range: the images at .* have 8 bits"):
        index_set(
            str(tmp_path / "flat"), IndexOptions(FieldSelection(value_range=ValueRange(0, 40)))
        )

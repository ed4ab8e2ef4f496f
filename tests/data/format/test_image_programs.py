"""No image starts a program: PostScript is refused, whatever its name, and not drawn."""

import io
import os
from pathlib import Path

import pytest
from PIL import EpsImagePlugin, Image

from orchestrator.data.format.image_files import FILE_FORMATS, open_image
from orchestrator.data.prepare.pack import pack_folder
from orchestrator.errors import DataError
from orchestrator.models.base import ModelConfig, build_model
from support.sampling import sample_folder

POSTSCRIPT = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 8 8
%%EndComments
0 0 8 8 rectfill
showpage
"""


@pytest.fixture
def ghostscript(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in on the PATH; the file exists once it was started."""
    started, program = tmp_path / "started", tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\necho \"$@\" >> '{started}'\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # looked up again
    return started


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("x.png", "x.jpg", "x.tif"):
        (folder / name).with_stem(name.replace(".", "-")).write_bytes(POSTSCRIPT)
    return folder


def test_pillow_alone_would_start_the_stand_in(ghostscript: Path, pictures: Path) -> None:
    with Image.open(pictures / "x-png.png") as image, pytest.raises(Exception):  # noqa: B017, PT011
        image.load()
    assert ghostscript.exists()


def test_packing_starts_no_ghostscript(ghostscript: Path, pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="it is PostScript"):
        pack_folder(pictures, str(tmp_path / "set"), size=16)
    assert not ghostscript.exists()


def test_sampling_from_a_folder_starts_no_ghostscript(
    ghostscript: Path, pictures: Path, tmp_path: Path
) -> None:
    small = {"name": "pix2pix", "image_size": 16, "filters": 4, "receptive_field": 16}
    config = ModelConfig.model_validate(small)
    with pytest.raises(DataError, match=r"x-jpg\.jpg cannot be decoded as an image"):
        sample_folder(build_model(config), config, pictures, tmp_path / "out", seed=0, batch_size=1)
    assert not ghostscript.exists()


def test_no_format_that_is_read_is_one_of_those_that_start_programs() -> None:
    assert not {"EPS", "WMF", "FPX", "MIC", "BUFR", "GRIB", "HDF5"} & set(FILE_FORMATS)
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "EPS")
    with pytest.raises(OSError, match="cannot identify image file"):
        open_image(io.BytesIO(buffer.getvalue()))

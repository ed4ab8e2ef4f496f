"""Exporting packed images as plain files."""

from pathlib import Path

import pytest
from PIL import Image, ImageChops

from orchestrator.data.format.shard_index import open_set
from orchestrator.data.prepare.export import export_images
from orchestrator.data.prepare.pack import pack_folder
from orchestrator.errors import UsageError
from support.drawings import draw_pairs


def test_exported_images_equal_the_packed_ones(tmp_path: Path) -> None:
    draw_pairs(tmp_path / "pairs", count=6, size=32)
    pack_folder(tmp_path / "pairs", str(tmp_path / "packed"), size=32, validation_share=0)
    packed = open_set(str(tmp_path / "packed/train"))
    assert export_images(packed, tmp_path / "out", "b") == 6
    originals = [Image.open(path) for path in (tmp_path / "pairs/B").iterdir()]
    for path in sorted((tmp_path / "out").iterdir()):
        image = Image.open(path)
        assert any(ImageChops.difference(image, other).getbbox() is None for other in originals)
    assert export_images(packed, tmp_path / "two", "a", limit=2) == 2
    assert [p.name for p in sorted((tmp_path / "two").iterdir())] == ["000000.png", "000001.png"]
    with pytest.raises(UsageError, match=r"has no field 'image'; its samples have: a, b"):
        export_images(packed, tmp_path / "no", "image")

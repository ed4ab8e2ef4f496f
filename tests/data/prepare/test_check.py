"""Warnings and contact sheet of `data check`; corrupt shards are in test_shard_index.py."""

import io
import json
from pathlib import Path

import numpy
import pytest
from PIL import Image

from orchestrator.cli import app
from orchestrator.data.format.shard_index import open_set
from orchestrator.data.format.writer import ShardWriter
from orchestrator.data.prepare.check import check_set, check_sets, find_sets
from orchestrator.data.prepare.contact_sheet import write_contact_sheet
from orchestrator.data.prepare.index_tars import index_set
from orchestrator.errors import DataError, UsageError
from support.tars import labelled_samples, noise_image, write_noise_set, write_tar


def write_pairs(uri: Path, pairs: list[tuple[int, int]]) -> str:
    writer = ShardWriter(str(uri), ("a", "b"), image_size=8, channels=3)
    for n, (a, b) in enumerate(pairs):
        writer.add(f"k{n}", {"a": noise_image(a), "b": noise_image(b)})
    writer.finish()
    return str(uri)


def test_duplicate_samples_are_a_warning_and_not_a_problem(tmp_path: Path) -> None:
    uri = write_noise_set(tmp_path / "x", [0, 1, 2, 3, 1, 5, 0, 1])
    assert open_set(uri).shard_sizes == (2, 2, 2, 2)
    report = check_set(uri)
    assert report.ok
    assert report.warnings == [
        "duplicate samples: 3 ("
        "000002.tar, sample 0 equals 000000.tar, sample 1; "
        "000003.tar, sample 0 equals 000000.tar, sample 0; "
        "000003.tar, sample 1 equals 000000.tar, sample 1)"
    ]
    assert check_set(write_noise_set(tmp_path / "y", [0, 1, 2, 3])).warnings == []


def test_samples_that_are_in_both_sets_are_a_warning(tmp_path: Path) -> None:
    write_noise_set(tmp_path / "train", list(range(20)))
    write_noise_set(tmp_path / "validation", [100, 7, 101, *range(10, 14)], 1 << 20)
    uris = find_sets(str(tmp_path))
    assert uris == [str(tmp_path / "train"), str(tmp_path / "validation")]
    train, validation = check_sets(uris)
    assert train.warnings == []
    assert validation.warnings == [
        f"samples that are in {tmp_path}/train, too: 5 (000000.tar, sample 1 equals "
        "000003.tar, sample 1 there; 000000.tar, sample 3 equals 000005.tar, sample 0 there; "
        "000000.tar, sample 4 equals 000005.tar, sample 1 there; ...)"
    ]
    assert train.ok
    assert validation.ok


def test_a_duplicate_in_another_image_format_is_found(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(noise_image(0))).save(buffer, "BMP")
    write_tar(
        tmp_path / "x.tar",
        {"0.png": noise_image(0), "1.png": buffer.getvalue(), "2.png": noise_image(2)},
    )
    index_set(str(tmp_path))
    (warning,) = check_set(str(tmp_path)).warnings
    assert warning.startswith("duplicate samples: 1 (x.tar, sample 1 equals")


def test_a_pair_of_identical_images_is_a_warning(tmp_path: Path) -> None:
    report = check_set(write_pairs(tmp_path, [(0, 1), (2, 2), (3, 0)]))
    assert report.ok
    assert report.warnings == ["pairs of two identical images: 1 (000000.tar, sample 1)"]


def test_a_pair_of_images_of_different_sizes_is_a_problem(tmp_path: Path) -> None:
    writer = ShardWriter(str(tmp_path), ("a", "b"), image_size=8, channels=3)
    writer.add("k", {"a": noise_image(0), "b": noise_image(1, (9, 9))})
    writer.finish()
    assert check_set(str(tmp_path)).problems == [
        "000000.tar, sample 0, b is 9x9; the index lists 8x8"
    ]


def test_grey_images_in_a_colour_set_and_the_reverse_are_a_warning(tmp_path: Path) -> None:
    write_tar(
        tmp_path / "colour" / "x.tar", {"0.png": noise_image(0), "1.png": noise_image(1, mode="L")}
    )
    index_set(str(tmp_path / "colour"))
    (warning,) = check_set(str(tmp_path / "colour")).warnings
    assert warning == "grey images in a colour set: 1 (x.tar, sample 1, image)"
    writer = ShardWriter(str(tmp_path / "grey"), ("image",), image_size=8, channels=1)
    writer.add("k", {"image": noise_image(0)})
    writer.finish()
    (warning,) = check_set(str(tmp_path / "grey")).warnings
    assert warning == "colour images in a grey set: 1 (000000.tar, sample 0, image)"


def test_progress_counts_the_samples_of_all_sets_and_of_corrupt_shards(tmp_path: Path) -> None:
    write_noise_set(tmp_path / "train", list(range(20)))
    write_noise_set(tmp_path / "validation", [100, 101])
    (tmp_path / "train/000000.tar").unlink()
    (tmp_path / "train/000001.tar").write_bytes(b"cut")
    (tmp_path / "train/000002.tar.idx").unlink()
    seen: list[tuple[int, int]] = []
    train, _ = check_sets(find_sets(str(tmp_path)), lambda *at: seen.append(at))
    assert seen[-1] == (22, 22)
    assert len(train.problems) == 3


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["orchestrator", "data", "check", *arguments])
    try:
        app.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_the_command_checks_both_sets_and_exits_with_0_after_warnings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_noise_set(tmp_path / "train", [0, 1, 1])
    write_noise_set(tmp_path / "validation", [0])
    assert run(monkeypatch, ".") == 0
    printed = capsys.readouterr().err
    assert "warning: ./train: duplicate samples: 1 (" in printed
    assert "warning: ./validation: samples that are in ./train, too: 1 (" in printed
    assert "./train: 3 samples in 2 shards are valid" in printed
    assert (tmp_path / "contact-sheet.png").exists()
    assert run(monkeypatch, ".", "--json", "--sheet", "other/sheet.png") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"]
    assert [each["num_samples"] for each in found["sets"]] == [3, 1]
    assert (tmp_path / "other/sheet.png").exists()
    (tmp_path / "validation/000000.tar").unlink()
    assert run(monkeypatch, ".", "--no-sheet") == 4
    assert "./validation: 000000.tar is missing" in capsys.readouterr().out


def test_a_folder_without_sets_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no packed set at"):
        find_sets(str(tmp_path))


def colour_at(sheet: Image.Image, colour: tuple[int, int, int]) -> int:
    """How many pixels have nearly this colour."""
    near = numpy.abs(numpy.asarray(sheet.convert("RGB")).astype(int) - colour).max(axis=2) < 3
    return int(near.sum())


def test_the_sheet_spreads_its_samples_over_the_set_and_enlarges_them(tmp_path: Path) -> None:
    """Of 200 images of different blue, about one in three is drawn, at 112 px."""
    writer = ShardWriter(
        str(tmp_path / "x"), ("image",), image_size=8, channels=3, shard_bytes=9000
    )
    for n in range(200):
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8), (255, 5, n)).save(buffer, "PNG")
        writer.add(f"k{n}", {"image": buffer.getvalue()})
    writer.finish()
    write_contact_sheet([open_set(str(tmp_path / "x"))], tmp_path / "sheet.png")
    sheet = numpy.asarray(Image.open(tmp_path / "sheet.png"))
    tiles = sheet[(sheet[:, :, 0] == 255) & (sheet[:, :, 1] == 5)]
    blues, counts = numpy.unique(tiles[:, 2], return_counts=True)
    assert len(blues) == 64
    assert set(counts.tolist()) == {112 * 112}
    assert set(numpy.diff(blues.astype(int)).tolist()) == {3, 4}
    assert (blues[0], blues[-1]) == (0, 196)


def test_the_sheet_has_an_empty_tile_for_a_corrupt_sample(tmp_path: Path) -> None:
    write_tar(tmp_path / "x" / "x.tar", labelled_samples(0, 6))
    index_set(str(tmp_path / "x"))
    content = bytearray((tmp_path / "x/x.tar").read_bytes())
    content[700] ^= 1
    (tmp_path / "x/x.tar").write_bytes(content)
    write_contact_sheet([open_set(str(tmp_path / "x"))], tmp_path / "sheet.png")
    sheet = Image.open(tmp_path / "sheet.png")
    assert 0.9 * 112**2 < colour_at(sheet, (0xE8, 0xD8, 0xD8)) < 112**2


def test_a_sheet_that_cannot_be_written_is_a_usage_error(tmp_path: Path) -> None:
    uri = write_noise_set(tmp_path / "x", [1])
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"--sheet: .* cannot be written: .* --no-sheet"):
        write_contact_sheet([open_set(uri)], tmp_path / "file" / "sheet.png")

"""What the scan of a folder says of its files, and what packing does with them."""

import json
import os
from pathlib import Path

import numpy
import pytest
from PIL import Image
from typer.testing import CliRunner

from orchestrator.cli import app
from orchestrator.data.format.image_files import FILE_FORMATS
from orchestrator.data.format.pixel_values import ValueRange
from orchestrator.data.format.shard_index import open_set
from orchestrator.data.prepare.check import check_set
from orchestrator.data.prepare.copy import copy_sets
from orchestrator.data.prepare.folder_scan import FolderScan, scan_folder
from orchestrator.data.prepare.folders import FolderLayout
from orchestrator.data.prepare.pack import pack_scanned
from orchestrator.data.prepare.pack_report import REPORT_FILE, encode_report, render_report
from orchestrator.errors import DataError
from orchestrator.storage.open import open_storage
from support.fetched import pixels, samples
from support.image_folders import tiny, write_images

HALVES = FolderLayout(side_by_side=True)
WHOLE = FolderLayout(side_by_side=False)


def said(found: FolderScan, kind: str) -> str:
    return "\n".join(each.line() for each in found.findings if each.kind == kind)


def fields(found: FolderScan) -> set[bool]:
    return {source.halves for source in found.sources}


def test_a_split_folder_of_files_of_2_to_1_is_taken_for_pairs_with_a_line(tmp_path: Path) -> None:
    write_images(tmp_path, "train/1.png", "train/2.png", "val/1.png", width=8)
    found = scan_folder(tmp_path)
    assert fields(found) == {True}
    assert "3 files of 2:1 are taken for pairs, a left and b right (--no-side-by-side)" in said(
        found, "guessed"
    )
    assert fields(scan_folder(tmp_path, WHOLE)) == {False}


def test_a_wide_first_file_does_not_make_pairs(tmp_path: Path) -> None:
    write_images(tmp_path, "train/0.png", width=8)
    write_images(tmp_path, *(f"train/{n}.png" for n in range(1, 10)), "val/1.png")
    assert fields(scan_folder(tmp_path, size=4)) == {False}


def test_nearly_all_files_of_2_to_1_are_no_pairs_but_noticed(tmp_path: Path) -> None:
    write_images(tmp_path, *(f"train/{n}.png" for n in range(1, 10)), "val/1.png", width=8)
    write_images(tmp_path, "train/square.png")
    found = scan_folder(tmp_path, size=4)
    assert fields(found) == {False}
    assert "10 of 11 files are 2:1, but are not taken for pairs (--side-by-side): train/square" in (
        said(found, "guessed")
    )


def test_wide_files_of_a_folder_that_is_not_split_are_no_pairs_but_noticed(tmp_path: Path) -> None:
    write_images(tmp_path, "1.png", "2.png", width=8)
    found = scan_folder(tmp_path, size=4)
    assert fields(found) == {False}
    assert "(--side-by-side)" in said(found, "guessed")


def test_files_that_hold_no_two_images_are_all_refused(tmp_path: Path) -> None:
    write_images(tmp_path, *(f"{n}.png" for n in range(5)), width=8)
    write_images(tmp_path, "square.png", "square2.png")
    write_images(tmp_path, "wider.png", width=10)
    (refusal,) = scan_folder(tmp_path, HALVES, size=4).refusals
    assert refusal.examples == (
        "square.png is 4x4, not two images side by side",
        "square2.png is 4x4, not two images side by side",
        "wider.png is 10x4, not two images side by side",
    )


def test_halves_may_have_another_shape_if_all_files_do(tmp_path: Path) -> None:
    write_images(tmp_path, "1.png", "2.png", width=12)
    assert scan_folder(tmp_path, HALVES, size=4).refusals == []
    write_images(tmp_path, "odd.png", width=11)
    (refusal,) = scan_folder(tmp_path, HALVES, size=4).refusals
    assert refusal.examples == ("odd.png is 11x4, not two images side by side",)


def test_every_format_of_an_image_file_can_be_read_by_pillow() -> None:
    Image.init()
    assert set(FILE_FORMATS) <= set(Image.OPEN)


@pytest.mark.parametrize("ending", [".jfif", ".jpe", ".jp2", ".avif", ".tga", ".pnm", ".qoi"])
def test_files_with_endings_that_browsers_and_tools_write_are_packed(
    ending: str, tmp_path: Path
) -> None:
    tiny().save(tmp_path / f"1{ending}")
    tiny(1).save(tmp_path / f"2{ending.upper()}")
    assert len(scan_folder(tmp_path).sources) == 2


def test_an_image_is_what_its_content_says(tmp_path: Path) -> None:
    tiny().save(tmp_path / "png.jpg", "PNG")
    tiny().save(tmp_path / "bmp.tiff", "BMP")
    found = scan_folder(tmp_path)
    assert {each.format for each in found.facts.values()} == {"PNG", "BMP"}
    assert len(found.sources) == 2


def test_what_is_left_out_by_its_ending_or_name_is_counted(tmp_path: Path) -> None:
    write_images(tmp_path, "1.png", ".hidden.png", ".git/2.png", "a/.DS_Store/3.png")
    for name in ("1.heic", "2.HEIC", "noending", "a.json", "notes.txt"):
        (tmp_path / name).write_text("x")
    os.mkfifo(tmp_path / "pipe.png")
    assert said(scan_folder(tmp_path), "left out").splitlines() == [
        "3 hidden files and folders (rename what is to be packed): "
        ".git/, .hidden.png, a/.DS_Store/",
        "5 files are not images by their endings (2 .heic, 1 .json, 1 without an ending, 1 .txt) "
        "(convert or rename what is to be packed): 1.heic, 2.HEIC, a.json, ...",
        "1 entry is neither file nor folder: pipe.png",
    ]


@pytest.mark.parametrize("folder", ["/proc", "/sys", "/dev", "/proc/self"])
def test_the_systems_own_files_are_not_searched_for_images(folder: str) -> None:
    with pytest.raises(DataError, match=rf"{folder} is in /\w+, which holds the system's state"):
        scan_folder(Path(folder))


def test_a_link_to_the_systems_files_is_left_out(tmp_path: Path) -> None:
    write_images(tmp_path, "1.png", "sys/2.png")
    (tmp_path / "link").symlink_to("/sys")
    found = scan_folder(tmp_path)
    assert len(found.sources) == 2
    assert "1 entry is neither file nor folder: link/" in said(found, "left out")


def test_a_folder_with_no_readable_image_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "1.heic").write_text("x")
    with pytest.raises(DataError, match=r"holds no images .*; 1 file is not an image .*1 \.heic"):
        scan_folder(tmp_path)


def test_frames_and_pages_after_the_first_are_told_of(tmp_path: Path) -> None:
    for ending in ("gif", "webp", "png", "tiff"):
        rest = [tiny(n) for n in range(1, 4)]
        tiny().save(tmp_path / f"{ending}.{ending}", save_all=True, append_images=rest)
    assert said(scan_folder(tmp_path), "left out") == (
        "4 files have several frames or pages, of which the first is packed (extract the others "
        "to pack them): gif.gif (4), png.png (4), tiff.tiff (4), ..."
    )


def test_sizes_are_those_of_the_upright_image(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    tiny(0, 8, 4).save(tmp_path / "1.jpg", exif=exif)
    found = scan_folder(tmp_path, size=4)
    (facts,) = found.facts.values()
    assert facts.size == (4, 8)
    assert "1 image is turned upright by EXIF: 1.jpg" in said(found, "changed")


def test_what_packing_does_to_the_pixels_is_said(tmp_path: Path) -> None:
    tiny(0, 8, 4).save(tmp_path / "wide.png")
    tiny().convert("L").save(tmp_path / "grey.png")
    tiny().convert("CMYK").save(tmp_path / "print.jpg")
    Image.new("RGBA", (4, 4), (1, 2, 3, 4)).save(tmp_path / "clear.png")
    assert said(scan_folder(tmp_path, size=6), "changed").splitlines() == [
        "1 image is transparent and laid on white: clear.png",
        "1 image is grey and packed with three channels (--grey): grey.png",
        "1 image is converted from CMYK: print.jpg",
        "1 image is cropped to the square in the middle (--fit): wide.png",
        "4 images are enlarged to 6x6 (--size): clear.png, grey.png, print.jpg, ...",
    ]
    padded = said(scan_folder(tmp_path, size=6, fit="pad"), "changed").splitlines()
    assert padded[3:] == [
        "1 image is padded with white to a square (--fit): wide.png",
        "3 images are enlarged to 6x6 (--size): clear.png, grey.png, print.jpg",
        "1 image is scaled down to 6x6 (--size): wide.png",
    ]
    grey = said(scan_folder(tmp_path, size=6, channels=1), "changed")
    assert "3 images become grey (--grey): clear.png, print.jpg, wide.png" in grey


def test_one_range_of_values_is_chosen_for_the_whole_folder(tmp_path: Path) -> None:
    for number, value in enumerate((0.5, 1.0)):
        values = numpy.full((4, 4), value, numpy.float32)
        values[0, 0] = 0
        Image.fromarray(values).save(tmp_path / f"{number}.tif")
    found = scan_folder(tmp_path, FolderLayout(validation_share=0), channels=1)
    assert "values from 0 to 1 (1.tif); 0,1 is taken for black and white" in said(found, "guessed")
    assert "2 images are of 32-bit float values and scaled to 8 bits (--range)" in said(
        found, "changed"
    )
    assert "values     32-bit float 0 to 1" in render_report(found)
    pack_scanned(found, str(tmp_path / "out"))
    tops = [pixels(s["image"]).max() for s in samples(tmp_path / "out/train")]
    assert tops == [128, 255]


def test_values_that_do_not_say_what_is_white_are_refused_in_the_report(tmp_path: Path) -> None:
    Image.fromarray(numpy.array([[-7, 900]], numpy.float32)).save(tmp_path / "1.tif")
    found = scan_folder(tmp_path, size=2)
    assert "--range LOW,HIGH gives the values of black and white" in render_report(found)
    with pytest.raises(DataError, match=r"1\.tif: its 32-bit float values do not say"):
        found.require_packable()
    assert scan_folder(tmp_path, size=2, value_range=ValueRange(-7, 900)).refusals == []


def test_a_value_that_is_not_finite_makes_a_broken_file(tmp_path: Path) -> None:
    Image.fromarray(numpy.array([[0.5, float("nan")]], numpy.float32)).save(tmp_path / "1.tif")
    (refusal,) = scan_folder(tmp_path, size=2).refusals[:1]
    assert "NaN or infinite" in refusal.examples[0]


def broken_folder(folder: Path, count: int = 12) -> Path:
    """Write ``count`` images of which 3, 6, 9, ... are broken, each in another way."""
    write_images(folder, *(f"{n:02d}.png" for n in range(count)))
    ways = [b"", b"\x89PNG\r\n\x1a\n", b"\0\0\0\x18ftypheic....", b"<!DOCTYPE html>", b"\0" * 99]
    for n in range(3, count, 3):
        (folder / f"{n:02d}.png").write_bytes(ways[n // 3 % len(ways)])
    return folder


def test_all_broken_files_are_listed_at_once_with_what_they_are(tmp_path: Path) -> None:
    broken_folder(tmp_path, 45)
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    with pytest.raises(DataError) as error:
        scan_folder(tmp_path).require_packable()
    text = str(error.value)
    assert "15 of 46 samples have images that cannot be decoded; repair or remove them" in text
    assert text.count("\n") == 11
    assert text.endswith("  and 5 more")
    for reason in ("HEIC", "web page", "nothing but zeros", "is empty"):
        assert reason in text
    (refusal,) = scan_folder(tmp_path).refusals
    assert "gone.png cannot be decoded as an image (it is a link to nothing)" in refusal.examples


def test_the_fraction_that_the_error_advises_packs_the_rest(tmp_path: Path) -> None:
    broken_folder(tmp_path)
    (refusal,) = scan_folder(tmp_path).refusals
    fraction = float(refusal.advice.split("--max-corrupt-fraction ")[1].split()[0])
    assert fraction == 0.25
    assert scan_folder(tmp_path, max_corrupt_fraction=fraction - 0.01).refusals
    found = scan_folder(tmp_path, max_corrupt_fraction=fraction)
    assert "3 of 12 samples, whose images cannot be decoded" in said(found, "left out")
    assert [source.key[8:] for source in found.sources] == [
        f"{n:02d}" for n in range(12) if n not in (3, 6, 9)
    ]


def test_a_pair_with_one_broken_side_is_broken(tmp_path: Path) -> None:
    write_images(tmp_path, "A/1.png", "B/1.png", "A/2.png", "B/2.png")
    (tmp_path / "B/2.png").write_bytes(b"")
    (refusal,) = scan_folder(tmp_path).refusals
    assert refusal.text == "1 of 2 samples has images that cannot be decoded"
    (source,) = scan_folder(tmp_path, max_corrupt_fraction=0.5).sources
    assert [path.name for path in source.paths] == ["1.png", "1.png"]


def test_a_folder_of_nothing_but_broken_files_is_never_packed(tmp_path: Path) -> None:
    (tmp_path / "1.png").touch()
    assert scan_folder(tmp_path, max_corrupt_fraction=1.0).refusals


def test_any_number_of_processes_finds_the_same(tmp_path: Path) -> None:
    broken_folder(tmp_path, 70)
    seen: list[tuple[int, int]] = []
    one = scan_folder(tmp_path, workers=1, progress=lambda done, all_: seen.append((done, all_)))
    two = scan_folder(tmp_path, workers=2)
    assert encode_report(one) == encode_report(two)
    assert seen == [(n, 70) for n in range(1, 71)]


def test_the_report_names_every_file_and_fits_80_columns(tmp_path: Path) -> None:
    folder = broken_folder(tmp_path / "in")
    found = scan_folder(folder, FolderLayout(validation_share=0), max_corrupt_fraction=0.5, size=8)
    assert max(map(len, render_report(found).splitlines())) <= 80
    report = json.loads(encode_report(found))
    rows = {row[0]: dict(zip(report["columns"], row, strict=True)) for row in report["files"]}
    assert rows.keys() == {path.name for path in folder.iterdir()}
    assert rows["03.png"]["error"]
    assert rows["03.png"]["samples"] == []
    values = numpy.asarray(tiny(4))
    low, high = values.min(), values.max()
    assert rows["04.png"] | {"bytes": 0} == {
        "path": "04.png", "bytes": 0, "format": "PNG", "mode": "RGB", "width": 4, "height": 4,
        "low": low, "high": high, "orientation": 1, "frames": 1,
        "samples": ["0000003-04"], "field": "image", "class": None,
        "error": "",
    }  # fmt: skip


@pytest.mark.parametrize("place", ["folder", pytest.param("s3", marks=pytest.mark.server)])
def test_the_report_is_kept_beside_the_sets_and_copied_with_them(
    tmp_path: Path, place: str, request: pytest.FixtureRequest
) -> None:
    dest = request.getfixturevalue("s3") if place == "s3" else str(tmp_path / "out")
    found = scan_folder(write_images(tmp_path / "in", *(f"{n}.png" for n in range(4))))
    summary = pack_scanned(found, dest)
    assert open_storage(dest).get(REPORT_FILE) == encode_report(found)
    assert check_set(summary.train_uri).ok
    copy_sets(dest, str(tmp_path / "copy"))
    assert (tmp_path / "copy" / REPORT_FILE).read_bytes() == encode_report(found)


def run(*arguments: str | Path) -> tuple[int, str]:
    done = CliRunner().invoke(app.app, ["data", "pack", *map(str, arguments)])
    code = getattr(done.exception, "exit_code", done.exit_code)
    return code, f"{done.output}{done.exception or ''}"


def test_a_dry_run_prints_the_report_and_packs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    broken_folder(tmp_path / "in")
    code, output = run("in", "out", "--size", "8", "--dry-run")
    assert code == 4
    assert "3 of 12 samples have images that cannot be decoded" in output
    assert not (tmp_path / "out").exists()
    assert len(json.loads((tmp_path / REPORT_FILE).read_text())["files"]) == 12
    code, output = run("in", "out", "--dry-run", "--max-corrupt-fraction", "0.3")
    assert code == 0
    assert not (tmp_path / "out").exists()


def test_a_refused_packing_leaves_the_whole_list_in_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    broken_folder(tmp_path / "in", 60)
    code, output = run("in", "out", "--report", "found.json")
    assert code == 4
    assert "every file: found.json" in output
    findings = json.loads((tmp_path / "found.json").read_text())["findings"]
    (broken,) = [finding for finding in findings if finding["kind"] == "refused"]
    assert len(broken["files"]) == 19
    code, output = run("in", "out", "--report", "nowhere/found.json")
    assert code == 4
    assert "--report: nowhere/found.json cannot be written (No such file" in output


def test_packing_says_what_it_guesses_changes_and_leaves_out(tmp_path: Path) -> None:
    broken_folder(tmp_path / "in")
    (tmp_path / "in/x.heic").touch()
    code, output = run(
        tmp_path / "in", tmp_path / "out", "--size", "8", "--max-corrupt-fraction", "0.3",
        "--validation-share", "0",
    )  # fmt: skip
    assert code == 0
    for line in ("left out: 3 of 12 samples", "changed: 9 images are enlarged", "1 .heic"):
        assert line in output
    assert open_set(str(tmp_path / "out/train")).num_samples == 9


def test_a_dry_run_onto_an_existing_set_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "in", "1.png", "2.png")
    assert run("in", "out", "--validation-share", "0")[0] == 0
    assert run("in", "out", "--dry-run")[0] == 4

"""Caption and class files as editors write them."""

from pathlib import Path

import pytest

from orchestrator.cli import index as commands
from orchestrator.data.format.shard_index import open_set
from orchestrator.data.prepare.caption_findings import MODEL_CAPTION_BYTES
from orchestrator.data.prepare.check import check_set
from orchestrator.data.prepare.folder_scan import FolderScan, scan_folder
from orchestrator.data.prepare.folders import FolderLayout
from orchestrator.data.prepare.pack import pack_scanned
from orchestrator.data.prepare.text_files import read_lines, read_text
from orchestrator.errors import UsageError
from orchestrator.models.parts.text import CAPTION_BYTES
from support.fetched import samples
from support.image_folders import write_images

CAPTIONS = FolderLayout(captions=True, validation_share=0)
TEXT = "żółty kot\nrudy kot\n"


def folder_with(folder: Path, *captions: str | bytes) -> Path:
    """Write an image with each caption."""
    write_images(folder, *(f"{n}.png" for n in range(len(captions))))
    for n, caption in enumerate(captions):
        data = caption.encode() if isinstance(caption, str) else caption
        (folder / f"{n}.txt").write_bytes(data)
    return folder


def packed(found: FolderScan, out: Path) -> list[str]:
    return [s["txt"].decode() for s in samples(pack_scanned(found, str(out)).train_uri)]


def said(found: FolderScan, kind: str) -> str:
    return "\n".join(each.line() for each in found.findings if each.kind == kind)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_text_files_of_any_editor_are_read(encoding: str, end: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(TEXT.replace("\n", end).encode(encoding))
    assert read_text(tmp_path / "x") == TEXT
    assert read_lines(tmp_path / "x") == ("żółty kot", "rudy kot")


def test_big_endian_utf16_is_read_by_its_mark(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\xfe\xff" + TEXT.encode("utf-16-be"))
    assert read_text(tmp_path / "x") == TEXT


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("kot".encode("utf-16-le"), "zero bytes, as UTF-16 without a mark does; save it as UTF-8"),
        ("żółty".encode("latin2"), "is not UTF-8 text .*; save it as UTF-8"),
        (b"\xff\xfe\x00", "is not UTF-16 text"),
    ],
)
def test_text_in_other_encodings_is_refused(data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        read_text(tmp_path / "x")


def test_class_names_of_index_are_read_with_a_mark_and_windows_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    path.write_bytes("kot\r\npies\r\n".encode("utf-16"))
    assert commands._read_class_names(path) == ("kot", "pies")
    path.write_bytes(b"\xef\xbb\xbfkot\npies")
    assert commands._read_class_names(path) == ("kot", "pies")
    path.write_bytes(b"\xff")
    with pytest.raises(UsageError, match=r"--classes: .*classes\.txt is not UTF-8 text"):
        commands._read_class_names(path)
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        commands._read_class_names(tmp_path / "missing")


def test_all_missing_and_unreadable_captions_are_listed(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, "a", b"\xff", "c")
    (folder / "2.txt").unlink()
    (refusal,) = scan_folder(folder, CAPTIONS).refusals
    assert refusal.examples == (
        "1.txt is not UTF-8 text (invalid start byte at byte 0); save it as UTF-8",
        "2.png has no caption: write one to 2.txt",
    )


def test_captions_that_are_not_asked_for_are_noticed(tmp_path: Path) -> None:
    found = scan_folder(folder_with(tmp_path, "a", "b"))
    assert said(found, "left out") == (
        "2 text files beside images, perhaps captions (--captions): 0.txt, 1.txt"
    )


def test_each_line_is_a_caption_and_all_are_stored(tmp_path: Path) -> None:
    ten = "\r\n".join(f" bird {n}\t" for n in range(10)) + "\r\n\r\n"
    found = scan_folder(folder_with(tmp_path / "in", ten, "one bird", ""), CAPTIONS)
    assert "11 for 3 samples (training draws one per visit; --no-caption-per-line): 0.txt" in said(
        found, "guessed"
    )
    assert "1 caption is empty: 2.txt" in said(found, "noted")
    texts = packed(found, tmp_path / "out")
    assert texts == ["\n".join(f"bird {n}" for n in range(10)), "one bird", ""]
    assert open_set(str(tmp_path / "out/train")).index.multiple_captions


def test_a_file_is_one_caption_on_request(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "in", "one\r\ntwo\n", "three")
    layout = FolderLayout(captions=True, validation_share=0, caption_per_line=False)
    found = scan_folder(folder, layout)
    assert "1 caption has several lines (--caption-per-line): 0.txt" in said(found, "noted")
    assert packed(found, tmp_path / "out") == ["one\ntwo", "three"]
    assert not open_set(str(tmp_path / "out/train")).index.multiple_captions


def test_a_set_of_single_captions_has_the_index_it_always_had(tmp_path: Path) -> None:
    pack_scanned(scan_folder(folder_with(tmp_path / "in", "a\n", "b"), CAPTIONS), str(tmp_path))
    assert "multiple_captions" not in (tmp_path / "train/index.json").read_text()


@pytest.mark.parametrize("per_line", [True, False])
def test_captions_that_models_cut_are_counted_when_packed_and_checked(
    per_line: bool, tmp_path: Path
) -> None:
    assert MODEL_CAPTION_BYTES == CAPTION_BYTES
    folder = folder_with(tmp_path / "in", "é" * 129, "é" * 128, "x" * 200 + "\n" + "y" * 200)
    layout = FolderLayout(captions=True, validation_share=0, caption_per_line=per_line)
    found = scan_folder(folder, layout)
    number = "1 caption is" if per_line else "2 captions are"
    assert f"{number} longer than the 256 bytes that models read" in said(found, "noted")
    report = check_set(pack_scanned(found, str(tmp_path / "out")).train_uri)
    (warning,) = [w for w in report.warnings if "captions longer than the 256 bytes" in w]
    assert f"read: {1 if per_line else 2} (000000.tar, sample 0" in warning

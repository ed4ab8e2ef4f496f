"""`data import` of Hugging Face's imagefolder: metadata files and class folders."""

import csv
import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from orchestrator.data.format.shard_index import open_set
from orchestrator.data.prepare.find_source import find_source
from orchestrator.data.prepare.import_scan import scan_rows
from orchestrator.data.prepare.pack import pack_scanned
from orchestrator.errors import DataError, UsageError
from support.imports import encoded, import_data, packed, seeds

ALL = ("--validation-share", "0")


def put(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(seed))


def write_jsonl(path: Path, *rows: Mapping[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_csv(path: Path, *rows: Mapping[str, object], encoding: str = "utf-8") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding=encoding) as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def test_metadata_jsonl_gives_captions_and_classes(tmp_path: Path) -> None:
    for n in range(4):
        put(tmp_path / "in" / f"sub{n % 2}" / f"{n}.png", n)
    rows = [
        {"file_name": f"sub{n % 2}/{n}.png", "text": f"number\n{n}", "label": n, "bbox": [1.5]}
        for n in (3, 1, 0, 2)
    ]
    write_jsonl(tmp_path / "in/metadata.jsonl", *rows)
    said = import_data(tmp_path / "in", tmp_path / "out", *ALL)
    assert "image as image, label as the class, text as the caption; left out: bbox" in said
    found = packed(tmp_path / "out/train")
    assert seeds(found) == [3, 1, 0, 2]
    assert [(s.label, s.captions) for s in found] == [(n, [f"number {n}"]) for n in (3, 1, 0, 2)]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_metadata_csv_of_any_editor_is_read(tmp_path: Path, encoding: str) -> None:
    for n in range(3):
        put(tmp_path / "in" / f"{n}.png", n)
    rows: list[dict[str, object]] = [
        {"file_name": f"{n}.png", "caption": f'żółty, "{n}"\nkot', "label": "ab"[n % 2]}
        for n in range(3)
    ]
    write_csv(tmp_path / "in/metadata.csv", *rows, encoding=encoding)
    import_data(tmp_path / "in", tmp_path / "out", *ALL)
    found = packed(tmp_path / "out/train")
    assert [s.captions for s in found] == [[f'żółty, "{n}" kot'] for n in range(3)]
    assert [s.label for s in found] == [0, 1, 0]
    assert open_set(str(tmp_path / "out/train")).index.classes == ("a", "b")


def test_rows_of_one_file_are_its_captions(tmp_path: Path) -> None:
    put(tmp_path / "in/x.png", 0)
    put(tmp_path / "in/y.png", 1)
    rows: list[dict[str, object]] = [
        {"file_name": f"{name}.png", "text": f"{name}{n}"} for name in "xy" for n in range(5)
    ]
    write_csv(tmp_path / "in/metadata.csv", *rows)
    said = import_data(tmp_path / "in", tmp_path / "out", *ALL)
    assert "8 rows repeat the file of another one" in said
    found = packed(tmp_path / "out/train")
    assert seeds(found) == [0, 1]
    assert [s.captions for s in found] == [[f"{name}{n}" for n in range(5)] for name in "xy"]


def test_file_names_of_two_columns_are_a_pair(tmp_path: Path) -> None:
    rows = []
    for n in range(3):
        put(tmp_path / "in/images" / f"{n}.png", n)
        put(tmp_path / "in/edited" / f"{n}.png", 50 + n)
        names = {"input_file_name": f"images/{n}.png", "output_file_name": f"edited/{n}.png"}
        rows.append({**names, "text": f"edit {n}"})
    write_jsonl(tmp_path / "in/metadata.jsonl", *rows)
    import_data(tmp_path / "in", tmp_path / "out", "--a", "input", "--b", "output", *ALL)
    found = packed(tmp_path / "out/train")
    assert seeds(found, field="a") == [0, 1, 2]
    assert seeds(found, field="b") == [50, 51, 52]


@pytest.mark.parametrize("one_file", [True, False])
def test_splits_in_folders_are_kept(tmp_path: Path, one_file: bool) -> None:
    parts = {"train": range(5), "validation": range(20, 22), "test": range(30, 33)}
    for part, numbers in parts.items():
        for n in numbers:
            put(tmp_path / "in" / part / f"{n}.png", n)
        rows = [{"file_name": f"{n}.png", "text": str(n)} for n in numbers]
        if not one_file:
            write_jsonl(tmp_path / "in" / part / "metadata.jsonl", *rows)
    if one_file:
        rows = [
            {"file_name": f"{part}/{n}.png", "text": str(n)}
            for part in reversed(parts) for n in parts[part]
        ]  # fmt: skip
        write_jsonl(tmp_path / "in/metadata.jsonl", *rows)
    said = import_data(tmp_path / "in", tmp_path / "out")
    assert "left out: 1 folder beside the training set" in said
    for part in ("train", "validation"):
        found = packed(tmp_path / "out" / part)
        assert seeds(found) == list(parts[part])
        assert [s.captions for s in found] == [[str(n)] for n in parts[part]]


def test_class_folders_are_classes(tmp_path: Path) -> None:
    for n in range(6):
        put(
            tmp_path / "in" / ("train" if n < 4 else "test") / ["dog", "cat"][n % 2] / f"{n}.png", n
        )
    import_data(tmp_path / "in", tmp_path / "out")
    assert open_set(str(tmp_path / "out/train")).index.classes == ("cat", "dog")
    labels = {n: s.label for s in packed(tmp_path / "out/train") for n in seeds([s])}
    assert labels == {0: 1, 1: 0, 2: 1, 3: 0}
    assert [s.label for s in packed(tmp_path / "out/validation")] == [0, 1]


def test_files_that_are_missing_or_named_without_ending_are_listed_at_once(tmp_path: Path) -> None:
    for n in range(2):
        put(tmp_path / "in" / f"{n}.png", n)
    rows = [{"file_name": name, "text": ""} for name in ("0.png", "1", "gone.png", "")]
    write_jsonl(tmp_path / "in/metadata.jsonl", *rows)
    with pytest.raises(DataError) as caught:
        import_data(tmp_path / "in", tmp_path / "out")
    text = str(caught.value)
    assert "3 of 4 samples" in text
    assert "1 does not exist, but 1.png does: write the name with its ending" in text
    assert "gone.png does not exist" in text
    assert "metadata.jsonl:4" in text


def test_images_that_metadata_lacks_are_left_out_with_a_line(tmp_path: Path) -> None:
    for n in range(5):
        put(tmp_path / "in" / f"{n}.png", n)
    write_jsonl(tmp_path / "in/metadata.jsonl", {"file_name": "1.png"})
    said = import_data(tmp_path / "in", tmp_path / "out", *ALL)
    assert "left out: 4 images that metadata.jsonl does not list: 0.png, 2.png, 3.png, ..." in said


def test_git_lfs_pointers_in_place_of_images_are_said(tmp_path: Path) -> None:
    put(tmp_path / "in/0.png", 0)
    (tmp_path / "in/1.png").write_text("version https://git-lfs.github.com/spec/v1\nsize 9\n")
    write_jsonl(tmp_path / "in/metadata.jsonl", {"file_name": "0.png"}, {"file_name": "1.png"})
    with pytest.raises(DataError, match=r"1\.png .*pointer of Git LFS: run git lfs pull"):
        import_data(tmp_path / "in", tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("metadata.csv", "file;text\n0.png;x\n", r"no column file_name .*'file;text'.* commas"),
        ("metadata.csv", "file_name,text\n0.png,a,b\n", r"csv:2 has not as many values"),
        ("metadata.csv", "file_name,text\n", "has no rows"),
        ("metadata.jsonl", '{"file_name": "0.png"}\n{"file', r"jsonl:2 is not JSON"),
        ("metadata.jsonl", '["0.png"]\n', r"jsonl:1 is not a JSON object"),
        ("metadata.jsonl", '{"image": "0.png"}\n', r"jsonl:1 has no column file_name .*'image'"),
        ("metadata.jsonl", '{"file_name": "../0.png"}\n', r"jsonl:1: file_name is '\.\./0\.png'"),
        ("metadata.jsonl", '{"file_name": "/etc/x.png"}\n', r"expected the path of a file below"),
        ("metadata.jsonl", '{"file_name": 7}\n', r"jsonl:1: file_name is 7"),
    ],
)
def test_mistakes_in_metadata_are_named_with_their_line(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    put(tmp_path / "in/0.png", 0)
    (tmp_path / "in" / name).write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        import_data(tmp_path / "in", tmp_path / "out")
    assert len(str(caught.value).splitlines()) == 1


def test_wrong_columns_are_answered_with_those_that_are_there(tmp_path: Path) -> None:
    put(tmp_path / "in/0.png", 0)
    write_jsonl(tmp_path / "in/metadata.jsonl", {"file_name": "0.png", "note": "x"})
    with pytest.raises(UsageError, match=r"--caption text: .*it has image \(files\), note \(text"):
        import_data(tmp_path / "in", tmp_path / "out", "--caption", "text")


def test_images_beside_class_folders_are_refused(tmp_path: Path) -> None:
    put(tmp_path / "in/cat/0.png", 0)
    put(tmp_path / "in/1.png", 1)
    with pytest.raises(DataError, match=r"1\.png is not in a class folder, while others are"):
        import_data(tmp_path / "in", tmp_path / "out")


def test_a_file_that_two_rows_share_hides_no_broken_image(tmp_path: Path) -> None:
    put(tmp_path / "in/a.png", 0)
    put(tmp_path / "in/y.png", 1)
    (tmp_path / "in/x.png").write_bytes(encoded(2)[:40])
    write_jsonl(
        tmp_path / "in/metadata.jsonl",
        {"input_file_name": "a.png", "output_file_name": "x.png"},
        {"input_file_name": "a.png", "output_file_name": "y.png"},
    )
    with pytest.raises(DataError, match=r"x\.png cannot be decoded"):
        import_data(tmp_path / "in", tmp_path / "out", *ALL, "--image", "output")


def test_a_row_without_a_caption_does_not_drop_the_captions_of_the_others(tmp_path: Path) -> None:
    for n in range(2):
        put(tmp_path / "in" / f"{n}.png", n)
    rows: list[Mapping[str, object]] = [
        {"file_name": "0.png", "text": None},
        {"file_name": "0.png", "text": "one"},
        {"file_name": "1.png", "text": "two"},
    ]
    write_jsonl(tmp_path / "in/metadata.jsonl", *rows)
    import_data(tmp_path / "in", tmp_path / "out", *ALL)
    assert [s.captions for s in packed(tmp_path / "out/train")] == [["one"], ["two"]]
    write_jsonl(tmp_path / "in/metadata.jsonl", rows[0], rows[2])
    with pytest.raises(DataError, match=r"0\.png has no caption; write them, or"):
        import_data(tmp_path / "in", tmp_path / "other", *ALL)


def test_a_file_that_is_deleted_after_it_was_read_is_named(tmp_path: Path) -> None:
    for n in range(2):
        put(tmp_path / "in" / f"{n}.png", n)
    write_jsonl(tmp_path / "in/metadata.jsonl", {"file_name": "0.png"}, {"file_name": "1.png"})
    scan = scan_rows(find_source(str(tmp_path / "in")), validation_share=0)
    (tmp_path / "in/1.png").unlink()
    with pytest.raises(DataError, match=r"1\.png does not exist; it has changed since it was read"):
        pack_scanned(scan, str(tmp_path / "out"))

"""`data import` of Parquet files, written with pyarrow as Hugging Face writes them."""

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from orchestrator.data.format.shard_index import open_set
from orchestrator.data.prepare import parquet_source
from orchestrator.data.prepare.check import check_set
from orchestrator.data.prepare.columns import Column, ColumnChoice, number_classes
from orchestrator.data.prepare.find_source import find_source
from orchestrator.data.prepare.import_scan import scan_rows
from orchestrator.data.prepare.pack import pack_folder, pack_scanned
from orchestrator.data.prepare.row_source import SplitChoice
from orchestrator.errors import DataError, UsageError
from orchestrator.storage.open import open_storage
from support.imports import digests, encoded, import_data, noise, packed, seeds

IMAGE = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
ALL = ("--validation-share", "0")


def image(seed: int, name: str | None = None) -> dict[str, object]:
    return {"bytes": encoded(seed), "path": name or f"{seed:03d}.png"}


def features(**columns: dict[str, Any]) -> dict[bytes, bytes]:
    """Schema metadata as `datasets` 3 writes it."""
    return {b"huggingface": json.dumps({"info": {"features": columns}}).encode()}


def write(
    path: Path,
    columns: dict[str, Any],
    types: dict[str, Any] | None = None,
    metadata: dict[bytes, bytes] | None = None,
    **options: Any,
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    kinds = {"image": IMAGE} | (types or {})
    arrays = {name: pyarrow.array(values, kinds.get(name)) for name, values in columns.items()}
    table = pyarrow.table(arrays).replace_schema_metadata(metadata)
    parquet.write_table(table, path, **options)
    return path


def test_images_classes_and_captions_of_a_dataset_are_packed(tmp_path: Path) -> None:
    names = ["zebra", "ant", "bee"]
    metadata = features(
        image={"_type": "Image"}, label={"_type": "ClassLabel", "names": names},
        text={"_type": "Value", "dtype": "string"}, id={"_type": "Value", "dtype": "int64"},
    )  # fmt: skip
    for part, numbers in (("train", range(10)), ("validation", range(50, 54))):
        for half in range(2):
            rows = list(numbers)[half::2]
            columns = {
                "image": [image(n) for n in rows],
                "label": [n % 3 for n in rows],
                "text": [f"number {n}\nof noise " for n in rows],
                "id": rows,
            }
            path = tmp_path / "in" / "data" / f"{part}-{half:05d}-of-00002.parquet"
            write(path, columns, metadata=metadata, row_group_size=2)
    said = import_data(tmp_path / "in", tmp_path / "out")
    assert "columns: image as image, label as the class, text as the caption; left out: id" in said
    for part, numbers in (("train", range(10)), ("validation", range(50, 54))):
        order = [*numbers[::2], *numbers[1::2]]
        found = packed(tmp_path / "out" / part)
        assert seeds(found) == order
        assert [sample.label for sample in found] == [n % 3 for n in order]
        assert [sample.captions for sample in found] == [[f"number {n} of noise"] for n in order]
        assert open_set(str(tmp_path / "out" / part)).index.classes == tuple(names)
        assert check_set(str(tmp_path / "out" / part)).ok


def test_a_list_of_texts_is_several_captions_one_per_line(tmp_path: Path) -> None:
    texts = [["a cat\non a mat", " a pet "], ["one"]]
    write(tmp_path / "x.parquet", {"image": [image(0), image(1)], "captions": texts})
    said = import_data(tmp_path / "x.parquet", tmp_path / "out", *ALL)
    assert "3 captions for 2 samples, of which training draws one per visit" in said
    found = packed(tmp_path / "out/train")
    assert [sample.captions for sample in found] == [["a cat on a mat", "a pet"], ["one"]]
    assert open_set(str(tmp_path / "out/train")).index.multiple_captions


def test_two_image_columns_are_a_pair_if_they_are_named(tmp_path: Path) -> None:
    columns = {"input": [image(n) for n in range(3)], "edited": [image(n + 50) for n in range(3)]}
    source = write(tmp_path / "x.parquet", columns, {"input": IMAGE, "edited": IMAGE})
    with pytest.raises(UsageError, match=r"2 columns with images, input, edited: .*--a COLUMN --b"):
        import_data(source, tmp_path / "out")
    import_data(source, tmp_path / "out", "--a", "input", "--b", "edited", *ALL)
    found = packed(tmp_path / "out/train")
    assert seeds(found, field="a") == [0, 1, 2]
    assert seeds(found, field="b") == [50, 51, 52]


@pytest.mark.parametrize("kind", [pyarrow.binary(), pyarrow.large_binary(), pyarrow.binary_view()])
def test_plain_bytes_are_images_and_texts_are_classes(tmp_path: Path, kind: Any) -> None:
    columns = {"jpg": [encoded(n) for n in range(4)], "class": ["dog", "cat", "dog", "ant"]}
    write(tmp_path / "x.parquet", columns, {"jpg": kind})
    import_data(tmp_path / "x.parquet", tmp_path / "out", *ALL)
    found = packed(tmp_path / "out/train")
    assert seeds(found) == [0, 1, 2, 3]
    classes = open_set(str(tmp_path / "out/train")).index.classes
    assert classes == ("ant", "cat", "dog")
    assert [sample.label for sample in found] == [2, 1, 2, 0]


def test_class_numbers_without_names_are_ordered_as_numbers(tmp_path: Path) -> None:
    columns = {"image": [image(n) for n in range(3)], "label": [10, 9, 10]}
    write(tmp_path / "x.parquet", columns)
    import_data(tmp_path / "x.parquet", tmp_path / "out", *ALL)
    assert open_set(str(tmp_path / "out/train")).index.classes == ("9", "10")
    assert [sample.label for sample in packed(tmp_path / "out/train")] == [1, 0, 1]


def test_the_set_and_its_split_are_those_of_data_pack(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for n in range(40):
        (tmp_path / "in" / f"{n:03d}.png").write_bytes(encoded(n, 10))
    columns = {"image": [{"bytes": encoded(n, 10), "path": f"{n:03d}.png"} for n in range(40)]}
    write(tmp_path / "x.parquet", columns, row_group_size=7)
    options = {"size": 6, "channels": 1, "jpeg": 90, "shard_bytes": 1 << 14}
    pack_folder(tmp_path / "in", str(tmp_path / "a"), validation_share=0.3, **options)  # type: ignore[arg-type]
    import_data(
        tmp_path / "x.parquet", tmp_path / "b", "--size", "6", "--grey", "--jpeg", "90",
        "--shard-bytes", "16KiB", "--validation-share", "0.3",
    )  # fmt: skip
    first, second = digests(tmp_path / "a"), digests(tmp_path / "b")
    del first["pack-report.json"], second["pack-report.json"]
    assert "validation/index.json" in first
    assert first == second


def test_any_number_of_processes_and_a_resumed_import_write_the_same_bytes(tmp_path: Path) -> None:
    columns = {"image": [image(n) for n in range(90)], "text": [f"text {n}" for n in range(90)]}
    write(tmp_path / "x.parquet", columns, row_group_size=8)
    options = ("--shard-bytes", "16KiB", "--validation-share", "0.3")
    for workers in "12":
        import_data(tmp_path / "x.parquet", tmp_path / workers, *options, "--workers", workers)
    assert digests(tmp_path / "1") == digests(tmp_path / "2")

    class Interrupted(BaseException):
        pass

    def interrupt(done: int, _: int) -> None:
        if done == 70:
            raise Interrupted

    source = find_source(str(tmp_path / "x.parquet"))
    scan = scan_rows(source, validation_share=0.3, workers=1)
    with pytest.raises(Interrupted):
        pack_scanned(scan, str(tmp_path / "3"), workers=1, shard_bytes=16 << 10, progress=interrupt)
    left = sorted((tmp_path / "3/train").glob("*.tar"))
    times = [path.stat().st_mtime_ns for path in left]
    assert len(left) > 1
    import_data(tmp_path / "x.parquet", tmp_path / "3", *options, "--workers", "1")
    assert [path.stat().st_mtime_ns for path in left] == times
    assert digests(tmp_path / "3") == digests(tmp_path / "1")


def test_null_and_corrupt_images_are_listed_at_once_and_can_be_left_out(tmp_path: Path) -> None:
    cells: list[Any] = [image(n) for n in range(20)]
    cells[3] = None
    cells[4] = {"bytes": None, "path": "http://a/4.png"}
    cells[5] = {"bytes": b"", "path": None}
    cells[6] = {"bytes": encoded(6)[:60], "path": "6.png"}
    cells[7] = {"bytes": b"<html>not found", "path": "7.png"}
    write(tmp_path / "x.parquet", {"image": cells}, row_group_size=4)
    with pytest.raises(DataError) as caught:
        import_data(tmp_path / "x.parquet", tmp_path / "out")
    first, *lines = str(caught.value).splitlines()
    assert "5 of 20 samples have images that cannot be decoded" in first
    assert "--max-corrupt-fraction 0.25" in first
    reasons = ["it is null", "only the path http://a/4.png", "it is empty", "", "it is a web page"]
    assert len(lines) == 5
    for row, (line, reason) in enumerate(zip(lines, reasons, strict=True), start=3):
        assert f"x.parquet row {row} cannot be decoded" in line
        assert reason in line
    assert not list((tmp_path / "out").rglob("*.tar"))
    options = ("--max-corrupt-fraction", "0.25", *ALL)
    said = import_data(tmp_path / "x.parquet", tmp_path / "out", *options)
    assert "left out: 5 of 20 samples" in said
    assert seeds(packed(tmp_path / "out/train")) == [0, 1, 2, *range(8, 20)]


def test_missing_classes_and_captions_are_listed_with_the_way_out(tmp_path: Path) -> None:
    metadata = features(label={"_type": "ClassLabel", "names": ["a", "b"]})
    columns = {"image": [image(n) for n in range(4)], "label": [0, -1, 1, None]}
    columns["text"] = ["x", None, "", "y"]
    write(tmp_path / "x.parquet", columns, metadata=metadata)
    with pytest.raises(DataError) as caught:
        import_data(tmp_path / "x.parquet", tmp_path / "out")
    text = str(caught.value)
    assert "2 of 4 rows have no class of the column label (0 to 1)" in text
    assert "x.parquet row 1 is of the class -1" in text
    assert "x.parquet row 1 has no caption" in text
    import_data(tmp_path / "x.parquet", tmp_path / "out", *ALL, "--no-labels", "--no-captions")
    found = packed(tmp_path / "out/train")
    assert [(sample.label, sample.captions) for sample in found] == [(None, [])] * 4


def test_wrong_columns_are_answered_with_those_that_are_there(tmp_path: Path) -> None:
    columns = {"image": [image(0)], "text": ["x"], "score": [0.5]}
    source = write(tmp_path / "x.parquet", columns)
    listed = r"it has image \(struct<bytes: binary, path: string>\), text \(string\), score"
    for option in ("--image", "--label", "--caption"):
        with pytest.raises(UsageError, match=rf"{option} img: .* has no such column; {listed}"):
            import_data(source, tmp_path / "out", option, "img")
    with pytest.raises(UsageError, match=r"--label score: .* holds double, not classes"):
        import_data(source, tmp_path / "out", "--label", "score")
    with pytest.raises(UsageError, match=r"--image text: .* holds string, not encoded images"):
        import_data(source, tmp_path / "out", "--image", "text")
    write(tmp_path / "y.parquet", {"url": ["http://a/b.png"], "text": ["x"]})
    with pytest.raises(UsageError, match=r"no column with images; it has url .* not followed"):
        import_data(tmp_path / "y.parquet", tmp_path / "out")


def test_several_classes_or_captions_are_a_choice(tmp_path: Path) -> None:
    names = {"_type": "ClassLabel", "names": ["x", "y"]}
    columns = {"image": [image(0)], "fine": [1], "coarse": [0], "text": ["a"], "caption": ["b"]}
    source = write(tmp_path / "x.parquet", columns, metadata=features(fine=names, coarse=names))
    with pytest.raises(UsageError, match=r"2 columns with classes, fine, coarse: .*--no-labels"):
        import_data(source, tmp_path / "out")
    with pytest.raises(UsageError, match=r"2 columns with captions, text, caption: .*--no-capt"):
        import_data(source, tmp_path / "out", "--label", "fine")
    import_data(source, tmp_path / "out", "--label", "fine", "--caption", "caption", *ALL)
    (sample,) = packed(tmp_path / "out/train")
    assert (sample.label, sample.captions) == (1, ["b"])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda data: data[: len(data) // 2], "is incomplete: .* download or write it again"),
        (lambda data: data[:-9], "is incomplete"),
        (lambda _: b"", "is an empty file"),
        (
            lambda _: b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 1\n",
            "is a git-LFS pointer, not the data; get the data with `git lfs pull`",
        ),
        (lambda _: b"<html><body>404</body></html>", "is not a Parquet file: it starts with"),
        (lambda data: data[:-200] + bytes(192) + data[-8:], "is not a valid Parquet file"),
    ],
)
def test_files_that_are_no_whole_parquet_are_named(
    tmp_path: Path, spoil: Any, message: str
) -> None:
    for n in range(3):
        write(tmp_path / "in" / f"{n}.parquet", {"image": [image(n)]})
    bad = tmp_path / "in" / "1.parquet"
    bad.write_bytes(spoil(bad.read_bytes()))
    with pytest.raises(DataError, match=rf"1\.parquet {message}") as caught:
        import_data(tmp_path / "in", tmp_path / "out")
    assert len(str(caught.value).splitlines()) == 1


def test_corrupt_pages_are_an_error_of_their_file(tmp_path: Path) -> None:
    path = write(
        tmp_path / "x.parquet", {"image": [image(n) for n in range(20)]},
        write_page_checksum=True,
    )  # fmt: skip
    data = bytearray(path.read_bytes())
    data[1500] ^= 255
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"x\.parquet cannot be read to its end \(.*\); download"):
        import_data(path, tmp_path / "out")


def test_missing_parts_and_unfinished_downloads_are_named(tmp_path: Path) -> None:
    write(tmp_path / "in/train-00000-of-00003.parquet", {"image": [image(0)]})
    write(tmp_path / "in/train-00002-of-00003.parquet", {"image": [image(1)]})
    with pytest.raises(DataError, match=r"lacks train-00001-of-00003\.parquet; download the rest"):
        import_data(tmp_path / "in", tmp_path / "out")
    (tmp_path / "in/train-00001-of-00003.parquet.incomplete").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"00003\.parquet\.incomplete is an unfinished download"):
        import_data(tmp_path / "in", tmp_path / "out")


def test_test_beside_validation_and_other_files_are_left_out_with_a_line(tmp_path: Path) -> None:
    for n, name in enumerate(["train", "val", "test", "extra"]):
        write(tmp_path / "in" / name / "0000.parquet", {"image": [image(n)]})
    said = import_data(tmp_path / "in", tmp_path / "out")
    assert (
        "left out: 2 files beside the training set (--validation-split, --no-keep-split): "
        "extra/0000.parquet, test/0000.parquet"
    ) in said
    assert seeds(packed(tmp_path / "out/train")) == [0]
    assert seeds(packed(tmp_path / "out/validation")) == [1]
    import_data(tmp_path / "in", tmp_path / "other", "--validation-split", "test")
    assert seeds(packed(tmp_path / "other/validation")) == [2]
    shutil.rmtree(tmp_path / "in/extra")
    import_data(tmp_path / "in", tmp_path / "all", *ALL, "--no-keep-split")
    assert seeds(packed(tmp_path / "all/train")) == [2, 0, 1], "the files are in order of name"


def test_a_split_that_is_not_there_is_refused(tmp_path: Path) -> None:
    for n, name in enumerate(["train", "eval"]):
        write(tmp_path / "in" / f"{name}.parquet", {"image": [image(n)]})
    with pytest.raises(DataError, match="--validation-split test: no file is named test"):
        import_data(tmp_path / "in", tmp_path / "out", "--validation-split", "test")
    import_data(tmp_path / "in", tmp_path / "out", "--validation-split", "validation")
    assert seeds(packed(tmp_path / "out/validation")) == [1]


def test_files_of_a_set_have_the_same_columns(tmp_path: Path) -> None:
    write(tmp_path / "in/train-0.parquet", {"image": [image(0)], "label": [1]})
    write(tmp_path / "in/train-1.parquet", {"image": [image(0)], "cls": [1]})
    with pytest.raises(DataError, match=r"train-1\.parquet has no column label, only image, cls"):
        import_data(tmp_path / "in", tmp_path / "out")


def test_tables_without_rows_and_other_files_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "in/x.parquet", {"image": []})
    with pytest.raises(DataError, match="hold no rows"):
        import_data(tmp_path / "in", tmp_path / "out")
    (tmp_path / "arrow").mkdir()
    (tmp_path / "arrow/data-00000-of-00001.arrow").write_bytes(b"")
    with pytest.raises(DataError, match=r"Arrow files of `datasets`: .* to_parquet"):
        import_data(tmp_path / "arrow", tmp_path / "out")
    with pytest.raises(DataError, match="does not exist"):
        import_data(tmp_path / "nowhere", tmp_path / "out")


def test_images_of_several_sizes_are_refused_as_in_packing(tmp_path: Path) -> None:
    columns = {"image": [{"bytes": encoded(n, 8 + n % 2), "path": None} for n in range(3)]}
    source = write(tmp_path / "x.parquet", columns)
    with pytest.raises(DataError, match=r"x\.parquet row 1 is 9x9, not 8x8.*give --size"):
        import_data(source, tmp_path / "out")
    import_data(source, tmp_path / "out", "--size", "4", *ALL)
    assert [s.images["image"].shape for s in packed(tmp_path / "out/train")] == [(4, 4, 3)] * 3


def test_a_dry_run_writes_nothing_but_the_report(tmp_path: Path) -> None:
    source = write(tmp_path / "x.parquet", {"image": [image(n) for n in range(3)]})
    report = tmp_path / "report.json"
    import_data(source, tmp_path / "out", "--dry-run", "--report", str(report))
    rows = json.loads(report.read_text())["files"]
    assert [row[0] for row in rows] == [f"x.parquet row {n}" for n in range(3)]
    assert not (tmp_path / "out").exists()


def test_one_huge_row_group_is_read_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first rows need a small part of the file, whatever its row groups are."""
    cells = [numpy.random.default_rng(n).bytes(1 << 20) for n in range(48)]
    path = write(
        tmp_path / "x.parquet", {"blob": cells}, data_page_size=1 << 20, write_batch_size=1
    )
    asked = []
    original = open_storage(str(tmp_path)).__class__.get_range

    def get_range(self: Any, key: str, start: int, length: int) -> bytes:
        asked.append(length)
        return original(self, key, start, length)

    monkeypatch.setattr("orchestrator.storage.local.FolderStorage.get_range", get_range)
    source = parquet_source.ParquetSource(open_storage(str(tmp_path)), [path.name], SplitChoice())
    before = pyarrow.total_allocated_bytes()
    scan = source.rows(_chosen(source), lambda _: False)
    row = next(scan)
    assert row.images == (cells[0],)
    assert sum(asked) < 40 << 20
    assert pyarrow.total_allocated_bytes() - before < 24 << 20
    assert max(asked) <= 8 << 20


def _chosen(source: parquet_source.ParquetSource) -> Any:
    from orchestrator.data.prepare.columns import choose_columns

    return choose_columns(ColumnChoice(), source.columns, source.where)


@pytest.mark.server
def test_parquet_in_a_bucket_is_read_by_ranges(s3: str, tmp_path: Path) -> None:
    columns = {
        "image": [image(n) for n in range(70)], "label": [n % 2 for n in range(70)],
        "ballast": [numpy.random.default_rng(n).bytes(20_000) for n in range(70)],
    }  # fmt: skip
    mark = features(image={"_type": "Image"})
    path = write(tmp_path / "in/train-0.parquet", columns, metadata=mark, row_group_size=20)
    open_storage(s3).put("data/train-0.parquet", path.read_bytes())
    import_data(tmp_path / "in", tmp_path / "a", *ALL)
    import_data(f"{s3}/data", tmp_path / "b", *ALL, "--workers", "1")
    first, second = digests(tmp_path / "a"), digests(tmp_path / "b")
    del first["pack-report.json"], second["pack-report.json"]
    assert first == second
    assert len(packed(tmp_path / "b/train")) == 70
    import_data(f"{s3}/data/train-0.parquet", tmp_path / "c", *ALL, "--workers", "1")
    assert digests(tmp_path / "c")["train/index.json"] == first["train/index.json"]


def test_grey_images_and_their_report_are_those_of_packing(tmp_path: Path) -> None:
    path = tmp_path / "g.png"
    Image.fromarray(noise(0)).convert("L").save(path)
    cells = [{"bytes": path.read_bytes(), "path": "g.png"}]
    said = import_data(
        write(tmp_path / "x.parquet", {"image": cells}), tmp_path / "out", "--grey", *ALL
    )
    assert "grey and packed" not in said
    (sample,) = packed(tmp_path / "out/train")
    expected = numpy.asarray(Image.open(path))
    assert sample.images["image"].tolist() == expected.tolist()


def test_files_in_folders_of_several_sets_are_refused_and_listed(tmp_path: Path) -> None:
    for name in ("en", "fr"):
        write(tmp_path / name / "train-00000-of-00001.parquet", {"image": [image(0), image(1)]})
    with pytest.raises(DataError, match=r"2 sets .*give one of them: .*/en, .*/fr"):
        find_source(str(tmp_path))
    assert find_source(str(tmp_path / "en")).num_rows == 2
    shards = tmp_path / "numbered"
    for name in ("00", "01"):
        write(shards / "data" / name / "x.parquet", {"image": [image(0), image(1)]})
    assert find_source(str(shards)).num_rows == 4


def test_numbers_of_classes_do_not_depend_on_the_order_of_a_set() -> None:
    column = Column("label", "text", "text")
    texts = ["001", "1", "01", "2", "10"]
    for values in itertools.permutations(texts):
        assert number_classes(column, values).names == ("001", "01", "1", "2", "10")

"""Tars as people have them: what the webdataset package reads is indexed and trained on.

The webdataset package itself is the oracle: its keys, bytes, classes and captions, in order.
"""

import io
import itertools
import os
import re
import subprocess
import tarfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.config.data_section import DataSection
from orchestrator.config.job import Job, TrainSection
from orchestrator.data.format.shard_index import open_set
from orchestrator.data.format.tar_members import sample_members
from orchestrator.data.format.tar_reader import HashingReader, TarReader
from orchestrator.data.loading.stream import ShardStream
from orchestrator.data.prepare.check import check_set
from orchestrator.data.prepare.export import export_images
from orchestrator.data.prepare.field_selection import FieldSelection
from orchestrator.data.prepare.index_tars import IndexOptions, index_set
from orchestrator.errors import DataError, UsageError
from orchestrator.storage.local import FolderStorage
from orchestrator.storage.open import open_storage
from support.sample_sets import SIZE, TinyConfig
from support.tars import all_samples, noise_image

APPLE_DOUBLE = b"\0\5\x16\7\0\2\0\0Mac OS X        " + bytes(100)
NUM = 6
JPEG = [noise_image(n, kind="JPEG") for n in range(NUM)]
PNG = [noise_image(n) for n in range(NUM)]
Entry = tuple[str, bytes] | tarfile.TarInfo


def write_entries(
    path: Path, entries: Iterable[Entry], tar_format: int = tarfile.GNU_FORMAT
) -> Path:
    """Write files, and members of other types, in their order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tar_format) as archive:
        for entry in entries:
            if isinstance(entry, tarfile.TarInfo):
                archive.addfile(entry)
                continue
            info = tarfile.TarInfo(entry[0])
            info.size = len(entry[1])
            archive.addfile(info, io.BytesIO(entry[1]))
    return path


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def by_webdataset(folder: Path) -> list[dict[str, Any]]:
    tars = sorted(str(path) for path in folder.glob("[!.]*.tar"))
    return list(webdataset.WebDataset(tars, shardshuffle=False, empty_check=False))


def expected_samples(folder: Path, *endings: str) -> list[dict[str, bytes]]:
    """What webdataset reads, with the first of ``endings`` as the image."""
    found = []
    for sample in by_webdataset(folder):
        image = next(sample[ending] for ending in endings if ending in sample)
        found.append({"image": image} | {k: sample[k] for k in ("cls", "txt") if k in sample})
    return found


def each(make: Callable[[int], Iterable[Entry]]) -> list[Entry]:
    return [entry for n in range(NUM) for entry in make(n)]


def standard(n: int, folder: str = "") -> list[tuple[str, bytes]]:
    return [(f"{folder}{n:05d}.cls", b"%d" % (n % 2)), (f"{folder}{n:05d}.jpg", JPEG[n])]


def with_apple_doubles(n: int) -> list[Entry]:
    return [
        e
        for name, data in standard(n, "./")
        for e in ((f"./._{name[2:]}", APPLE_DOUBLE), (name, data))
    ]


CASES: dict[str, tuple[list[Entry], str]] = {
    "macOS files": (each(with_apple_doubles), "12 macOS files"),
    "a .DS_Store": ([("./.DS_Store", bytes(100)), *each(standard)], "1 macOS files"),
    "files without an ending": (
        [("README", b"x"), *each(standard), ("LICENSE", b"y")],
        "2 files without an ending .* such as README",
    ),
    "webdataset's own": (
        [("__meta__", b"x"), ("__files__/0.jpg", b"x"), *each(standard), ("__a.jpg__", b"x")],
        "3 files of webdataset's own",
    ),
    "folders": ([special("a", tarfile.DIRTYPE), *each(lambda n: standard(n, "a/"))], "1 folders"),
    "links": (
        [*each(standard), special("x.jpg", tarfile.SYMTYPE, "/etc/passwd"),
         special("y.jpg", tarfile.LNKTYPE, "00000.jpg")],
        "2 links .* such as x.jpg",
    ),
    "links between the files of a sample": (
        each(lambda n: [standard(n)[0], special(f"{n}.png", tarfile.SYMTYPE, "x"), standard(n)[1]]),
        "6 links",
    ),
    "a fifo and a device": (
        [special("0.jpg", tarfile.FIFOTYPE), special("1.jpg", tarfile.CHRTYPE), *each(standard)],
        "2 special files",
    ),
    "endings in upper case": (
        each(lambda n: [(f"{n}.CLS", b"1"), (f"{n}.{'JPG' if n % 2 else 'jpg'}", JPEG[n])]), "",
    ),
    "JPEG and PNG": (
        each(lambda n: [(f"{n}.png", PNG[n]) if n % 2 else (f"{n}.jpg", JPEG[n])]),
        "images of image have several endings: 3 .png, 3 .jpg",
    ),
    "jpeg and webp": (
        each(lambda n: [(f"{n}.webp", PNG[n]) if n % 2 else (f"{n}.jpeg", JPEG[n])]),
        "3 .webp, 3 .jpeg",
    ),
    "bmp": (each(lambda n: [(f"{n}.bmp", noise_image(n, kind="BMP"))]), ""),
    "keys with folders and dots in folders": (each(lambda n: standard(n, f"v1.2/{n % 2}/")), ""),
    "names that lead out": (each(lambda n: standard(n, "../")), ""),
    "absolute names": (each(lambda n: standard(n, "/data/")), ""),
    "long names": (each(lambda n: standard(n, "f" * 150 + "/" + "g" * 150 + "/")), ""),
    "names that are not UTF-8": (each(lambda n: standard(n, "caf\udce9/")), ""),
    "names with control characters and emoji": (each(lambda n: standard(n, "a\t\u200d🏳️‍🌈/")), ""),
    "the same keys again": ([*each(standard), *each(standard)], ""),
    "classes with a line feed": (each(lambda n: [(f"{n}.jpg", JPEG[n]), (f"{n}.cls", b"1\n")]), ""),
    "many other members": (
        each(lambda n: [*standard(n), *((f"{n:05d}.{k}.npy", b"x") for k in range(100))]), "",
    ),
    "a pickle": (each(lambda n: [*standard(n), (f"{n:05d}.pkl", b"cos\nsystem\n(S'x'\ntR.")]), ""),
}  # fmt: skip


@pytest.mark.parametrize("tar_format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("case", CASES)
def test_what_webdataset_reads_is_indexed(tmp_path: Path, case: str, tar_format: int) -> None:
    entries, note = CASES[case]
    write_entries(tmp_path / "x.tar", entries, tar_format)
    notes = "\n".join(index_set(str(tmp_path)).notes)
    if note:
        assert re.search(note, notes), notes
    else:
        assert notes == ""
    expected = expected_samples(tmp_path, "jpg", "png", "jpeg", "webp", "bmp")
    assert len(expected) in (NUM, 2 * NUM)
    assert all_samples(tmp_path) == expected
    assert check_set(str(tmp_path)).ok
    where = open_storage(str(tmp_path))
    keys = [sample.key for sample in TarReader(HashingReader(where, "x.tar"), "here")]
    assert keys == [sample["__key__"] for sample in by_webdataset(tmp_path)]


def train_on(folder: Path, batch_size: int = 2) -> list[bytes]:
    """The pixels of one epoch."""
    job = Job(
        name="test",
        model=TinyConfig(name="tiny", image_size=SIZE),
        data=DataSection(train=str(folder), threads=1),
        train=TrainSection(epochs=1, batch_size=batch_size, seed=5),
    )
    stream = ShardStream(job, 0, 1)
    batches = stream.training(0)
    taken = list(itertools.islice(batches, stream.num_samples // batch_size))
    batches.close()
    assert stream.counts()["corrupt_samples"] == 0
    pixels = [image for batch in taken for image in batch.images]
    return [((p + 1) * 127.5).round().byte().permute(1, 2, 0).numpy().tobytes() for p in pixels]


@pytest.mark.parametrize(
    "case", ["macOS files", "links between the files of a sample", "JPEG and PNG", "long names"]
)
def test_what_webdataset_reads_is_trained_on(tmp_path: Path, case: str) -> None:
    write_entries(tmp_path / "x.tar", CASES[case][0])
    index_set(str(tmp_path))
    decoded = webdataset.WebDataset(
        str(tmp_path / "x.tar"), shardshuffle=False, empty_check=False
    ).decode("rgb8")
    expected = [s["jpg" if "jpg" in s else "png"].tobytes() for s in decoded]
    assert sorted(train_on(tmp_path)) == sorted(expected)


def test_macos_files_in_folders_do_not_split_samples(tmp_path: Path) -> None:
    """Here webdataset takes a/._00000.jpg for a file of a sample called "a/"; we do not."""
    files = [e for e in each(lambda n: standard(n, "a/")) if isinstance(e, tuple)]
    doubled = [
        e for name, data in files for e in ((name.replace("/", "/._"), APPLE_DOUBLE), (name, data))
    ]
    write_entries(tmp_path / "plain/x.tar", files)
    extra = [("a/.DS_Store", b"x"), ("__MACOSX/a/._00000.jpg", APPLE_DOUBLE), ("a/Thumbs.db", b"x")]
    write_entries(tmp_path / "mac/x.tar", [*doubled, *extra])
    index_set(str(tmp_path / "plain"))
    notes = index_set(str(tmp_path / "mac")).notes
    assert [note[:24] for note in notes] == ["14 macOS files (._NAME, ", "1 Windows files (Thumbs."]
    assert all_samples(tmp_path / "mac") == all_samples(tmp_path / "plain")


def test_the_first_of_several_endings_is_the_image(tmp_path: Path) -> None:
    """--image png,jpg: PNG where a sample has both."""
    entries = each(
        lambda n: [
            (f"{n}.jpg", JPEG[n]),
            *([(f"{n}.png", PNG[n])] if n % 2 else []),
            (f"{n}.seg.png", b"mask"),
        ]
    )
    write_entries(tmp_path / "x.tar", entries)
    with pytest.raises(UsageError, match=r"0 holds jpg, seg\.png: choose the image with --image"):
        index_set(str(tmp_path))
    with pytest.raises(UsageError, match=r"but no webp or gif"):
        index_set(str(tmp_path), IndexOptions(FieldSelection(image="webp,gif")))
    summary = index_set(str(tmp_path), IndexOptions(FieldSelection(image=".PNG, jpg")))
    assert summary.index.fields == {"image": "png,jpg"}
    assert all_samples(tmp_path) == expected_samples(tmp_path, "png", "jpg")
    export_images(open_set(str(tmp_path)), tmp_path / "out", "image")
    names = [f"{n:06d}.{'png' if n % 2 else 'jpg'}" for n in range(NUM)]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names


def test_pairs_may_have_mixed_endings(tmp_path: Path) -> None:
    def pair(n: int) -> list[Entry]:
        return [(f"{n}.in.{'png' if n % 2 else 'JPG'}", PNG[n]), (f"{n}.out.jpg", JPEG[n])]

    write_entries(tmp_path / "x.tar", each(pair))
    options = IndexOptions(FieldSelection(a="in.png,in.jpg", b="out.jpg"))
    assert index_set(str(tmp_path), options).index.fields == {"a": "in.png,in.jpg", "b": "out.jpg"}
    assert all_samples(tmp_path) == [{"a": PNG[n], "b": JPEG[n]} for n in range(NUM)]


def test_files_that_differ_in_case_only_are_refused_as_by_webdataset(tmp_path: Path) -> None:
    write_entries(tmp_path / "x.tar", [("0.jpg", JPEG[0]), ("0.JPG", JPEG[1])])
    with pytest.raises(ValueError, match="duplicate file name"):
        by_webdataset(tmp_path)
    with pytest.raises(DataError, match=r"x\.tar, 0 has two members called 'jpg'"):
        index_set(str(tmp_path))


def test_a_set_indexed_with_one_case_is_read_as_before(tmp_path: Path) -> None:
    """Older versions took the ending as it is, also beside the same in the other case."""
    write_entries(tmp_path / "x.tar", [("0.JPG", JPEG[0]), ("1.JPG", JPEG[1])])
    index = index_set(str(tmp_path)).index
    old = index.model_copy(update={"fields": {"image": "JPG"}}).with_digest()
    (tmp_path / "index.json").write_bytes(old.to_json())
    assert [sample["image"] for sample in all_samples(tmp_path)] == JPEG[:2]
    packed = open_set(str(tmp_path))
    both = write_entries(tmp_path / "both", [("0.jpg", JPEG[2]), ("0.JPG", JPEG[3])]).read_bytes()
    assert packed.split_members(both, "here")["image"] == JPEG[3]


def test_a_tar_without_its_end_is_read_with_a_note(tmp_path: Path) -> None:
    whole = write_entries(tmp_path / "x.tar", each(standard)).read_bytes()
    end = len(whole.rstrip(b"\0")) // 512 * 512 + 512
    (tmp_path / "x.tar").write_bytes(whole[:end])
    assert "x.tar have no end-of-archive marker" in index_set(str(tmp_path)).notes[0]
    assert all_samples(tmp_path) == expected_samples(tmp_path, "jpg")
    assert check_set(str(tmp_path)).ok


def test_a_tar_of_before_posix_is_read(tmp_path: Path) -> None:
    (tmp_path / "in/deep").mkdir(parents=True)
    for name, data in (entry for n in range(NUM) for entry in standard(n, "deep/")):
        (tmp_path / "in" / name).write_bytes(data)
    command = ["tar", "--format=v7", "--sort=name", "-cf", "x.tar", "-C", "in", "."]
    subprocess.run(command, cwd=tmp_path, check=True)
    assert index_set(str(tmp_path)).notes[0].startswith("2 folders")
    assert all_samples(tmp_path) == expected_samples(tmp_path, "jpg")


def test_numbers_in_base_256_and_signed_checksums_are_read(tmp_path: Path) -> None:
    data = bytearray(write_entries(tmp_path / "x.tar", each(standard)).read_bytes())
    at = 0
    while any(data[at : at + 512]):
        size = int(data[at + 124 : at + 135], 8)
        data[at + 124 : at + 136] = b"\x80" + size.to_bytes(11, "big")
        data[at + 265] = 0xE9  # the owner's name
        data[at + 148 : at + 156] = b" " * 8
        signed = sum(byte - 256 * (byte > 127) for byte in data[at : at + 512])
        data[at + 148 : at + 156] = b"%06o\0 " % signed
        at += 512 + -(-size // 512) * 512
    (tmp_path / "x.tar").write_bytes(data)
    index_set(str(tmp_path))
    assert all_samples(tmp_path) == expected_samples(tmp_path, "jpg")


def test_sparse_and_compressed_tars_are_refused_with_advice(tmp_path: Path) -> None:
    (tmp_path / "0.jpg").touch()
    os.truncate(tmp_path / "0.jpg", 1 << 20)
    for form in ("gnu", "pax"):
        command = ["tar", f"--format={form}", "--sparse", "-cf", "x.tar", "0.jpg"]
        subprocess.run(command, cwd=tmp_path, check=True)
        with pytest.raises(DataError, match="sparse file"):
            index_set(str(tmp_path))
    for flag, name in (("-z", "gzip"), ("-j", "bzip2"), ("-J", "xz")):
        subprocess.run(["tar", flag, "-cf", "x.tar", "0.jpg"], cwd=tmp_path, check=True)
        with pytest.raises(DataError, match=rf"compressed \({name}\) .* decompress it"):
            index_set(str(tmp_path))


def test_names_of_tars_may_have_spaces_and_hidden_ones_are_passed_over(tmp_path: Path) -> None:
    write_entries(tmp_path / "my set (1).tar", each(standard))
    (tmp_path / "._my set (1).tar").write_bytes(APPLE_DOUBLE)
    notes = index_set(str(tmp_path)).notes
    assert notes == ("passed over: 1 hidden tar files, such as ._my set (1).tar",)
    assert all_samples(tmp_path) == expected_samples(tmp_path, "jpg")
    assert check_set(str(tmp_path)).ok


NAMES = (
    "a/0.jpg", "a/0.cls", "1.jpg", "1.JPG", "1.x.txt", "b.c/2.jpg", "._1.jpg", ".x", "README",
    "__m__", "__m__/3.jpg", "a/", "4.", "é.jpg", "é.txt", "n" * 120 + ".jpg", "../5.jpg",
)  # fmt: skip
KINDS = (
    tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE,
    tarfile.DIRTYPE, tarfile.FIFOTYPE, b"Z", b"V",
)  # fmt: skip
FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)


@st.composite
def archives(draw: st.DrawFn) -> bytes:
    """Members of all kinds and names in any order, sometimes without an end."""
    buffer = io.BytesIO()
    archive = tarfile.open(fileobj=buffer, mode="w")  # noqa: SIM115 - it may lack its end
    for name in draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=12)):
        info = tarfile.TarInfo(name)
        info.type = draw(st.sampled_from(KINDS[:1] * 8 + KINDS))
        info.mtime = draw(st.sampled_from([0, 1.5]))
        is_folder = info.type == tarfile.AREGTYPE and name.endswith("/")
        has_content = info.type in (*KINDS[:3], b"Z", b"V") and not is_folder
        content = draw(st.binary(max_size=600)) if has_content else b""
        info.size, archive.format = len(content), draw(st.sampled_from(FORMATS[1:]))
        archive.addfile(info)
        buffer.write(content + bytes(-len(content) % 512))
        archive.offset = buffer.tell()
    return buffer.getvalue() + bytes(draw(st.sampled_from([0, 512, 1024, 10240])))


class TarInMemory(FolderStorage):
    """A storage that holds one file."""

    def __init__(self, data: bytes) -> None:
        super().__init__(Path("nowhere"))
        self.data = data

    def size(self, key: str) -> int:
        return len(self.data)

    def get_range(self, key: str, start: int, length: int) -> bytes:
        return self.data[start : start + length]


def grouped_by_webdataset(data: bytes) -> list[tuple[str, dict[str, bytes]]]:
    """Samples of an archive, without the hidden files that webdataset takes for samples."""
    members = webdataset.tariterators.tar_file_iterator(io.BytesIO(data))
    files: Iterable[dict[str, Any]] = (
        {**member, "__url__": ""}
        for member in members
        if not member["fname"].rpartition("/")[2].startswith(".")
    )
    return [
        (sample["__key__"], ends_of(sample))
        for sample in webdataset.tariterators.group_by_keys(files)
    ]


def ends_of(sample: Mapping[str, bytes]) -> dict[str, bytes]:
    return {name: data for name, data in sample.items() if not name.startswith("__")}


@settings(deadline=None, max_examples=400)
@given(data=archives())
def test_any_archive_is_grouped_into_samples_as_by_webdataset(data: bytes) -> None:
    try:
        expected = grouped_by_webdataset(data)
    except (ValueError, tarfile.ReadError):
        expected = None  # the same name twice in a sample, which we refuse when it is split
    found, twice = [], False
    try:
        for sample in TarReader(HashingReader(TarInMemory(data), "x"), "here"):
            members = sample_members(sample.data, "here")
            twice |= len({ending.lower() for ending in members}) < len(members)
            found.append((sample.key, {e.lower(): bytes(v) for e, v in members.items()}))
    except DataError:
        assert expected is None
    else:
        assert twice if expected is None else found == expected

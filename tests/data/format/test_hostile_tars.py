"""Hostile archives: nothing is run, written or followed, and only DataError is raised."""

import contextlib
import hashlib
import io
import itertools
import tarfile
import tracemalloc
import zlib
from itertools import islice
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from orchestrator.data.format import sample_table
from orchestrator.data.format.index_entries import Shard
from orchestrator.data.format.shard_index import Index, open_set
from orchestrator.data.format.tar_members import MAX_MEMBERS, sample_members
from orchestrator.data.loading.stream import ShardStream
from orchestrator.data.prepare.check import check_set
from orchestrator.errors import CorruptSample, DataError
from support.encoded_images import LOSSLESS, SIZE, corrupted, encode
from support.sample_sets import job_for

PNG = LOSSLESS["PNG"]


def header(name: str, size: int = 0, **changes: object) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = size
    for attribute, value in changes.items():
        setattr(info, attribute, value)
    return info.tobuf(tarfile.USTAR_FORMAT, "utf-8", "surrogateescape")


def member(name: str, data: bytes, **changes: object) -> bytes:
    return header(name, len(data), **changes) + data + bytes(-len(data) % 512)


def record(keyword: str, value: str) -> bytes:
    rest = f" {keyword}={value}\n".encode()
    length = len(rest) + len(str(len(rest)))
    length = len(rest) + len(str(length))
    return str(length).encode() + rest


def pax(*records: tuple[str, str]) -> bytes:
    return member("pax", b"".join(record(*each) for each in records), type=b"x")


def with_field(head: bytes, at: int, field: bytes) -> bytes:
    """A header with another field and the matching checksum."""
    changed = bytearray(head)
    changed[at : at + len(field)] = field
    changed[148:156] = b" " * 8
    changed[148:156] = b"%06o\0 " % sum(changed)
    return bytes(changed)


GOOD = member("k.image.png", PNG)
HOSTILE_TARS = {
    "symbolic link": header("k.image.png", type=b"2", linkname="/etc/passwd"),
    "character device": header("k.image.png", type=b"3", devmajor=1, devminor=5),
    "block device": header("k.image.png", type=b"4", devmajor=8),
    "fifo": header("k.image.png", type=b"6"),
    "folder with content": member("k.image.png", PNG, type=b"5"),
    "sparse file": member("k.image.png", PNG, type=b"S"),
    "unknown type": member("k.image.png", PNG, type=b"Z"),
    "name that ends outside": member("a/..", PNG),
    "name of no file": member("a/", PNG),
    "pax name with a zero": pax(("path", "/")) + GOOD,
    "long pax name": pax(("path", "k." + "x" * 5000)) + GOOD,
    "pax size": pax(("size", "3")) + GOOD,
    "negative pax size": pax(("mtime", "1.5"), ("size", "-512")) + GOOD,
    "pax sparse file": pax(("GNU.sparse.major", "1"), ("GNU.sparse.realsize", "1" * 20)) + GOOD,
    "pax without lengths": member("pax", b"x path=../y\n", type=b"x") + GOOD,
    "pax with a wrong length": member("pax", b"999 path=y\n", type=b"x") + GOOD,
    "pax with length zero": member("pax", b"9 path=y\n0 path=z\n", type=b"x") + GOOD,
    "digits without end": member("pax", b"1" * 500_000 + b" path=", type=b"x") + GOOD,
    "global pax header": member("pax", record("path", "../../escaped.png"), type=b"g") + GOOD,
    "GNU name without end": member("long", b"k." + b"x" * 5000, type=b"L") + GOOD,
    "size in base 256": with_field(GOOD[:512], 124, b"\x80" + bytes(9) + b"\x01\0") + GOOD[512:],
    "negative size in base 256": with_field(GOOD[:512], 124, b"\xff" * 12) + GOOD[512:],
    "negative size": with_field(GOOD[:512], 124, b"-0000001000\0") + GOOD[512:],
    "size of 8 GiB": with_field(GOOD[:512], 124, b"77777777777\0") + GOOD[512:],
    "size of 12 digits": with_field(GOOD[:512], 124, b"777777777777") + GOOD[512:],
    "size in letters": with_field(GOOD[:512], 124, b"three hundred") + GOOD[512:],
    "wrong checksum": GOOD[:148] + b"000000\0 " + GOOD[156:],
    "same name twice": GOOD + GOOD,
    "same extension twice": GOOD + member("./k.image.png", PNG),
    "another key": GOOD + member("j.b.png", PNG),
    "another folder": GOOD + member("folder/k.b.png", PNG),
    "cut in the content": GOOD[:700],
    "cut in the padding": GOOD[:-1],
    "no files": bytes(1024),
    "no bytes": b"",
    "no tar": b"x" * 2048,
    "a pickle": b"cos\nsystem\n(S'touch escaped.png'\ntR." + bytes(1000),
    "too many members": b"".join(member(f"k.{n}", b"x") for n in range(MAX_MEMBERS + 1)),
    "100,000 members": GOOD + member("j.x", b"") * 100_000,
    "20,000 pax headers": pax(("mtime", "1.5")) * 20_000 + header("k.image.png", type=b"2"),
    "20,000 long names": member("long", b"k.image.png\0", type=b"L") * 20_000,
    "a name of 10 MB": member("long", b"x" * 10_000_000, type=b"L") + GOOD,
}
HARMLESS_TARS = {
    "hard link": GOOD + header("k.b.png", type=b"1", linkname="k.image.png"),
    "symbolic link": GOOD + header("k.b.png", type=b"2", linkname="/etc/passwd"),
    "device": GOOD + header("k.b.png", type=b"3", devmajor=1, devminor=5),
    "fifo": GOOD + header("k.b.png", type=b"6"),
    "unknown type": GOOD + member("k.b.png", PNG, type=b"Z"),
    "name that leads out": member("../../escaped.image.png", PNG),
    "name that leads out in the middle": member("a/../../../escaped.image.png", PNG),
    "name with an escape code": member("\x1b[2Jk.image.png", PNG),
    "name with half a character": member("\udcffk.image.png", PNG),
    "pax name that leads out": pax(("path", "../../escaped.image.png")) + GOOD,
    "pax link": pax(("linkpath", "/etc/passwd")) + GOOD,
    "pax comment of all": member("pax", record("comment", "by git"), type=b"g") + GOOD,
    "GNU name that leads out": member("long", b"../../escaped.image.png\0", type=b"L") + GOOD,
    "GNU link name": member("long", b"/etc/passwd\0", type=b"K") + GOOD,
}
"""A name is never a path, and nothing but files is read: webdataset reads these, too."""


@pytest.mark.parametrize("kind", HARMLESS_TARS)
def test_names_are_never_paths_and_links_are_passed_over(kind: str) -> None:
    data = HARMLESS_TARS[kind]
    assert sample_members(data, "here") == {"image.png": PNG} == by_tarfile(data)


@pytest.mark.parametrize("kind", HOSTILE_TARS)
def test_a_hostile_archive_is_a_corrupt_sample_and_costs_no_memory(kind: str) -> None:
    data = HOSTILE_TARS[kind]
    tracemalloc.start()
    try:
        with pytest.raises(CorruptSample) as caught:
            sample_members(data, "here")
        assert tracemalloc.get_traced_memory()[1] < len(data) // 8 + 2_000_000
    finally:
        tracemalloc.stop()
    assert str(caught.value).startswith("here")
    assert len(str(caught.value)) < 500
    assert str(caught.value).isprintable()


def test_a_pickle_beside_the_image_is_not_loaded() -> None:
    pickled = b"cos\nsystem\n(S'exit 1'\ntR."
    found = sample_members(GOOD + member("k.pkl", pickled), "here")
    assert found == {"image.png": PNG, "pkl": pickled}


def test_a_folder_before_its_files_is_ignored() -> None:
    folder = header("a", type=b"5")
    assert sample_members(folder + member("a/k.cls", b"7"), "here") == {"cls": b"7"}


def test_bytes_after_the_end_of_an_archive_are_ignored() -> None:
    assert [*sample_members(GOOD + bytes(1024) + member("j.b.png", PNG), "here")] == ["image.png"]


def by_tarfile(data: bytes) -> dict[str, bytes]:
    """The files of one sample as tarfile reads them, without those that belong to none."""
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
        files = {each.name: each for each in tar if each.isreg()}
        content = {name: tar.extractfile(file) for name, file in files.items()}
    bases = {name: name.rpartition("/")[2].partition(".") for name in content}
    return {
        bases[name][2]: file.read()
        for name, file in content.items()
        if file is not None and bases[name][0] and bases[name][1]
    }


FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
keys = st.sampled_from(["k", "żółw", "folder/" * 20 + "k", "/abs/k", "./k", "k" * 90, "0" * 8])
contents = st.dictionaries(
    st.sampled_from(["image.png", "cls", "txt", "json", "a.b.c", "kółko", "x" * 60, "pkl"]),
    st.binary(max_size=1200),
    min_size=1,
)


def tar_of(form: str, key: str, files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=FORMATS[form]) as tar:
        for extension, content in files.items():
            info = tarfile.TarInfo(f"{key}.{extension}")
            info.size, info.uname, info.mode = len(content), "ż", 0o755
            info.mtime = 1234567890.25 if form == "pax" else 1234567890
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@settings(deadline=None, max_examples=100)
@given(form=st.sampled_from([*FORMATS]), key=keys, files=contents)
def test_regular_archives_of_every_format_are_read_as_by_tarfile(
    form: str, key: str, files: dict[str, bytes]
) -> None:
    assume(form != "ustar" or "k" * 40 not in key)  # ustar has no room for longer names
    data = tar_of(form, key, files)
    assert sample_members(data, "here") == files == by_tarfile(data)


TARS = [
    tar_of(f, key, {"image.png": PNG[:700], "cls": b"7"}) for f in FORMATS for key in ("k", "ż")
]
TARS += [GOOD + header("k", type=b"2"), pax(("path", "a/k.a"), ("size", "3")) + GOOD]


def _has_invalid_header(data: bytes) -> bool:
    """Whether tarfile rejects a block that has the magic of a header."""
    for at in range(0, len(data) - 511, 512):
        block = data[at : at + 512]
        if block[257:262] == b"ustar":
            try:
                tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            except tarfile.HeaderError:
                return True
    return False


@settings(deadline=None, max_examples=600)
@given(data=corrupted(TARS), fix_checksums=st.booleans())
def test_corrupted_archives_are_rejected_or_read_as_by_tarfile(
    data: bytes, fix_checksums: bool
) -> None:
    if fix_checksums:
        blocks = [data[at : at + 512] for at in range(0, len(data), 512)]
        heads = (b[257:262] == b"ustar" and len(b) == 512 for b in blocks)
        pairs = zip(blocks, heads, strict=True)
        data = b"".join(with_field(b, 0, b"") if head else b for b, head in pairs)
    try:
        found = sample_members(data, "here")
    except CorruptSample:
        return
    # tarfile also parses owners, modes and times: at one that is invalid it raises in the first
    # header and ends silently in a later one.
    with contextlib.suppress(tarfile.ReadError):
        theirs = by_tarfile(data)
        ours = [(name, bytes(content)) for name, content in found.items()]
        assert list(theirs.items()) == ours[: len(theirs)]
        assert len(theirs) == len(found) or _has_invalid_header(data)


def write_set_of(root: Path, samples: list[bytes]) -> str:
    """Write a set of these samples with valid checksums."""
    root.mkdir(parents=True)
    samples = [data + bytes(-len(data) % 512) for data in samples]
    offsets = [0, *itertools.accumulate(map(len, samples))]
    table = sample_table.encode(offsets, [zlib.crc32(data) for data in samples])
    data = b"".join(samples) + bytes(1024)
    shard = Shard(
        name="000000.tar",
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        samples=len(samples),
        table_crc32=zlib.crc32(table),
    )
    index = Index(
        fields={"image": "image.png"},
        image_size=SIZE,
        channels=3,
        num_samples=len(samples),
        shards=(shard,),
    ).with_digest()
    (root / shard.name).write_bytes(data)
    (root / shard.table).write_bytes(table)
    (root / "index.json").write_bytes(index.to_json())
    return str(root)


HOSTILE = [
    *(data for kind, data in HOSTILE_TARS.items() if 0 < len(data) < 100_000 and "cut" not in kind),
    member("k.png", PNG),
    member("k.image.png", b""),
    member("k.image.png", PNG[:-30]),
    member("k.image.png", b"cos\nsystem\n(S'touch escaped.png'\ntR."),
    member("k.image.png", b"<svg xmlns='http://www.w3.org/2000/svg' width='24' height='24'/>"),
]
"""Small samples that are all corrupt."""


def test_a_set_of_hostile_samples_raises_data_errors_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = write_set_of(tmp_path / "deep" / "set" / "train", [GOOD, *HOSTILE])
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    monkeypatch.chdir(uri)
    packed = open_set(uri)
    for number in range(1, packed.num_samples):
        with pytest.raises(CorruptSample, match=rf"000000\.tar, sample {number}"):
            packed.decode_image(packed.read(0, number)["image"], f"000000.tar, sample {number}")
    assert len(check_set(uri).problems) == len(HOSTILE)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_training_replaces_hostile_samples_by_their_neighbors(tmp_path: Path) -> None:
    colours = [(number, 0, 0) for number in range(len(HOSTILE))]
    good = [encode(Image.new("RGB", (SIZE, SIZE), colour), "PNG") for colour in colours]
    samples = [
        (bad, member("k.image.png", image)) for bad, image in zip(HOSTILE, good, strict=True)
    ]
    write_set_of(tmp_path / "train", [data for both in samples for data in both])
    count = 2 * len(HOSTILE) // 8

    job = job_for(str(tmp_path), image_size=SIZE, max_corrupt_fraction=0.6, validation=None)
    batches = ShardStream(job, 0, 1).training(0)
    try:
        images = torch.cat([batch.images for batch in islice(batches, count)])
    finally:
        batches.close()
    reds = ((images[:, 0, 0, 0] + 1) * 127.5).round().int().tolist()
    assert len(reds) == 8 * count
    assert set(reds) <= set(range(len(HOSTILE)))
    assert {reds.count(red) for red in reds} <= {1, 2}

    job = job_for(str(tmp_path), image_size=SIZE, max_corrupt_fraction=0.1, validation=None)
    batches = ShardStream(job, 0, 1).training(0)
    allowed = int(0.1 * 2 * len(HOSTILE))
    with pytest.raises(DataError, match=rf"corrupt_fraction allows {allowed}; .*000000\.tar"):
        list(islice(batches, count))

"""The shard format: what tar tools read, what is verified, and what is rejected."""

import hashlib
import io
import json
import pickle
import struct
import subprocess
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from orchestrator.data.format import sample_table
from orchestrator.data.format.shard_index import ShardSet, open_set
from orchestrator.data.format.tar_members import sample_members
from orchestrator.data.format.writer import ShardWriter
from orchestrator.data.prepare.check import check_set
from orchestrator.errors import DataError

SIZE = 8


def png(seed: int, size: int = SIZE, mode: str = "RGB") -> bytes:
    content = hashlib.shake_128(str(seed).encode()).digest(size * size * len(mode))
    buffer = io.BytesIO()
    Image.frombytes(mode, (size, size), content).save(buffer, "PNG")
    return buffer.getvalue()


def pair(number: int) -> dict[str, bytes]:
    return {"a": png(2 * number), "b": png(2 * number + 1)}


def write_pairs(uri: str, count: int, shard_bytes: int = 8000) -> ShardSet:
    writer = ShardWriter(uri, ("a", "b"), image_size=SIZE, channels=3, shard_bytes=shard_bytes)
    for number in range(count):
        writer.add(f"key{number}", pair(number))
    writer.finish()
    return open_set(uri)


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.server)])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        return str(request.getfixturevalue("s3"))
    return str(tmp_path / "set")


def test_every_sample_is_read_back_from_a_folder_and_from_s3(uri: str) -> None:
    packed = write_pairs(uri, 10)
    assert packed.num_samples == 10
    assert (packed.fields, packed.image_size, packed.channels) == (("a", "b"), SIZE, 3)
    assert len(packed.shard_sizes) > 2, "the test needs several shards"
    places = [(s, i) for s, size in enumerate(packed.shard_sizes) for i in range(size)]
    assert [packed.read(*where) for where in places] == [pair(n) for n in range(10)]
    assert check_set(uri).ok


def test_tar_tools_read_a_shard(tmp_path: Path) -> None:
    write_pairs(str(tmp_path), 3, shard_bytes=1 << 20)
    listed = subprocess.run(
        ["tar", "-tvf", tmp_path / "000000.tar"], capture_output=True, text=True, check=True
    )
    assert listed.stderr == ""
    names = [line.split()[-1] for line in listed.stdout.splitlines()]
    assert names == [f"key{n}.{field}.png" for n in range(3) for field in "ab"]
    with tarfile.open(tmp_path / "000000.tar") as tar:
        member = tar.extractfile("key1.b.png")
        assert member is not None
        assert member.read() == pair(1)["b"]
        assert {(m.mtime, m.uid, m.gid, m.mode) for m in tar} == {(0, 0, 0, 0o644)}


def test_the_table_locates_each_sample_in_8_bytes(tmp_path: Path) -> None:
    write_pairs(str(tmp_path), 5)
    index = json.loads((tmp_path / "index.json").read_text())
    for shard in index["shards"]:
        data = (tmp_path / shard["name"]).read_bytes()
        assert shard["bytes"] == len(data)
        assert shard["sha256"] == hashlib.sha256(data).hexdigest()
        table = (tmp_path / f"{shard['name']}.idx").read_bytes()
        assert shard["table_crc32"] == zlib.crc32(table)
        entries = list(struct.iter_unpack("<II", table))
        with tarfile.open(tmp_path / shard["name"]) as tar:
            starts = [m.offset for m in tar if m.name.endswith(".a.png")]
        assert len(entries) == shard["samples"] == len(starts)
        for (blocks, crc), start, end in zip(entries, starts, [*starts[1:], None], strict=True):
            assert zlib.crc32(data[start : start + 512 * blocks]) == crc
            assert end in (None, start + 512 * blocks)


def test_equal_samples_give_equal_bytes_and_digest(tmp_path: Path) -> None:
    one = write_pairs(str(tmp_path / "one"), 6)
    two = write_pairs(str(tmp_path / "two"), 6)
    other = write_pairs(str(tmp_path / "other"), 7)
    assert one.digest == two.digest != other.digest
    for name in ("000000.tar", "000001.tar", "index.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_shards_stay_below_their_limit_but_contain_at_least_one_sample(tmp_path: Path) -> None:
    packed = write_pairs(str(tmp_path / "small"), 10, shard_bytes=9000)
    assert all(shard.num_bytes <= 9000 for shard in packed.index.shards)
    packed = write_pairs(str(tmp_path / "tiny"), 3, shard_bytes=1)
    assert packed.shard_sizes == (1, 1, 1)


def test_a_set_is_never_overwritten(tmp_path: Path) -> None:
    write_pairs(str(tmp_path), 1)
    with pytest.raises(DataError, match=r"already a packed set at .*; remove it"):
        write_pairs(str(tmp_path), 1)


def test_a_missing_set_is_an_error_with_the_command_to_write_one(tmp_path: Path) -> None:
    writer = ShardWriter(str(tmp_path / "x" / "train"), ("image",), image_size=SIZE, channels=3)
    writer.add("k", {"image": png(0)})
    with pytest.raises(DataError) as caught:
        open_set(str(tmp_path / "x" / "train"))
    assert f"orchestrator data fetch openmoji {tmp_path / 'x'} --size 64" in str(caught.value)
    assert f"orchestrator data pack FOLDER {tmp_path / 'x'}" in str(caught.value)


def test_an_open_set_can_be_pickled(uri: str) -> None:
    packed = write_pairs(uri, 2)
    assert pickle.loads(pickle.dumps(packed)).read(0, 1) == pair(1)


def flip_bit(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def test_a_flipped_bit_is_detected_by_reading_and_by_the_check(tmp_path: Path) -> None:
    packed = write_pairs(str(tmp_path), 4, shard_bytes=1 << 20)
    flip_bit(tmp_path / "000000.tar", int(packed.table(0).starts[2]) + 600)
    assert packed.read(0, 1) == pair(1)
    assert packed.read(0, 3) == pair(3)
    with pytest.raises(DataError, match=r"000000\.tar, sample 2: the bytes differ from those"):
        packed.read(0, 2)
    problems = check_set(str(tmp_path)).problems
    assert problems == [
        "000000.tar is corrupt: its sha256 differs from the index",
        "000000.tar, sample 2 is corrupt: its CRC-32 is not the table's",
    ]


def test_bytes_corrupted_on_the_way_are_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = write_pairs(str(tmp_path), 2)
    honest, calls = packed.storage.get_range, []

    def corrupt_once(key: str, start: int, length: int) -> bytes:
        calls.append(key)
        data = honest(key, start, length)
        return data if len(calls) > 1 else b"\xff" + data[1:]

    monkeypatch.setattr(packed.storage, "get_range", corrupt_once)
    assert packed.read(0, 1) == pair(1)
    assert calls == ["000000.tar", "000000.tar"]


def test_missing_and_truncated_shards_are_reported(tmp_path: Path) -> None:
    packed = write_pairs(str(tmp_path), 6)
    (tmp_path / "000000.tar").unlink()
    cut = (tmp_path / "000001.tar").read_bytes()[:-1]
    (tmp_path / "000001.tar").write_bytes(cut)
    with pytest.raises(DataError, match=r"000000\.tar is missing, but the index lists it"):
        packed.read(0, 0)
    report = check_set(str(tmp_path))
    assert not report.ok
    assert report.problems == [
        "000000.tar is missing",
        f"000001.tar has {len(cut)} bytes; the index has {len(cut) + 1}",
    ]


@pytest.mark.parametrize(
    ("image", "problem"),
    [
        (png(0, size=9), "is 9x9; the index lists 8x8"),
        (b"not a png", "cannot be decoded"),
        (png(0)[:60], "cannot be decoded"),
    ],
)
def test_the_check_decodes_every_image(tmp_path: Path, image: bytes, problem: str) -> None:
    writer = ShardWriter(str(tmp_path), ("image",), image_size=SIZE, channels=3)
    writer.add("good", {"image": png(1)})
    writer.add("bad", {"image": image})
    writer.finish()
    (found,) = check_set(str(tmp_path)).problems
    assert found.startswith("000000.tar, sample 1, image ")
    assert problem in found


def edit(change: Callable[[dict[str, Any]], object]) -> Callable[[str], str]:
    def edited(text: str) -> str:
        index = json.loads(text)
        change(index)
        return json.dumps(index)

    return edited


@pytest.mark.parametrize(
    "corrupt",
    [
        lambda text: text[:-20],
        lambda text: "[]",
        edit(lambda index: index.update(version=3)),
        edit(lambda index: index.update(image_size=16)),
        edit(lambda index: index.update(num_samples=5)),
        edit(lambda index: index["shards"][0].update(name="../000000.tar")),
        edit(lambda index: index["shards"][0].update(samples=0)),
        edit(lambda index: index["shards"][0].update(table_crc32=5)),
        edit(lambda index: index["shards"].reverse()),
    ],
)
def test_a_corrupt_index_is_rejected(tmp_path: Path, corrupt: Callable[[str], str]) -> None:
    write_pairs(str(tmp_path), 6)
    path = tmp_path / "index.json"
    path.write_text(corrupt(path.read_text()))
    with pytest.raises(DataError, match=r"index\.json is corrupt"):
        open_set(str(tmp_path))


def tar_of(*members: tarfile.TarInfo) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for member in members:
            tar.addfile(member, io.BytesIO(b"x" * member.size))
    return buffer.getvalue()


def member(name: str, **changes: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for attribute, value in changes.items():
        setattr(info, attribute, value)
    return info


@pytest.mark.parametrize(
    "hostile",
    [
        member("k.a.png", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        member("k.a.png", type=tarfile.LNKTYPE, linkname="k.b.png"),
        member("k.a.png", type=tarfile.CHRTYPE, devmajor=1, devminor=5),
        member("k.a.png", type=tarfile.FIFOTYPE),
        member("k.a.png", type=tarfile.DIRTYPE, size=3),
    ],
)
def test_links_devices_and_folders_are_no_members(hostile: tarfile.TarInfo) -> None:
    with pytest.raises(DataError, match=r"here is not .*: (it contains no files|the header at)"):
        sample_members(tar_of(hostile), "here")


def test_members_are_named_by_their_base_names() -> None:
    assert sample_members(tar_of(member("/abs/dir/k.a.png", size=3)), "here") == {"a.png": b"xxx"}


def test_bytes_that_are_not_a_tar_are_a_data_error() -> None:
    with pytest.raises(DataError, match="here is not a complete tar"):
        sample_members(b"x" * 2048, "here")


class Raw(str):
    """A string whose characters are encoded to single bytes, as in a hand-written tar."""

    def encode(self, *_: object) -> bytes:
        return bytes(ord(letter) for letter in self)


def write_labelled(uri: str, label: int = 1, caption: str = "a cat") -> ShardSet:
    writer = ShardWriter(
        uri, ("image",), image_size=SIZE, channels=3, classes=("ant", "cat"), captions=True
    )
    writer.add("good", {"image": png(1)}, 0, "an ant")
    writer.add("other", {"image": png(2)}, label, caption)
    writer.finish()
    return open_set(uri)


def test_classes_and_captions_are_read_back(uri: str) -> None:
    packed = write_labelled(uri, caption="żółty kot")
    assert tuple(packed.members) == ("image", "cls", "txt")
    assert packed.index.classes == ("ant", "cat")
    members = packed.read(0, 1)
    assert packed.parse_label(members["cls"], "") == 1
    assert packed.parse_caption(members["txt"], "") == "żółty kot"
    assert check_set(uri).ok


@pytest.mark.parametrize("member", ["cls", "txt"])
def test_a_flipped_bit_in_a_label_or_a_caption_is_detected(tmp_path: Path, member: str) -> None:
    write_labelled(str(tmp_path))
    path = tmp_path / "000000.tar"
    data = bytearray(path.read_bytes())
    data[data.index(f"other.{member}".encode()) + 512] ^= 1
    path.write_bytes(data)
    problems = check_set(str(tmp_path)).problems
    assert "000000.tar, sample 1 is corrupt: its CRC-32 is not the table's" in problems
    with pytest.raises(DataError, match="sample 1: the bytes differ from those that were packed"):
        open_set(str(tmp_path)).read(0, 1)


def test_the_check_reads_every_label_and_caption(tmp_path: Path) -> None:
    write_labelled(str(tmp_path / "label"), label=2)
    (found,) = check_set(str(tmp_path / "label")).problems
    assert found == "000000.tar, sample 1: b'2' is not a class number from 0 to 1"
    write_labelled(str(tmp_path / "caption"), caption=Raw("caf\xe9"))
    (found,) = check_set(str(tmp_path / "caption")).problems
    assert found.startswith("000000.tar, sample 1: the caption is not UTF-8")


@pytest.mark.parametrize(
    "hostile",
    [
        b"",
        b"-1",
        b"2",
        b"1.0",
        b"0x1",
        b"1 1",
        b"1\n\n1",
        b"\xc2\xb2",
        b"1" + b" " * 99,
        b"9" * 100_000,
    ],
)
def test_a_hostile_label_is_a_data_error(tmp_path: Path, hostile: bytes) -> None:
    with pytest.raises(DataError, match=r"here: b'.{0,40}' is not a class number"):
        write_labelled(str(tmp_path)).parse_label(hostile, "here")


def test_a_sample_without_the_members_of_the_index_is_rejected(tmp_path: Path) -> None:
    packed = write_pairs(str(tmp_path), 1)
    sample = write_labelled(str(tmp_path / "other"))
    start, end = int(sample.table(0).starts[0]), int(sample.table(0).ends[0])
    data = sample.storage.get_range("000000.tar", start, end - start)
    message = r"here has cls, image.png, txt, but no a.png and no b.png, which the index lists"
    with pytest.raises(DataError, match=message):
        packed.split_members(data, "here")


def test_a_set_of_the_first_format_is_distinguished_from_a_corrupt_one(tmp_path: Path) -> None:
    write_pairs(str(tmp_path), 2)
    path = tmp_path / "index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 1}))
    with pytest.raises(DataError, match=r"packed by an older version .* pack or fetch it again"):
        open_set(str(tmp_path))


@pytest.mark.parametrize("corrupt", [lambda d: d[:-8], lambda d: d[:3] + b"x" + d[4:]])
def test_a_corrupt_table_is_rejected_and_reported(
    tmp_path: Path, corrupt: Callable[[bytes], bytes]
) -> None:
    packed = write_pairs(str(tmp_path), 6)
    path = tmp_path / "000001.tar.idx"
    path.write_bytes(corrupt(path.read_bytes()))
    assert packed.read(0, 0) == pair(0)
    with pytest.raises(DataError, match=r"000001\.tar\.idx is corrupt"):
        packed.read(1, 0)
    (problem,) = check_set(str(tmp_path)).problems
    assert "000001.tar.idx is corrupt" in problem
    path.unlink()
    with pytest.raises(DataError, match=r"000001\.tar\.idx is missing, but the index lists it"):
        open_set(str(tmp_path)).read(1, 0)


def test_a_table_must_lie_within_its_shard() -> None:
    with pytest.raises(DataError, match="here is corrupt: its samples extend beyond the shard"):
        sample_table.decode(sample_table.encode([0, 512, 2048], [1, 2]), 2, 2000, "here")
    with pytest.raises(DataError, match="here is corrupt: its samples extend beyond the shard"):
        sample_table.decode(sample_table.encode([0, 512, 512], [1, 2]), 2, 2000, "here")

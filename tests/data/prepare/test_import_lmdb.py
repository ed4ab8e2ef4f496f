"""`data import` of LMDB databases, written with the package lmdb."""

import pickle
import sys
from pathlib import Path

import lmdb
import numpy
import pytest

from orchestrator.data.format.shard_index import open_set
from orchestrator.data.prepare.lmdb_source import BOOKKEEPING
from orchestrator.errors import DataError, EnvironmentProblem, UsageError
from support.imports import digests, encoded, import_data, packed, seeds

ALL = ("--validation-share", "0")


def write(path: Path, values: dict[bytes, bytes], subdir: bool = True) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        lmdb.open(str(path), map_size=1 << 24, subdir=subdir) as database,
        database.begin(write=True) as transaction,
    ):
        for key, value in values.items():
            assert transaction.put(key, value)
    return path


def numbered(start: int, stop: int) -> dict[bytes, bytes]:
    return {f"{n:04d}".encode(): encoded(n) for n in range(start, stop)}


def test_values_are_packed_in_the_order_of_their_keys(tmp_path: Path) -> None:
    values = {key: numbered(0, 9)[key] for key in reversed(numbered(0, 9))}
    source = write(tmp_path / "x.lmdb", values)
    before = digests(source)
    import_data(source, tmp_path / "out", *ALL)
    assert seeds(packed(tmp_path / "out/train")) == list(range(9))
    assert digests(source) == before, "the database is not changed, not even its lock"
    import_data(source / "data.mdb", tmp_path / "b", *ALL)
    assert digests(tmp_path / "b") == digests(tmp_path / "out")


def test_a_database_in_one_file_with_binary_keys_is_read(tmp_path: Path) -> None:
    values = {bytes([n, 255]): encoded(n, 8, "WEBP") for n in range(3)}
    write(tmp_path / "x.lmdb", values, subdir=False)
    import_data(tmp_path / "x.lmdb", tmp_path / "out", *ALL)
    assert open_set(str(tmp_path / "out/train")).num_samples == 3


def test_lsun_s_training_and_validation_databases_keep_their_split(tmp_path: Path) -> None:
    write(tmp_path / "in/bedroom_train_lmdb", numbered(0, 5))
    write(tmp_path / "in/bedroom_val_lmdb", numbered(50, 52))
    import_data(tmp_path / "in", tmp_path / "out")
    assert seeds(packed(tmp_path / "out/train")) == list(range(5))
    assert seeds(packed(tmp_path / "out/validation")) == [50, 51]


def test_two_databases_with_the_same_keys_are_pairs_if_they_are_named(tmp_path: Path) -> None:
    write(tmp_path / "in/GT.lmdb", numbered(0, 4))
    write(tmp_path / "in/LQ.lmdb", dict(zip(numbered(0, 4), numbered(10, 14).values())))  # noqa: B905
    with pytest.raises(UsageError, match=r"holds 2 LMDBs, GT\.lmdb, LQ\.lmdb: .*--a NAME --b NAME"):
        import_data(tmp_path / "in", tmp_path / "out")
    import_data(tmp_path / "in", tmp_path / "out", "--a", "LQ", "--b", "GT.lmdb", *ALL)
    found = packed(tmp_path / "out/train")
    assert seeds(found, field="a") == [10, 11, 12, 13]
    assert seeds(found, field="b") == [0, 1, 2, 3]
    with pytest.raises(UsageError, match=r"--b HQ: .* holds no such LMDB, but GT\.lmdb, LQ\.lmdb"):
        import_data(tmp_path / "in", tmp_path / "out", "--a", "LQ", "--b", "HQ")
    write(tmp_path / "in/GT.lmdb", {b"0001x": encoded(1)})
    with pytest.raises(DataError, match=r"key 0001x is in .*GT\.lmdb only; every image of a pair"):
        import_data(tmp_path / "in", tmp_path / "b", "--a", "LQ", "--b", "GT")


def test_the_keys_of_basicsr_s_list_must_be_there(tmp_path: Path) -> None:
    source = write(tmp_path / "x.lmdb", numbered(0, 3))
    lines = [f"{n:04d}.png (8,8,3) 1" for n in range(3)]
    (source / "meta_info.txt").write_text("\n".join(lines))
    import_data(source, tmp_path / "out", *ALL)
    assert seeds(packed(tmp_path / "out/train")) == [0, 1, 2]
    (source / "meta_info.txt").write_text("\n".join([*lines, "0007.png (8,8,3) 1"]))
    with pytest.raises(DataError, match=r"1 of 4 keys in meta_info\.txt are missing, such as 0007"):
        import_data(source, tmp_path / "b")


def test_keys_that_describe_the_database_are_left_out_with_a_line(tmp_path: Path) -> None:
    pickled = pickle.dumps([b"0000"])
    values = {**numbered(0, 3), b"length": b"3", b"__keys__": pickled, b"num-samples": b"3"}
    assert {b"length", b"__keys__", b"num-samples"} <= set(BOOKKEEPING)
    write(tmp_path / "x.lmdb", values)
    said = import_data(tmp_path / "x.lmdb", tmp_path / "out", *ALL)
    assert "left out: 3 keys that describe the LMDB" in said
    assert seeds(packed(tmp_path / "out/train")) == [0, 1, 2]


class Trap:
    """Creates a file when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, ("unpickled", "w")


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_are_refused_and_never_loaded(
    tmp_path: Path, protocol: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "x.lmdb", {b"a": pickle.dumps(Trap(), protocol) + bytes(64)})
    with pytest.raises(DataError, match=r"key a.*(is a pickle|not an encoded image|no image)") as e:
        import_data(tmp_path / "x.lmdb", tmp_path / "out")
    assert len(str(e.value).splitlines()) == 1
    write(tmp_path / "y.lmdb", {b"a": encoded(0), b"b": pickle.dumps(Trap(), protocol)})
    with pytest.raises(DataError, match=r"y\.lmdb key b cannot be decoded"):
        import_data(tmp_path / "y.lmdb", tmp_path / "out")
    assert not (tmp_path / "unpickled").exists()


def test_raw_arrays_are_refused_at_once(tmp_path: Path) -> None:
    raw = numpy.arange(192, dtype=numpy.uint8)
    write(tmp_path / "x.lmdb", {b"%d" % n: raw.tobytes() for n in range(20)})
    with pytest.raises(DataError, match=r"192 bytes that are not an encoded image, perhaps a raw"):
        import_data(tmp_path / "x.lmdb", tmp_path / "out")
    (tmp_path / "x.npy").write_bytes(b"")
    numpy.save(tmp_path / "x.npy", raw)
    write(tmp_path / "y.lmdb", {b"0": (tmp_path / "x.npy").read_bytes()})
    with pytest.raises(DataError, match="is a numpy array, not an encoded image"):
        import_data(tmp_path / "y.lmdb", tmp_path / "out")


def test_corrupt_values_are_listed_at_once(tmp_path: Path) -> None:
    values = numbered(0, 8) | {b"0003": encoded(3)[:50], b"0005": b""}
    write(tmp_path / "x.lmdb", values)
    with pytest.raises(DataError) as caught:
        import_data(tmp_path / "x.lmdb", tmp_path / "out")
    text = str(caught.value)
    assert "2 of 8 samples" in text
    assert "x.lmdb key 0003" in text
    assert "x.lmdb key 0005 cannot be decoded as an image (it is empty)" in text


def test_half_a_database_is_refused_before_it_is_read(tmp_path: Path) -> None:
    """Reading beyond its end would kill the process with SIGBUS."""
    source = write(tmp_path / "x.lmdb", {b"%d" % n: encoded(n, 40) for n in range(40)})
    file = source / "data.mdb"
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=r"data\.mdb is incomplete: it has .* copy or download"):
        import_data(source, tmp_path / "out")
    file.write_bytes(b"")
    with pytest.raises(DataError, match=r"x\.lmdb cannot be read as an LMDB|is incomplete"):
        import_data(source, tmp_path / "out")
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\n" + bytes(100))
    with pytest.raises(DataError, match=r"data\.mdb is a git-LFS pointer"):
        import_data(source, tmp_path / "out")
    file.write_bytes(bytes(8192))
    with pytest.raises(DataError, match="cannot be read as an LMDB"):
        import_data(source, tmp_path / "out")


def test_an_empty_database_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "x.lmdb", {})
    with pytest.raises(DataError, match="is an LMDB without images"):
        import_data(tmp_path / "x.lmdb", tmp_path / "out")


def test_without_the_package_the_error_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path / "x.lmdb", numbered(0, 1))
    monkeypatch.setitem(sys.modules, "lmdb", None)
    with pytest.raises(EnvironmentProblem, match=r"needs the package lmdb; .*pip install -e"):
        import_data(source, tmp_path / "out")


def test_any_number_of_processes_writes_the_same_bytes(tmp_path: Path) -> None:
    source = write(tmp_path / "x.lmdb", numbered(0, 80))
    for workers in "12":
        import_data(source, tmp_path / workers, "--workers", workers)
    assert digests(tmp_path / "1") == digests(tmp_path / "2")

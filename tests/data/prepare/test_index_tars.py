"""Indexing tar files of other tools in place: what is found, and what is refused."""

import gzip
import hashlib
import subprocess
import tarfile
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from orchestrator.cli import app
from orchestrator.data.format.shard_index import open_set
from orchestrator.data.format.tar_reader import READ_BYTES
from orchestrator.data.prepare.check import check_set
from orchestrator.data.prepare.field_selection import FieldSelection
from orchestrator.data.prepare.index_tars import IndexOptions, index_set
from orchestrator.errors import DataError, UsageError
from orchestrator.storage.open import open_storage
from support.tars import all_samples, labelled_samples, noise_image, write_tar


def sums(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.glob("*.tar")}


def test_images_classes_and_captions_are_found_and_no_tar_is_changed(tmp_path: Path) -> None:
    write_tar(tmp_path / "b.tar", labelled_samples(0, 4))
    write_tar(tmp_path / "c-1.tar", labelled_samples(4, 3))
    before = sums(tmp_path)
    summary = index_set(str(tmp_path))
    assert summary.notes == ()
    assert sums(tmp_path) == before
    packed = open_set(str(tmp_path))
    assert packed.index.fields == {"image": "jpg"}
    assert (packed.num_samples, packed.image_size, packed.channels) == (7, 8, 3)
    assert packed.index.classes == ("0", "1", "2")
    assert all_samples(str(tmp_path)) == [
        {
            "image": noise_image(n, kind="JPEG"),
            "cls": str(n % 3).encode(),
            "txt": f"picture {n}".encode(),
        }
        for n in range(7)
    ]
    assert check_set(str(tmp_path)).ok


@pytest.mark.parametrize(
    "tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
)
def test_extended_headers_of_every_tar_format_are_read(tmp_path: Path, tar_format: int) -> None:
    """A float mtime makes a pax header, a long name a pax or a GNU one: also before the first."""
    folder = "f" * (60 if tar_format == tarfile.USTAR_FORMAT else 120)
    files = {f"{folder}/{n:060}.png": noise_image(n) for n in range(3)}
    write_tar(tmp_path / "x.tar", files, tar_format, mtime=1234.5)
    index_set(str(tmp_path))
    assert open_set(str(tmp_path)).table(0).starts[0] == 0
    assert all_samples(str(tmp_path)) == [{"image": noise_image(n)} for n in range(3)]


@pytest.mark.parametrize("options", [[], ["--format=pax"], ["--format=gnu"], ["--format=ustar"]])
def test_what_gnu_tar_writes_is_indexed(tmp_path: Path, options: list[str]) -> None:
    (tmp_path / "photos/deep").mkdir(parents=True)
    for n in range(5):
        (tmp_path / f"photos/{'deep/' * (n % 2)}s{n}.png").write_bytes(noise_image(n))
        (tmp_path / f"photos/{'deep/' * (n % 2)}s{n}.txt").write_text(f"the {n}")
    (tmp_path / "set").mkdir()
    command = ["tar", *options, "--sort=name", "-cf", "set/photos.tar", "-C", "photos", "."]
    subprocess.run(command, cwd=tmp_path, check=True)
    index_set(str(tmp_path / "set"))
    found = {s["txt"].decode(): s["image"] for s in all_samples(str(tmp_path / "set"))}
    assert found == {f"the {n}": noise_image(n) for n in range(5)}
    assert check_set(str(tmp_path / "set")).ok


@pytest.mark.server
def test_a_bucket_is_read_in_pieces(s3: str, tmp_path: Path) -> None:
    """The second sample lies across two pieces."""
    files = {"a.png": noise_image(1), "a.raw": bytes(READ_BYTES - 3000), "b.raw": bytes(5000)}
    path = write_tar(
        tmp_path / "x.tar", {**files, "b.png": noise_image(2), "c.png": noise_image(3)}
    )
    open_storage(s3).put("x.tar", path.read_bytes())
    seen: list[tuple[int, int]] = []
    index_set(s3, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (path.stat().st_size, path.stat().st_size)
    assert [s["image"] for s in all_samples(s3)] == [noise_image(n) for n in (1, 2, 3)]
    assert check_set(s3).ok
    assert sorted(open_storage(s3).list()) == ["index.json", "x.tar", "x.tar.idx"]


def test_the_images_of_a_pair_are_chosen_by_their_endings(tmp_path: Path) -> None:
    pairs = {
        f"{n}.{e}": noise_image(2 * n + (e > "j")) for n in range(3) for e in ("in.png", "out.png")
    }
    write_tar(tmp_path / "x.tar", pairs)
    with pytest.raises(
        UsageError, match=r"x\.tar: 0 holds in\.png, out\.png: choose .* --a ENDING"
    ):
        index_set(str(tmp_path))
    with pytest.raises(UsageError, match=r"holds in\.png, out\.png, but no target\.png"):
        index_set(str(tmp_path), IndexOptions(FieldSelection(a="in.png", b="target.png")))
    index_set(str(tmp_path), IndexOptions(FieldSelection(a=".in.png", b="out.png")))
    assert [(s["a"], s["b"]) for s in all_samples(str(tmp_path))] == [
        (noise_image(2 * n), noise_image(2 * n + 1)) for n in range(3)
    ]


def test_one_of_several_images_can_be_chosen_but_not_half_a_pair(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", {"0.in.png": noise_image(0), "0.out.png": noise_image(1)})
    index_set(str(tmp_path), IndexOptions(FieldSelection(image="out.png")))
    assert all_samples(str(tmp_path)) == [{"image": noise_image(1)}]
    wrong = "one image with --image, or of two with --a and --b"
    with pytest.raises(UsageError, match=wrong):
        FieldSelection(a="png")
    with pytest.raises(UsageError, match=wrong):
        FieldSelection(image="png", a="png", b="jpg")


def test_grey_images_make_a_grey_set_unless_channels_are_given(tmp_path: Path) -> None:
    grey = {f"{n}.png": noise_image(n, mode="L") for n in range(2)}
    for name, files, channels in (
        ("grey", grey, 1),
        ("mixed", {**grey, "2.png": noise_image(2)}, 3),
    ):
        write_tar(tmp_path / name / "x.tar", files)
        assert index_set(str(tmp_path / name)).index.channels == channels
        assert check_set(str(tmp_path / name)).ok
    write_tar(tmp_path / "given" / "x.tar", grey)
    assert (
        index_set(str(tmp_path / "given"), IndexOptions(FieldSelection(channels=3))).index.channels
        == 3
    )


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"2.png": noise_image(2, (9, 9)), "3.png": noise_image(3, (8, 6))},
            r"2 of 4 .* 8x8 like most of them",
        ),
        ({"2.png": b"no image"}, r"1 of 3 .*x\.tar, 2\.png is not a readable image"),
        ({"2.json": b"{}"}, r"x\.tar, 2 has no png or jpg or jpeg or webp"),
        (
            {"2.png": noise_image(2), "2.cls": b"cat"},
            r"2\.cls is b'cat', not a class number .* --no-labels",
        ),
        ({"2.png": noise_image(2), "2.txt": b"\xff"}, r"2\.txt is not UTF-8 \(see --no-captions\)"),
    ],
)
def test_samples_that_do_not_fit_are_named_and_nothing_is_written(
    tmp_path: Path, files: dict[str, bytes], message: str
) -> None:
    write_tar(tmp_path / "x.tar", {"0.png": noise_image(0), "1.png": noise_image(1), **files})
    with pytest.raises(DataError, match=f"(?s){message}"):
        index_set(str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["x.tar"]


def test_incomplete_classes_and_captions_are_left_out_with_a_note(tmp_path: Path) -> None:
    write_tar(
        tmp_path / "x.tar",
        {"0.png": noise_image(0), "0.cls": b"1", "0.txt": b"x", "1.png": noise_image(1)},
    )
    summary = index_set(str(tmp_path))
    assert summary.notes == (
        "only 1 of 2 samples have a class: left out",
        "only 1 of 2 samples have a caption: left out",
    )
    assert tuple(open_set(str(tmp_path)).members) == ("image",)


def test_class_names_come_from_a_file(tmp_path: Path) -> None:
    write_tar(tmp_path / "set" / "x.tar", labelled_samples(0, 3))
    (tmp_path / "two").write_text("cat\ndog\n")
    (tmp_path / "three").write_text("cat\ndog\nżaba\n")
    command = ["data", "index", str(tmp_path / "set"), "--classes"]
    error = CliRunner().invoke(app.app, [*command, str(tmp_path / "two")]).exception
    assert isinstance(error, DataError)
    assert "--classes names 2 classes, but there is a class number 2" in str(error)
    CliRunner().invoke(app.app, [*command, str(tmp_path / "three")], catch_exceptions=False)
    assert open_set(str(tmp_path / "set")).index.classes == ("cat", "dog", "żaba")


def test_a_corrupt_or_truncated_tar_is_refused(tmp_path: Path) -> None:
    whole = write_tar(
        tmp_path / "whole.tar", {"0.png": noise_image(0), "1.png": noise_image(1)}
    ).read_bytes()
    end = len(whole.rstrip(b"\0")) // 512 * 512 + 512
    cases = {
        "in a member": (whole[: end - 100], "is not a complete tar: a member extends beyond"),
        "header lost": (
            whole[:1024] + b"\xff" * 512 + whole[1536:],
            "is not a complete tar: the header at byte 1024 is corrupt",
        ),
        "empty": (b"", "is not a complete tar: it is an empty file; remove it"),
        "joined": (whole + whole, "there are no more headers from byte .* joined with cat"),
        "no tar": (b"x" * 2048, "is not a complete tar"),
        "compressed": (gzip.compress(whole), r"is compressed \(gzip\) and has no random access"),
    }
    for name, (content, message) in cases.items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / "x.tar").write_bytes(content)
        with pytest.raises(DataError, match=message):
            index_set(str(folder))
        assert not (folder / "index.json").exists()


def test_the_files_of_a_sample_must_be_adjacent(tmp_path: Path) -> None:
    write_tar(
        tmp_path / "x.tar", {"0.png": noise_image(0), "1.png": noise_image(1), "0.txt": b"late"}
    )
    with pytest.raises(
        DataError, match=r"x\.tar, 0 has no png .*; its files are not next to .* --sort=name"
    ):
        index_set(str(tmp_path))


def test_folders_without_usable_tars_are_explained(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no tar files$"):
        index_set(str(tmp_path))
    write_tar(tmp_path / "below" / "x.tar", {"0.png": noise_image(0)})
    with pytest.raises(DataError, match=f"{tmp_path}/below holds some"):
        index_set(str(tmp_path))
    (tmp_path / "x.tar.gz").touch()
    with pytest.raises(DataError, match=r"x\.tar\.gz is compressed .* decompress it"):
        index_set(str(tmp_path))
    write_tar(tmp_path / "my\nset.tar", {"0.png": noise_image(0)})
    with pytest.raises(DataError, match=r"my\\nset\.tar' is not a valid name .* rename it"):
        index_set(str(tmp_path))


def test_an_index_is_never_overwritten_and_an_interrupted_one_is_resumed(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", labelled_samples(0, 4))
    index_set(str(tmp_path))
    with pytest.raises(DataError, match=r"already a packed set at"):
        index_set(str(tmp_path))
    whole = (tmp_path / "index.json").read_bytes()
    (tmp_path / "index.json").unlink()
    index_set(str(tmp_path))
    assert (tmp_path / "index.json").read_bytes() == whole
    (tmp_path / "index.json").unlink()
    (tmp_path / "x.tar.idx").write_bytes(b"someone else's")
    with pytest.raises(DataError, match=r"x\.tar\.idx already exists with other content"):
        index_set(str(tmp_path))
    assert (tmp_path / "x.tar.idx").read_bytes() == b"someone else's"


def test_empty_tars_are_left_out_unless_all_are(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {})
    with pytest.raises(DataError, match="holds no samples: its 1 tar files are empty"):
        index_set(str(tmp_path))
    write_tar(tmp_path / "b.tar", labelled_samples(0, 2))
    write_tar(tmp_path / "c.tar", {})
    assert [shard.name for shard in index_set(str(tmp_path)).index.shards] == ["b.tar"]


@pytest.mark.parametrize("hostile", ["long pax", "chain of names"])
def test_hostile_headers_take_linear_time(tmp_path: Path, hostile: str) -> None:
    info = tarfile.TarInfo("s0.png")
    if hostile == "long pax":
        info.type, content = tarfile.XHDTYPE, b"1" * 1_000_000 + b" path="
        info.size = len(content)
        head = info.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % 512)
    else:
        info.type, info.size = tarfile.GNUTYPE_LONGNAME, 5
        head = (info.tobuf(tarfile.USTAR_FORMAT) + b"s0.a\0".ljust(512, b"\0")) * 20_000
    (tmp_path / "x.tar").write_bytes(head + bytes(10240))
    before = time.process_time()
    with pytest.raises(DataError, match=r"a pax header is corrupt|holds no samples"):
        index_set(str(tmp_path))
    assert time.process_time() - before < 3

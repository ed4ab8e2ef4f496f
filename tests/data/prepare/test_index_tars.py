"""Tar files of other tools become sets where they lie: what is found, and what is refused."""

import hashlib
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from orchestrator.cli import app
from orchestrator.data.format.shard_index import open_set
from orchestrator.data.format.tar_reader import PIECE
from orchestrator.data.prepare.check import check_set
from orchestrator.data.prepare.index_tars import FieldSelection, index_set
from orchestrator.errors import DataError, UsageError
from orchestrator.storage.open import open_storage
from support.tars import image, labelled, tar


def sums(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.glob("*.tar")}


def all_samples(uri: str) -> list[dict[str, bytes]]:
    packed = open_set(uri)
    places = [(s, i) for s, size in enumerate(packed.shard_sizes) for i in range(size)]
    return [{k: bytes(v) for k, v in packed.read(*place).items()} for place in places]


def test_images_classes_and_captions_are_found_and_no_tar_is_touched(tmp_path: Path) -> None:
    tar(tmp_path / "b.tar", labelled(0, 4))
    tar(tmp_path / "c-1.tar", labelled(4, 3))
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
            "image": image(n, kind="JPEG"),
            "cls": str(n % 3).encode(),
            "txt": f"picture {n}".encode(),
        }
        for n in range(7)
    ]
    assert check_set(str(tmp_path)).ok


@pytest.mark.parametrize(
    "tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
)
def test_every_format_of_tar_is_read_with_headers_before_a_member(
    tmp_path: Path, tar_format: int
) -> None:
    """A float mtime makes a pax header, a long name a pax or a GNU one: also before the first."""
    folder = "f" * (60 if tar_format == tarfile.USTAR_FORMAT else 120)
    files = {f"{folder}/{n:060}.png": image(n) for n in range(3)}
    tar(tmp_path / "x.tar", files, tar_format, mtime=1234.5)
    index_set(str(tmp_path))
    assert open_set(str(tmp_path)).table(0).offsets[0] == 0
    assert all_samples(str(tmp_path)) == [{"image": image(n)} for n in range(3)]


@pytest.mark.parametrize("options", [[], ["--format=pax"], ["--format=gnu"], ["--format=ustar"]])
def test_what_tar_itself_writes_of_a_folder_is_indexed(tmp_path: Path, options: list[str]) -> None:
    (tmp_path / "photos/deep").mkdir(parents=True)
    for n in range(5):
        (tmp_path / f"photos/{'deep/' * (n % 2)}s{n}.png").write_bytes(image(n))
        (tmp_path / f"photos/{'deep/' * (n % 2)}s{n}.txt").write_text(f"the {n}")
    (tmp_path / "set").mkdir()
    command = ["tar", *options, "--sort=name", "-cf", "set/photos.tar", "-C", "photos", "."]
    subprocess.run(command, cwd=tmp_path, check=True)
    index_set(str(tmp_path / "set"))
    found = {s["txt"].decode(): s["image"] for s in all_samples(str(tmp_path / "set"))}
    assert found == {f"the {n}": image(n) for n in range(5)}
    assert check_set(str(tmp_path / "set")).ok


def test_a_bucket_is_indexed_in_pieces(s3: str, tmp_path: Path) -> None:
    """The second sample lies across two pieces."""
    files = {"a.png": image(1), "a.raw": bytes(PIECE - 3000), "b.raw": bytes(5000)}
    path = tar(tmp_path / "x.tar", {**files, "b.png": image(2), "c.png": image(3)})
    open_storage(s3).put("x.tar", path.read_bytes())
    seen: list[tuple[int, int]] = []
    index_set(s3, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (path.stat().st_size, path.stat().st_size)
    assert [s["image"] for s in all_samples(s3)] == [image(n) for n in (1, 2, 3)]
    assert check_set(s3).ok
    assert sorted(open_storage(s3).list()) == ["index.json", "x.tar", "x.tar.idx"]


def test_pairs_are_named_by_their_endings(tmp_path: Path) -> None:
    pairs = {f"{n}.{e}": image(2 * n + (e > "j")) for n in range(3) for e in ("in.png", "out.png")}
    tar(tmp_path / "x.tar", pairs)
    with pytest.raises(UsageError, match=r"x\.tar: 0 holds in\.png, out\.png: say .* --a ENDING"):
        index_set(str(tmp_path))
    with pytest.raises(UsageError, match=r"holds in\.png, out\.png and no target\.png"):
        index_set(str(tmp_path), FieldSelection(a="in.png", b="target.png"))
    index_set(str(tmp_path), FieldSelection(a=".in.png", b="out.png"))
    assert [(s["a"], s["b"]) for s in all_samples(str(tmp_path))] == [
        (image(2 * n), image(2 * n + 1)) for n in range(3)
    ]


def test_one_image_of_several_can_be_chosen_and_half_a_pair_cannot(tmp_path: Path) -> None:
    tar(tmp_path / "x.tar", {"0.in.png": image(0), "0.out.png": image(1)})
    index_set(str(tmp_path), FieldSelection(image="out.png"))
    assert all_samples(str(tmp_path)) == [{"image": image(1)}]
    for wrong in ({"a": "png"}, {"image": "png", "a": "png", "b": "jpg"}):
        with pytest.raises(UsageError, match="one image with --image, or of two with --a and --b"):
            FieldSelection(**wrong)


def test_grey_images_make_a_grey_set_unless_told_otherwise(tmp_path: Path) -> None:
    grey = {f"{n}.png": image(n, mode="L") for n in range(2)}
    for name, files, channels in (
        ("grey", grey, 1),
        ("mixed", {**grey, "2.png": image(2)}, 3),
    ):
        tar(tmp_path / name / "x.tar", files)
        assert index_set(str(tmp_path / name)).index.channels == channels
        assert check_set(str(tmp_path / name)).ok
    tar(tmp_path / "told" / "x.tar", grey)
    assert index_set(str(tmp_path / "told"), FieldSelection(channels=3)).index.channels == 3


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"2.png": image(2, (9, 9)), "3.png": image(3, (8, 6))}, r"2 of 4 .* 8x8 as most are"),
        ({"2.png": b"no image"}, r"1 of 3 .*x\.tar, 2\.png is no image that can be read"),
        ({"2.jpg": image(2, kind="JPEG")}, r"x\.tar, 2 has no png"),
        ({"2.png": image(2), "2.cls": b"cat"}, r"2\.cls is b'cat', no number .* --no-labels"),
        ({"2.png": image(2), "2.txt": b"\xff"}, r"2\.txt is no UTF-8 \(see --no-captions\)"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_written(
    tmp_path: Path, files: dict[str, bytes], told: str
) -> None:
    tar(tmp_path / "x.tar", {"0.png": image(0), "1.png": image(1), **files})
    with pytest.raises(DataError, match=f"(?s){told}"):
        index_set(str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["x.tar"]


def test_classes_and_captions_that_some_lack_are_left_out_with_a_note(tmp_path: Path) -> None:
    tar(tmp_path / "x.tar", {"0.png": image(0), "0.cls": b"1", "0.txt": b"x", "1.png": image(1)})
    summary = index_set(str(tmp_path))
    assert summary.notes == (
        "only 1 of 2 samples have a class: left out",
        "only 1 of 2 samples have a caption: left out",
    )
    assert open_set(str(tmp_path)).members == ("image",)


def test_classes_get_the_names_of_a_file(tmp_path: Path) -> None:
    tar(tmp_path / "set" / "x.tar", labelled(0, 3))
    (tmp_path / "two").write_text("cat\ndog\n")
    (tmp_path / "three").write_text("cat\ndog\nżaba\n")
    command = ["data", "index", str(tmp_path / "set"), "--classes"]
    error = CliRunner().invoke(app.app, [*command, str(tmp_path / "two")]).exception
    assert isinstance(error, DataError)
    assert "--classes names 2 classes, but there is a class number 2" in str(error)
    CliRunner().invoke(app.app, [*command, str(tmp_path / "three")], catch_exceptions=False)
    assert open_set(str(tmp_path / "set")).index.classes == ("cat", "dog", "żaba")


def spoil(path: Path, start: int, data: bytes) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:start] + data + content[start + len(data) :])


def test_a_tar_that_is_damaged_or_cut_is_refused(tmp_path: Path) -> None:
    whole = tar(tmp_path / "whole.tar", {"0.png": image(0), "1.png": image(1)}).read_bytes()
    end = len(whole.rstrip(b"\0")) // 512 * 512 + 512
    cases = {
        "in a member": (whole[: end - 100], "no whole tar: unexpected end of data"),
        "at a member's end": (whole[:end], "is cut: it has no end mark"),
        "in a header": (
            whole[:1024] + b"\xff" * 512 + whole[1536:],
            "there are no headers from byte",
        ),
        "empty": (b"", "no whole tar: empty file"),
        "joined": (whole + whole, "there are no headers from byte"),
        "no tar": (b"x" * 2048, "no whole tar"),
    }
    for name, (content, told) in cases.items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / "x.tar").write_bytes(content)
        with pytest.raises(DataError, match=told):
            index_set(str(folder))
        assert not (folder / "index.json").exists()


def test_samples_must_lie_side_by_side_and_be_plain_files(tmp_path: Path) -> None:
    path = tar(tmp_path / "x.tar", {"0.png": image(0), "1.png": image(1), "0.txt": b"late"})
    with pytest.raises(DataError, match=r"the files of 0 do not lie side by side; .* --sort=name"):
        index_set(str(tmp_path))
    for name in ("README", ".hidden.png", "../0.png"):
        tar(path, {name: image(0)})
        with pytest.raises(DataError, match=f"{name}' is not a plain file of a sample"):
            index_set(str(tmp_path))
    with tarfile.open(path, "w") as archive:
        link = tarfile.TarInfo("0.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with pytest.raises(DataError, match=r"0\.png' is not a plain file of a sample"):
        index_set(str(tmp_path))


def test_places_without_fitting_tars_are_explained(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no tar files$"):
        index_set(str(tmp_path))
    tar(tmp_path / "below" / "x.tar", {"0.png": image(0)})
    with pytest.raises(DataError, match=f"there are some in {tmp_path}/below"):
        index_set(str(tmp_path))
    (tmp_path / "x.tar.gz").touch()
    with pytest.raises(DataError, match=r"x\.tar\.gz is compressed, .* unpack it"):
        index_set(str(tmp_path))
    tar(tmp_path / "my set.tar", {"0.png": image(0)})
    with pytest.raises(DataError, match="rename it with letters"):
        index_set(str(tmp_path))


def test_an_index_is_never_written_over_and_an_interrupted_one_goes_on(tmp_path: Path) -> None:
    tar(tmp_path / "x.tar", labelled(0, 4))
    index_set(str(tmp_path))
    with pytest.raises(DataError, match=r"packed set at .* already"):
        index_set(str(tmp_path))
    whole = (tmp_path / "index.json").read_bytes()
    (tmp_path / "index.json").unlink()
    index_set(str(tmp_path))
    assert (tmp_path / "index.json").read_bytes() == whole
    (tmp_path / "index.json").unlink()
    (tmp_path / "x.tar.idx").write_bytes(b"someone else's")
    with pytest.raises(DataError, match=r"x\.tar\.idx is there already with another content"):
        index_set(str(tmp_path))
    assert (tmp_path / "x.tar.idx").read_bytes() == b"someone else's"


def test_an_empty_tar_is_left_out(tmp_path: Path) -> None:
    tar(tmp_path / "a.tar", labelled(0, 2))
    tar(tmp_path / "b.tar", {})
    assert [shard.name for shard in index_set(str(tmp_path)).index.shards] == ["a.tar"]
    shutil.copy(tmp_path / "b.tar", tmp_path / "0.tar")
    (tmp_path / "index.json").unlink()
    with pytest.raises(DataError, match=r"0\.tar is an empty tar; remove it"):
        index_set(str(tmp_path))


@pytest.mark.parametrize("hostile", ["long pax", "chain of names"])
def test_headers_that_would_take_for_ever_are_refused(tmp_path: Path, hostile: str) -> None:
    info = tarfile.TarInfo("s0.png")
    if hostile == "long pax":
        info.type, content = tarfile.XHDTYPE, b"1" * 500_000
        info.size = len(content)
        head = info.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % 512)
    else:
        info.type, info.size = tarfile.GNUTYPE_LONGNAME, 5
        head = (info.tobuf(tarfile.USTAR_FORMAT) + b"s0.a\0".ljust(512, b"\0")) * 5000
    (tmp_path / "x.tar").write_bytes(head + bytes(10240))
    with pytest.raises(DataError, match=r"x\.tar is no whole tar"):
        index_set(str(tmp_path))

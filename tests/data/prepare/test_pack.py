"""Packing folders of images: layouts, conversions and refusals."""

import io
import shutil
from pathlib import Path

import numpy
import pytest
from PIL import Image
from typer.testing import CliRunner

from orchestrator.cli import app
from orchestrator.data.format.images import Fit
from orchestrator.data.format.shard_index import open_set
from orchestrator.data.prepare.check import check_set
from orchestrator.data.prepare.pack import pack_folder
from orchestrator.errors import DataError, UsageError
from support.fetched import samples


def noise(seed: int, size: tuple[int, int] = (8, 8)) -> Image.Image:
    pixels = numpy.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), numpy.uint8)
    return Image.fromarray(pixels)


def save(image: Image.Image, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path


def images_in(uri: Path) -> list[dict[str, Image.Image]]:
    packed = open_set(str(uri))
    locations = [(s, i) for s, size in enumerate(packed.shard_sizes) for i in range(size)]
    return [
        {name: Image.open(io.BytesIO(data)) for name, data in packed.read(*location).items()}
        for location in locations
    ]


def packed_one(
    path: Path, tmp_path: Path, size: int | None = None, fit: Fit | None = None
) -> Image.Image:
    """Pack a folder that holds only ``path`` and return the image."""
    folder = tmp_path / "alone"
    folder.mkdir()
    shutil.copy(path, folder)
    pack_folder(folder, str(tmp_path / "out"), size=size, fit=fit, validation_share=0)
    (images,) = images_in(tmp_path / "out" / "train")
    return images["image"]


def test_single_images_are_packed_unchanged_and_split_by_content(tmp_path: Path) -> None:
    for n in range(60):
        save(noise(n), tmp_path / "in" / f"dir{n % 3}" / f"{n:02d}.png")
    seen: list[tuple[int, int]] = []
    summary = pack_folder(
        tmp_path / "in",
        str(tmp_path / "out"),
        validation_share=0.3,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert summary.num_train + summary.num_validation == 60
    assert 8 <= summary.num_validation <= 28
    assert seen == [(n, 60) for n in range(1, 61)]
    found = [
        s["image"].tobytes()
        for part in ("train", "validation")
        for s in images_in(tmp_path / "out" / part)
    ]
    assert sorted(found) == sorted(noise(n).tobytes() for n in range(60))
    for uri in (summary.train_uri, summary.validation_uri):
        assert check_set(uri).ok


def test_duplicates_are_in_one_set_whatever_their_names_and_formats(tmp_path: Path) -> None:
    for n in range(40):
        save(noise(n % 10), tmp_path / "in" / f"{n:02d}.{'png' if n % 3 else 'bmp'}")
    pack_folder(tmp_path / "in", str(tmp_path / "out"), validation_share=0.5)
    sides = [
        {s["image"].tobytes() for s in images_in(tmp_path / "out" / part)}
        for part in ("train", "validation")
    ]
    assert len(sides[0]) + len(sides[1]) == 10
    assert not sides[0] & sides[1]


def test_folders_a_and_b_are_pairs(tmp_path: Path) -> None:
    for n in range(5):
        save(noise(n), tmp_path / "in" / "A" / f"{n}.png")
        save(noise(100 + n), tmp_path / "in" / "B" / f"{n}.bmp")
    summary = pack_folder(tmp_path / "in", str(tmp_path / "out"), validation_share=0)
    assert summary.num_validation == 0
    assert not (tmp_path / "out" / "validation").exists()
    for n, sample in enumerate(images_in(tmp_path / "out" / "train")):
        assert sample["a"].tobytes() == noise(n).tobytes()
        assert sample["b"].tobytes() == noise(100 + n).tobytes()


def test_an_image_without_a_partner_is_named(tmp_path: Path) -> None:
    save(noise(1), tmp_path / "A" / "1.png")
    save(noise(1), tmp_path / "B" / "1.png")
    save(noise(1), tmp_path / "B" / "lonely.png")
    with pytest.raises(DataError, match="lonely is in only one of A and B"):
        pack_folder(tmp_path, str(tmp_path / "out"))


def test_files_of_pairs_side_by_side_are_split_into_halves(tmp_path: Path) -> None:
    save(noise(0, (16, 8)), tmp_path / "in" / "x.png")
    pack_folder(tmp_path / "in", str(tmp_path / "out"), side_by_side=True, validation_share=0)
    (sample,) = images_in(tmp_path / "out" / "train")
    whole = numpy.asarray(noise(0, (16, 8)))
    assert numpy.array_equal(numpy.asarray(sample["a"]), whole[:, :8])
    assert numpy.array_equal(numpy.asarray(sample["b"]), whole[:, 8:])


@pytest.mark.parametrize("held_out", ["val", "validation", "test"])
def test_a_pix2pix_archive_keeps_its_own_split(tmp_path: Path, held_out: str) -> None:
    for n in range(6):
        save(noise(n, (16, 8)), tmp_path / "in" / "train" / f"{n}.jpg")
    save(noise(9, (16, 8)), tmp_path / "in" / held_out / "0.jpg")
    summary = pack_folder(tmp_path / "in", str(tmp_path / "out"))
    assert (summary.num_train, summary.num_validation) == (6, 1)
    assert open_set(summary.validation_uri).fields == ("a", "b")


def test_fit_pad_pads_with_white_to_a_square_and_resizes(tmp_path: Path) -> None:
    path = save(Image.new("RGB", (8, 4), "red"), tmp_path / "wide.png")
    image = packed_one(path, tmp_path, size=16, fit="pad")
    assert image.size == (16, 16)
    assert image.getpixel((8, 0)) == (255, 255, 255)
    assert image.getpixel((8, 8)) == (255, 0, 0)


def test_downscaling_is_antialiased(tmp_path: Path) -> None:
    stripes = numpy.zeros((64, 64, 3), numpy.uint8)
    stripes[:, ::2] = 255
    image = packed_one(save(Image.fromarray(stripes), tmp_path / "s.png"), tmp_path, size=8)
    assert numpy.abs(numpy.asarray(image).astype(int) - 127)[:, 2:-2].max() < 20


def test_transparency_becomes_white(tmp_path: Path) -> None:
    image = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    image.putpixel((1, 1), (0, 0, 255, 255))
    found = packed_one(save(image, tmp_path / "x.png"), tmp_path)
    assert found.mode == "RGB"
    assert found.getpixel((0, 0)) == (255, 255, 255)
    assert found.getpixel((1, 1)) == (0, 0, 255)


def test_a_palette_with_a_transparent_colour_becomes_colour_on_white(tmp_path: Path) -> None:
    image = Image.new("P", (2, 2), 1)
    image.putpalette([0, 255, 0, 10, 20, 30])
    image.putpixel((0, 0), 0)
    image.save(tmp_path / "x.png", transparency=0)
    found = packed_one(tmp_path / "x.png", tmp_path)
    assert found.getpixel((0, 0)) == (255, 255, 255)
    assert found.getpixel((1, 1)) == (10, 20, 30)


def test_sixteen_bit_images_keep_their_shades(tmp_path: Path) -> None:
    deep = numpy.array([[0, 65535], [32896, 257]], numpy.uint16)
    found = packed_one(save(Image.fromarray(deep), tmp_path / "x.png"), tmp_path)
    assert numpy.asarray(found)[:, :, 0].tolist() == [[0, 255], [128, 1]]


def test_cmyk_becomes_colour(tmp_path: Path) -> None:
    image = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    found = packed_one(save(image, tmp_path / "x.jpg"), tmp_path)
    red, green, blue = numpy.asarray(found)[4, 4]
    assert red > 230
    assert green < 30
    assert blue < 30


def test_a_photograph_is_rotated_by_its_exif_orientation(tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 8), "black")
    image.paste("white", (0, 0, 8, 4))
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise: the top becomes the right
    image.save(tmp_path / "x.png", exif=exif)
    found = packed_one(tmp_path / "x.png", tmp_path)
    assert found.getpixel((7, 4)) == (255, 255, 255)
    assert found.getpixel((0, 4)) == (0, 0, 0)


def test_grey_sets_have_one_channel(tmp_path: Path) -> None:
    save(Image.new("L", (4, 4), 77), tmp_path / "in" / "x.png")
    pack_folder(tmp_path / "in", str(tmp_path / "out"), channels=1, validation_share=0)
    assert open_set(str(tmp_path / "out" / "train")).channels == 1
    assert check_set(str(tmp_path / "out" / "train")).ok
    assert images_in(tmp_path / "out" / "train")[0]["image"].getpixel((0, 0)) == 77


def test_the_command_packs_a_grey_set_without_resizing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(Image.new("RGB", (4, 4), (77, 77, 77)), tmp_path / "in" / "x.ppm")
    source, out = str(tmp_path / "in"), str(tmp_path / "out")
    command = ["orchestrator", "data", "pack", source, out, "--grey", "--validation-share", "0"]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit) as end:
        app.main()
    assert not end.value.code
    packed = open_set(f"{out}/train")
    assert (packed.channels, packed.image_size) == (1, 4)
    assert images_in(tmp_path / "out" / "train")[0]["image"].getpixel((0, 0)) == 77


def test_a_file_that_does_not_decode_is_named(tmp_path: Path) -> None:
    save(noise(0), tmp_path / "in" / "good.png")
    whole = save(noise(1, (64, 64)), tmp_path / "in" / "half.png")
    whole.write_bytes(whole.read_bytes()[:2000])
    with pytest.raises(DataError, match=r"half\.png cannot be decoded"):
        pack_folder(tmp_path / "in", str(tmp_path / "out"))
    assert not list((tmp_path / "out").rglob("index.json"))


def test_images_of_different_sizes_need_a_size(tmp_path: Path) -> None:
    save(noise(0), tmp_path / "in" / "a.png")
    save(noise(1, (9, 9)), tmp_path / "in" / "b.png")
    with pytest.raises(DataError, match=r"in/b\.png is 9x9, not 8x8 like most images; give --"):
        pack_folder(tmp_path / "in", str(tmp_path / "out"))


def test_images_that_are_not_square_need_a_size(tmp_path: Path) -> None:
    save(noise(0, (9, 8)), tmp_path / "in" / "a.png")
    with pytest.raises(DataError, match=r"a\.png is 9x8, not square; give --size"):
        pack_folder(tmp_path / "in", str(tmp_path / "out"))


def test_folders_without_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no images"):
        pack_folder(tmp_path, str(tmp_path / "out"))
    with pytest.raises(DataError, match="is not a folder"):
        pack_folder(tmp_path / "nowhere", str(tmp_path / "out"))


def test_an_existing_set_is_not_overwritten(tmp_path: Path) -> None:
    for n in range(4):
        save(noise(n), tmp_path / "in" / f"{n}.png")
    pack_folder(tmp_path / "in", str(tmp_path / "out"))
    out = tmp_path / "out"
    message = f"; remove {out}/train and {out}/validation, or choose another destination"
    with pytest.raises(DataError, match=message):
        pack_folder(tmp_path / "in", str(tmp_path / "out"))


def labels_in(uri: Path) -> list[tuple[str, str]]:
    """Return the readable part of the key and the class of each sample."""
    classes = open_set(str(uri)).index.classes
    return [(s["key"].decode().partition("-")[2], classes[int(s["cls"])]) for s in samples(uri)]


def test_folders_are_classes_in_alphabetical_order(tmp_path: Path) -> None:
    for n, name in enumerate(["dog", "cat", "dog", "ant"]):
        save(noise(n), tmp_path / "in" / name / f"{n}.png")
    pack_folder(tmp_path / "in", str(tmp_path / "out"), labels=True, validation_share=0)
    assert open_set(str(tmp_path / "out" / "train")).index.classes == ("ant", "cat", "dog")
    assert labels_in(tmp_path / "out" / "train") == [
        ("ant_3", "ant"),
        ("cat_1", "cat"),
        ("dog_0", "dog"),
        ("dog_2", "dog"),
    ]


def test_class_numbers_are_the_same_in_both_sets(tmp_path: Path) -> None:
    for n, name in enumerate(["train/b", "train/c", "val/a", "val/c"]):
        save(noise(n), tmp_path / "in" / name / f"{n}.png")
    pack_folder(tmp_path / "in", str(tmp_path / "out"), labels=True)
    assert labels_in(tmp_path / "out" / "train") == [("b_0", "b"), ("c_1", "c")]
    assert labels_in(tmp_path / "out" / "validation") == [("a_2", "a"), ("c_3", "c")]


def test_an_image_outside_of_the_class_folders_is_named(tmp_path: Path) -> None:
    save(noise(1), tmp_path / "in" / "cat" / "1.png")
    path = save(noise(2), tmp_path / "in" / "2.png")
    with pytest.raises(DataError, match=f"{path} is not in a class folder"):
        pack_folder(tmp_path / "in", str(tmp_path / "out"), labels=True)


def test_captions_are_read_from_text_files_beside_the_images(tmp_path: Path) -> None:
    texts = ["  a red cat\n", "żółty kot", ""]
    for n, text in enumerate(texts):
        save(noise(n), tmp_path / "in" / f"{n}.png").with_suffix(".txt").write_text(text, "utf-8")
    pack_folder(tmp_path / "in", str(tmp_path / "out"), captions=True, validation_share=0)
    found = [s["txt"].decode() for s in samples(tmp_path / "out" / "train")]
    assert found == ["a red cat", "żółty kot", ""]
    assert check_set(str(tmp_path / "out" / "train")).ok


def test_a_missing_or_unreadable_caption_is_named(tmp_path: Path) -> None:
    path = save(noise(1), tmp_path / "in" / "1.png")
    with pytest.raises(DataError, match=f"{path} has no caption: write one to .*1.txt"):
        pack_folder(tmp_path / "in", str(tmp_path / "out"), captions=True)
    path.with_suffix(".txt").write_bytes(b"\xff")
    with pytest.raises(DataError, match=r"1\.txt is not UTF-8 text"):
        pack_folder(tmp_path / "in", str(tmp_path / "out"), captions=True)


def couples(uri: Path, known: dict[bytes, str]) -> list[tuple[str, str]]:
    return [(known[i["a"].tobytes()], known[i["b"].tobytes()]) for i in images_in(uri)]


def unpaired_folder(folder: Path, **counts: int) -> dict[bytes, str]:
    """Write ``counts[name]`` images to a folder per name; return the name of each by its pixels."""
    known = {}
    for k, (name, count) in enumerate(counts.items()):
        for n in range(count):
            image = noise(100 * k + n)
            save(image, folder / name / f"{name}-{n:02d}.png")
            known[image.tobytes()] = f"{name}{n}"
    return known


def test_the_shorter_side_of_unpaired_images_is_repeated(tmp_path: Path) -> None:
    known = unpaired_folder(tmp_path / "in", trainA=2, trainB=5, testA=3, testB=1)
    pack_folder(tmp_path / "in", str(tmp_path / "out"), unpaired=True)
    train = couples(tmp_path / "out" / "train", known)
    assert train == [(f"trainA{n % 2}", f"trainB{n}") for n in range(5)]
    held_out = couples(tmp_path / "out" / "validation", known)
    assert held_out == [(f"testA{n}", "testB0") for n in range(3)]


def test_unpaired_images_are_never_in_both_sets(tmp_path: Path) -> None:
    known = unpaired_folder(tmp_path / "in", A=40, B=10)
    pack_folder(tmp_path / "in", str(tmp_path / "out"), unpaired=True, validation_share=0.3)
    train = couples(tmp_path / "out" / "train", known)
    held_out = couples(tmp_path / "out" / "validation", known)
    for side in (0, 1):
        ours, others = ({couple[side] for couple in part} for part in (train, held_out))
        assert not ours & others
        assert len(ours | others) == (40, 10)[side]


def test_unpaired_images_may_differ_in_size_if_a_size_is_given(tmp_path: Path) -> None:
    save(noise(1, (8, 6)), tmp_path / "in" / "trainA" / "1.png")
    save(noise(2, (10, 10)), tmp_path / "in" / "trainB" / "2.png")
    with pytest.raises(DataError, match="differ in size; give --size"):
        pack_folder(tmp_path / "in", str(tmp_path / "out"), unpaired=True)
    pack_folder(tmp_path / "in", str(tmp_path / "out"), unpaired=True, size=7)
    (images,) = images_in(tmp_path / "out" / "train")
    assert images["a"].size == images["b"].size == (7, 7)


def test_unpaired_does_not_go_with_other_layouts(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="give --unpaired alone"):
        pack_folder(tmp_path, str(tmp_path / "out"), unpaired=True, labels=True)
    save(noise(1), tmp_path / "1.png")
    with pytest.raises(DataError, match=r"does not hold .* trainA and trainB"):
        pack_folder(tmp_path, str(tmp_path / "out"), unpaired=True)


def test_the_command_packs_classes_and_captions(tmp_path: Path) -> None:
    for n, name in enumerate("abab"):
        save(noise(n), tmp_path / "in" / name / f"{n}.png").with_suffix(".txt").write_text(name)
    arguments = ["data", "pack", str(tmp_path / "in"), str(tmp_path / "out")]
    arguments += ["--labels", "--captions", "--validation-share", "0"]
    CliRunner().invoke(app.app, arguments, catch_exceptions=False)
    assert [s["txt"].decode() for s in samples(tmp_path / "out" / "train")] == list("aabb")

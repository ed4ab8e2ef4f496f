"""Which sample, field, part and class each file of a folder becomes, for layouts as people have."""

import itertools
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.data.prepare.folder_scan import FolderScan, scan_folder
from orchestrator.data.prepare.folders import FolderLayout, ImageSource
from orchestrator.errors import DataError, UsageError
from support.image_folders import write_images


def scan(folder: Path, **options: object) -> FolderScan:
    return scan_folder(folder, FolderLayout(**options))  # type: ignore[arg-type]


def taken(found: FolderScan) -> list[tuple[str, tuple[str, ...], str | None]]:
    """Return the part, the files and the class of each sample."""
    assert found.refusals == []

    def describe(source: ImageSource) -> tuple[str, tuple[str, ...], str | None]:
        part = {None: "", False: "train", True: "validation"}[source.for_validation]
        names = tuple(path.relative_to(found.folder).as_posix() for path in source.paths)
        return part, names, source.label

    return [describe(source) for source in found.sources]


def said(found: FolderScan, kind: str) -> str:
    return "\n".join(each.line() for each in found.findings if each.kind == kind)


LEVELS = {"part": ("train", "val"), "side": ("A", "B"), "class": ("cats", "dogs")}
ORDERS = [
    order for number in range(1, 4) for order in itertools.permutations(LEVELS, number)
]  # fmt: skip


@pytest.mark.parametrize("capitals", [str.lower, str.upper, str.title])
@pytest.mark.parametrize("order", ORDERS, ids="/".join)
def test_parts_sides_and_classes_are_found_in_any_order_and_capitals(
    order: tuple[str, ...], capitals: Callable[[str], str], tmp_path: Path
) -> None:
    def path_of(words: dict[str, str], number: int) -> str:
        folders = [w if k == "class" else capitals(w) for k, w in words.items()]
        return "/".join((*folders, f"{number}.png"))

    choices = [
        dict(zip(order, words, strict=True))
        for words in itertools.product(*(LEVELS[kind] for kind in order))
    ]
    write_images(tmp_path, *(path_of(words, n) for words in choices for n in range(2)))
    expected = []
    for words, number in itertools.product(choices, range(2)):
        if words.get("side") == "B":
            continue
        part = {"train": "train", "val": "validation", None: ""}[words.get("part")]
        sides = [words | {"side": "A"}, words | {"side": "B"}] if "side" in words else [words]
        paths = tuple(path_of({k: each[k] for k in order}, number) for each in sides)
        expected.append((part, paths, words.get("class")))
    found = scan(tmp_path, labels="class" in order)
    assert sorted(taken(found)) == sorted(expected)
    assert ("--no-keep-split" in said(found, "guessed")) == ("part" in order)
    assert ("--no-pairs" in said(found, "guessed")) == ("side" in order)


@pytest.mark.parametrize(
    "names", [("trainA", "trainB", "valA", "valB"), ("TRAIN_A", "Train_B", "Val-A", "val b")]
)
@pytest.mark.parametrize("unpaired", [False, True])
def test_train_a_and_train_b_are_part_and_side_at_once(
    names: tuple[str, ...], unpaired: bool, tmp_path: Path
) -> None:
    write_images(tmp_path, *(f"{name}/1.png" for name in names))
    train, held_out = (
        (f"{names[0]}/1.png", f"{names[1]}/1.png"),
        (
            f"{names[2]}/1.png",
            f"{names[3]}/1.png",
        ),
    )
    expected = [("train", train, None), ("validation", held_out, None)]
    assert taken(scan(tmp_path, unpaired=unpaired)) == expected


@pytest.mark.parametrize("word", ["val", "Valid", "VALIDATION", "dev", "eval", "test", "Testing"])
def test_a_held_out_folder_of_any_usual_name_is_the_validation_set(
    word: str, tmp_path: Path
) -> None:
    write_images(tmp_path, "Train/1.png", f"{word}/2.png")
    assert taken(scan(tmp_path)) == [
        ("train", ("Train/1.png",), None),
        ("validation", (f"{word}/2.png",), None),
    ]


def test_test_beside_val_is_left_out_and_a_switch_takes_it(tmp_path: Path) -> None:
    write_images(tmp_path, "train/1.png", "val/2.png", "Test/3.png", "Test/4.png")
    found = scan(tmp_path)
    assert [part for part, _, _ in taken(found)] == ["train", "validation"]
    assert said(found, "left out") == (
        "2 images of the part test (--validation-folder test takes it): Test/3.png, Test/4.png"
    )
    only_test = scan(tmp_path, validation_folders=("test",))
    assert taken(only_test)[1:] == [
        ("validation", ("Test/3.png",), None),
        ("validation", ("Test/4.png",), None),
    ]
    assert "1 image of the part val" in said(only_test, "left out")
    both = scan(tmp_path, validation_folders=("VAL", "test"))
    assert len(taken(both)) == 4
    assert said(both, "left out") == ""


def test_a_validation_folder_may_have_any_name_but_must_be_there(tmp_path: Path) -> None:
    write_images(tmp_path, "train/1.png", "holdout/2.png")
    found = scan(tmp_path, validation_folders=("holdout",))
    assert taken(found)[1] == ("validation", ("holdout/2.png",), None)
    with pytest.raises(DataError, match="no such part beside train; it has val"):
        scan(write_images(tmp_path / "x", "train/1.png", "val/1.png"), validation_folders=("dev",))


def test_a_split_is_given_up_on_request_and_classes_are_kept(tmp_path: Path) -> None:
    write_images(tmp_path, "train/cats/1.png", "train/dogs/1.png", "val/cats/1.png")
    assert taken(scan(tmp_path, keep_split=False, labels=True)) == [
        ("", ("train/cats/1.png",), "cats"),
        ("", ("val/cats/1.png",), "cats"),
        ("", ("train/dogs/1.png",), "dogs"),
    ]


def test_a_class_that_is_named_train_is_not_a_part(tmp_path: Path) -> None:
    write_images(tmp_path, "car/1.png", "plane/1.png", "train/1.png")
    assert [label for _, _, label in taken(scan(tmp_path, labels=True))] == [
        "car",
        "plane",
        "train",
    ]


@pytest.mark.parametrize("names", ["ab", "abc", "AB"])
def test_with_labels_folders_of_letters_are_classes(names: str, tmp_path: Path) -> None:
    write_images(tmp_path, *(f"{name}/{name}.png" for name in names))
    assert [label for _, _, label in taken(scan(tmp_path, labels=True))] == sorted(names)


def test_folders_a_and_b_are_ordinary_on_request(tmp_path: Path) -> None:
    write_images(tmp_path, "A/1.png", "B/1.png")
    assert taken(scan(tmp_path, pairs=False)) == [
        ("", ("A/1.png",), None),
        ("", ("B/1.png",), None),
    ]


def test_what_lies_beside_pairs_is_left_out_only_if_the_pairs_match(tmp_path: Path) -> None:
    write_images(tmp_path / "match", "A/1.png", "B/1.png", "masks/1.png", "overview.png")
    found = scan(tmp_path / "match")
    assert taken(found) == [("", ("A/1.png", "B/1.png"), None)]
    assert said(found, "left out") == (
        "2 images beside the folders A and B (--no-pairs takes all of them): "
        "masks/1.png, overview.png"
    )
    write_images(tmp_path / "letters", "A/1.png", "B/2.png", "C/3.png")
    assert len(taken(scan(tmp_path / "letters"))) == 3


def test_what_lies_beside_train_and_val_is_left_out(tmp_path: Path) -> None:
    write_images(tmp_path, "train/1.png", "val/1.png", "extra/1.png", "logo.png")
    found = scan(tmp_path)
    assert len(taken(found)) == 2
    assert "2 images beside the folders train and val (--no-keep-split" in said(found, "left out")
    assert len(taken(scan(tmp_path, keep_split=False))) == 4


def test_one_folder_around_everything_is_no_class(tmp_path: Path) -> None:
    write_images(tmp_path, "pets/train/cats/1.png", "pets/train/dogs/1.png", "pets/val/cats/1.png")
    assert [(part, label) for part, _, label in taken(scan(tmp_path, labels=True))] == [
        ("train", "cats"),
        ("train", "dogs"),
        ("validation", "cats"),
    ]


def test_class_folders_without_labels_are_noticed(tmp_path: Path) -> None:
    write_images(tmp_path, "cats/1.png", "dogs/1.png")
    assert said(scan(tmp_path), "guessed") == (
        "2 folders are not taken for classes (--labels): cats, dogs"
    )


def test_classes_that_differ_in_capitals_are_noticed(tmp_path: Path) -> None:
    write_images(tmp_path, "Cats/1.png", "cats/1.png", "dogs/1.png")
    assert "differ in capitals only are different classes" in said(
        scan(tmp_path, labels=True), "guessed"
    )


def test_two_folders_of_one_role_are_refused(tmp_path: Path) -> None:
    write_images(tmp_path, "Train/1.png", "train/2.png", "val/1.png")
    assert [each.text for each in scan(tmp_path).refusals] == [
        "Train and train are names of one folder"
    ]


def test_all_images_without_a_partner_are_listed(tmp_path: Path) -> None:
    names = [f"A/{n:02d}.png" for n in range(12)]
    write_images(tmp_path, *names, "A/both.png", "B/both.png", "B/Lonely.png", "A/lonely.png")
    with pytest.raises(DataError) as error:
        scan(tmp_path).require_packable()
    first, *lines = str(error.value).splitlines()
    assert "14 images have no partner; some names differ in capitals only" in first
    assert lines[0] == "  00 is in only one of A and B"
    assert len(lines) == 11
    assert lines[-1] == "  and 4 more"


def test_equal_names_with_different_endings_are_refused_together(tmp_path: Path) -> None:
    write_images(tmp_path, "1.png", "1.jpg", "2.png", "2.webp", "3.png")
    (refusal,) = scan(tmp_path).refusals
    assert refusal.examples == (
        "1.jpg and 1.png differ in suffix only",
        "2.png and 2.webp differ in suffix only",
    )


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    elsewhere = write_images(tmp_path / "elsewhere", "1.png", "2.png")
    folder = write_images(tmp_path / "in", "real/3.png")
    (folder / "A").symlink_to(elsewhere)
    (folder / "real" / "up").symlink_to(folder)
    (folder / "file.png").symlink_to(elsewhere / "1.png")
    found = scan(folder)
    assert [paths for _, paths, _ in taken(found)] == [
        ("A/1.png",),
        ("A/2.png",),
        ("file.png",),
        ("real/3.png",),
    ]
    assert said(found, "left out") == "1 link leads back to a folder above: real/up"


def test_names_that_are_not_utf8_are_packed_and_printed(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "in", "1.png")
    os.rename(os.fsencode(folder / "1.png"), os.fsencode(folder) + b"/caf\xe9.png")
    found = scan(folder)
    assert found.sources[0].key == "0000000-caf_"
    (folder / ".hidden\n").touch()
    assert r".hidden\n" in said(scan(folder), "left out")
    (path,) = found.facts
    os.makedirs(os.fsencode(folder) + b"/t\xe9")
    os.rename(folder / path, os.fsencode(folder) + b"/t\xe9/1.png")
    (refusal,) = scan(folder, labels=True).refusals
    assert refusal.examples == (r"t\xe9 is not a valid class name",)


def test_options_that_do_not_go_together_are_refused() -> None:
    for options in (
        {"unpaired": True, "pairs": False},
        {"pairs": True, "side_by_side": True},
        {"keep_split": False, "validation_folders": ("val",)},
    ):
        with pytest.raises(UsageError):
            FolderLayout(**options)

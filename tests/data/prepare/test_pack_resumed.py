"""Packing in several processes, again after an interruption, and beside somebody else."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy
import pytest
from PIL import Image
from typer.testing import CliRunner

from orchestrator.cli import app
from orchestrator.data.datasets.sources import fetch
from orchestrator.data.format.shard_index import open_set
from orchestrator.data.format.write_once import MARK, put_once
from orchestrator.data.prepare.check import check_set
from orchestrator.data.prepare.pack import pack_folder
from orchestrator.data.prepare.process_map import in_processes
from orchestrator.errors import DataError, EnvironmentProblem, UsageError
from orchestrator.storage.local import FolderStorage
from orchestrator.storage.open import open_storage

ROOT = Path(__file__).parents[3]
COUNT = 90
SHARD_BYTES = 20_000


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Enough images that they are converted in other processes."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for n in range(COUNT):
        pixels = numpy.random.default_rng(n).integers(0, 256, (24, 24, 3), numpy.uint8)
        Image.fromarray(pixels).save(folder / f"{n:03d}.png")
    return folder


def pack(photos: Path, dest: Path | str, **options: object) -> None:
    options = {
        "size": 20,
        "validation_share": 0.3,
        "shard_bytes": SHARD_BYTES,
        "workers": 1,
        **options,
    }
    pack_folder(photos, str(dest), **options)


def files(dest: Path | str) -> dict[str, str]:
    storage = open_storage(str(dest))
    return {key: hashlib.sha256(storage.get(key)).hexdigest() for key in storage.list()}


class Interrupted(BaseException):
    """Like Ctrl-C: no error of the packing's own."""


def interrupted_after(count: int, photos: Path, dest: Path | str, **options: object) -> None:
    def progress(done: int, _: int) -> None:
        if done >= count:
            raise Interrupted

    with pytest.raises(Interrupted):
        pack(photos, dest, progress=progress, **options)


def test_any_number_of_processes_writes_the_same_bytes(photos: Path, tmp_path: Path) -> None:
    for workers in (1, 2, 3):
        pack(photos, tmp_path / str(workers), workers=workers)
    one, two, three = (files(tmp_path / str(workers)) for workers in (1, 2, 3))
    assert one == two == three
    assert "train/000002.tar.idx" in one
    assert "validation/000001.tar.idx" in one
    assert MARK not in one


@pytest.mark.parametrize("place", ["folder", "s3"])
@pytest.mark.parametrize("after", [1, 40, COUNT])
def test_an_interrupted_packing_goes_on_and_ends_with_the_same_bytes(
    photos: Path, tmp_path: Path, place: str, after: int, request: pytest.FixtureRequest
) -> None:
    dest = request.getfixturevalue("s3") if place == "s3" else str(tmp_path / "out")
    pack(photos, tmp_path / "whole", workers=1)
    interrupted_after(after, photos, dest, workers=1)
    left = files(dest)
    assert not [key for key in left if key.endswith("index.json")]
    seen: list[tuple[int, int]] = []
    pack(photos, dest, workers=2, progress=lambda done, total: seen.append((done, total)))
    assert files(dest) == files(tmp_path / "whole")
    kept = sum(
        FolderStorage(tmp_path / "whole").size(key) // 8 for key in left if key.endswith(".idx")
    )
    assert (kept > 0) == (after > 1)
    assert len(seen) == COUNT - kept, "only the rest is converted"
    assert seen[-1] == (COUNT, COUNT)


def test_a_folder_that_is_split_itself_goes_on_too(photos: Path, tmp_path: Path) -> None:
    for part in ("train", "val"):
        (photos / part).mkdir()
    for n, path in enumerate(sorted(photos.glob("*.png"))):
        path.rename(photos / ("val" if n % 3 else "train") / f"{n // 3}-{n % 3}.png")
    pack(photos, tmp_path / "whole")
    interrupted_after(60, photos, tmp_path / "out")
    pack(photos, tmp_path / "out")
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_a_killed_command_goes_on_when_it_is_started_again(photos: Path, tmp_path: Path) -> None:
    """SIGKILL, so that nothing can be tidied up; also the processes that convert must end."""
    pack(photos, tmp_path / "whole")
    out = tmp_path / "out"
    command = ["data", "pack", str(photos), str(out), "--size", "20", "--validation-share", "0.3"]
    command += ["--shard-bytes", str(SHARD_BYTES), "--workers", "2"]
    environ = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    process = subprocess.Popen(
        [sys.executable, "-m", "orchestrator", *command],
        cwd=ROOT, env=environ, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    while not (out / "train/000000.tar.idx").exists() and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 30
    while _runs(process.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _runs(process.pid), "its processes have ended"
    finished = (out / "train/000000.tar").stat().st_mtime_ns
    CliRunner().invoke(app.app, command, catch_exceptions=False)
    assert (out / "train/000000.tar").stat().st_mtime_ns == finished
    assert files(out) == files(tmp_path / "whole")


def _runs(group: int) -> bool:
    """Whether a process of the group is left that is no zombie."""
    listed = subprocess.run(
        ["ps", "-eo", "pgid=,stat="], capture_output=True, text=True, check=True
    )
    rows = [line.split() for line in listed.stdout.splitlines()]
    return any(int(row[0]) == group and not row[1].startswith("Z") for row in rows)


@pytest.mark.parametrize(
    ("options", "told"),
    [({"size": 22}, "size 20 and not 22"), ({"jpeg": 90}, "jpeg None and not 90")],
)
def test_other_options_do_not_mix_with_what_was_begun(
    photos: Path, tmp_path: Path, options: dict[str, int], told: str
) -> None:
    interrupted_after(60, photos, tmp_path / "out")
    before = files(tmp_path / "out")
    with pytest.raises(DataError, match=f"or was interrupted \\({told}\\); .* remove .*{MARK}, "):
        pack(photos, tmp_path / "out", **options)
    assert files(tmp_path / "out") == before


def test_changed_images_do_not_mix_with_what_was_begun(photos: Path, tmp_path: Path) -> None:
    interrupted_after(60, photos, tmp_path / "out")
    os.utime(photos / "088.png", ns=(0, 0))
    with pytest.raises(DataError, match=r"something else is being packed at .* \(sources "):
        pack(photos, tmp_path / "out")


def test_a_packing_that_failed_before_it_wrote_leaves_nothing(photos: Path, tmp_path: Path) -> None:
    Image.new("RGB", (3, 4)).save(photos / "000.png")
    with pytest.raises(DataError, match="not square; give --size"):
        pack(photos, tmp_path / "out", size=None)
    assert files(tmp_path / "out") == {}
    pack(photos, tmp_path / "out")


def test_two_packers_of_the_same_end_with_one_set(photos: Path, s3: str, tmp_path: Path) -> None:
    pack(photos, tmp_path / "whole")
    code = (
        "import sys; from orchestrator.data.prepare.pack import pack_folder\n"
        "pack_folder(sys.argv[1], sys.argv[2], size=20, validation_share=0.3, workers=1, "
        f"shard_bytes={SHARD_BYTES})\n"
    )
    packers = [
        subprocess.Popen([sys.executable, "-c", code, str(photos), s3], cwd=ROOT) for _ in range(2)
    ]
    codes = [packer.wait(300) for packer in packers]
    # One that comes when the other is through finds a whole set, which it does not touch.
    assert 0 in codes
    assert files(s3) == files(tmp_path / "whole")


def test_a_set_that_another_has_begun_is_never_mixed(tmp_path: Path) -> None:
    storage = FolderStorage(tmp_path)
    put_once(storage, "x", b"one", "remove it")
    put_once(storage, "x", b"one", "remove it")
    with pytest.raises(DataError, match="x is there already with another content; remove it"):
        put_once(storage, "x", b"two", "remove it")
    assert storage.get("x") == b"one"


def test_a_damaged_shard_is_not_gone_on_after(photos: Path, tmp_path: Path) -> None:
    interrupted_after(60, photos, tmp_path / "out")
    shard = tmp_path / "out/train/000000.tar"
    content = bytearray(shard.read_bytes())
    content[700] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DataError, match=r"train/000000\.tar is damaged; remove .* pack it again"):
        pack(photos, tmp_path / "out")


def test_fetched_sets_go_on_too_and_do_not_mix(tmp_path: Path) -> None:
    def progress(done: int, total: int) -> None:
        if done == total:
            raise Interrupted

    fetch("digits", str(tmp_path / "whole"), size=8)
    out = tmp_path / "out"
    (out / "train").mkdir(parents=True)
    shutil.copy(tmp_path / "whole/train/000000.tar", out / "train")
    with pytest.raises(Interrupted):
        fetch("digits", str(out), size=8, progress=progress)
    with pytest.raises(DataError, match=r"something else .*\(size 8 and not 16\)"):
        fetch("digits", str(out), size=16)
    with pytest.raises(DataError, match=r"something else .*fetch digits and not openmoji"):
        fetch("openmoji", str(out), size=8)
    fetch("digits", str(out), size=8)
    assert files(out) == files(tmp_path / "whole")


def dies(number: int) -> None:
    if number == 5:
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_is_killed_is_told_of() -> None:
    with pytest.raises(EnvironmentProblem, match=r"one of 2 processes was killed, .* with fewer"):
        list(in_processes(dies, range(20), 2))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("pairs", [False, True])
def test_jpeg_is_packed_at_a_quality(tmp_path: Path, channels: int, pairs: bool) -> None:
    ramp = numpy.tile(numpy.arange(0, 256, 8, dtype=numpy.uint8), (32, 1))
    image = Image.fromarray(numpy.stack([ramp, ramp.T, ramp], 2))
    for side in "AB" if pairs else "x":
        (tmp_path / "in" / side).mkdir(parents=True)
        (image if side != "B" else image.rotate(180)).save(tmp_path / "in" / side / "0.png")
    arguments = ["data", "pack", str(tmp_path / "in"), str(tmp_path / "out"), "--jpeg", "90"]
    arguments += ["--validation-share", "0", *(["--grey"] if channels == 1 else [])]
    CliRunner().invoke(app.app, arguments, catch_exceptions=False)
    packed = open_set(str(tmp_path / "out/train"))
    fields = {"a": "a.jpg", "b": "b.jpg"} if pairs else {"image": "image.jpg"}
    assert packed.index.fields == fields
    assert check_set(packed.uri).ok
    (name, *_) = fields
    data = packed.read(0, 0)[name]
    assert bytes(data[:3]) == b"\xff\xd8\xff"
    decoded = packed.decode(data, "").astype(int)
    wanted = numpy.asarray(image.convert("RGB" if channels == 3 else "L")).reshape(decoded.shape)
    assert 0 < numpy.abs(decoded - wanted).mean() < 8


def test_sizes_are_written_with_units(tmp_path: Path, photos: Path) -> None:
    arguments = ["data", "pack", str(photos), str(tmp_path / "out"), "--shard-bytes"]
    error = CliRunner().invoke(app.app, [*arguments, "64 apples"]).exception
    assert isinstance(error, UsageError)
    assert "--shard-bytes: '64 apples' is no size; write a number with a unit" in str(error)
    CliRunner().invoke(app.app, [*arguments, "16KiB"], catch_exceptions=False)
    shards = open_set(str(tmp_path / "out/train")).index.shards
    assert len(shards) > 3
    assert all(shard.num_bytes <= 16 << 10 for shard in shards)

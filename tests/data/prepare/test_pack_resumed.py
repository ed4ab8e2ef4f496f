"""Packing in several processes, resuming it, and packing concurrently."""

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy
import psutil
import pytest
from PIL import Image
from typer.testing import CliRunner

from orchestrator.cli import app
from orchestrator.data.datasets.sources import fetch
from orchestrator.data.format.shard_index import open_set
from orchestrator.data.format.write_once import PACKING_FILE, put_once
from orchestrator.data.prepare.check import check_set
from orchestrator.data.prepare.pack import pack_folder
from orchestrator.data.prepare.parallel import map_in_processes
from orchestrator.errors import DataError, EnvironmentProblem, UsageError
from orchestrator.storage.local import FolderStorage
from orchestrator.storage.open import open_storage
from support.waiting import wait_until

ROOT = Path(__file__).parents[3]
COUNT = 90
SHARD_BYTES = 20_000


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Enough images to be converted in other processes."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for n in range(COUNT):
        pixels = numpy.random.default_rng(n).integers(0, 256, (24, 24, 3), numpy.uint8)
        Image.fromarray(pixels).save(folder / f"{n:03d}.png")
    return folder


def pack(photos: Path, dest: Path | str, **options: Any) -> None:
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
    """Stands for Ctrl-C."""


def interrupt_after(count: int, photos: Path, dest: Path | str, **options: object) -> None:
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
    assert PACKING_FILE not in one


@pytest.mark.parametrize("place", ["folder", pytest.param("s3", marks=pytest.mark.server)])
@pytest.mark.parametrize("after", [1, 40, COUNT])
def test_a_resumed_packing_writes_the_same_bytes(
    photos: Path, tmp_path: Path, place: str, after: int, request: pytest.FixtureRequest
) -> None:
    dest = request.getfixturevalue("s3") if place == "s3" else str(tmp_path / "out")
    pack(photos, tmp_path / "whole", workers=1)
    interrupt_after(after, photos, dest, workers=1)
    left = files(dest)
    assert not [key for key in left if key.endswith("index.json")]
    seen: list[tuple[int, int]] = []
    pack(photos, dest, workers=2, progress=lambda done, total: seen.append((done, total)))
    assert files(dest) == files(tmp_path / "whole")
    kept = sum(
        FolderStorage(tmp_path / "whole").size(key) // 8 for key in left if key.endswith(".idx")
    )
    assert (kept > 0) == (after > 1)
    assert len(seen) == COUNT - kept, "only the remaining images are converted"
    assert seen[-1] == (COUNT, COUNT)


def test_packing_a_split_folder_is_resumed(photos: Path, tmp_path: Path) -> None:
    for part in ("train", "val"):
        (photos / part).mkdir()
    for n, path in enumerate(sorted(photos.glob("*.png"))):
        path.rename(photos / ("val" if n % 3 else "train") / f"{n // 3}-{n % 3}.png")
    pack(photos, tmp_path / "whole")
    interrupt_after(60, photos, tmp_path / "out")
    pack(photos, tmp_path / "out")
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_a_killed_command_is_resumed_when_it_is_run_again(photos: Path, tmp_path: Path) -> None:
    """SIGKILL leaves no time to clean up; the converting processes must exit, too."""
    pack(photos, tmp_path / "whole")
    out = tmp_path / "out"
    command = ["data", "pack", str(photos), str(out), "--size", "20", "--validation-share", "0.3"]
    command += ["--shard-bytes", str(SHARD_BYTES), "--workers", "2"]
    environ = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    process = subprocess.Popen(
        [sys.executable, "-m", "orchestrator", *command],
        cwd=ROOT, env=environ, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    first = out / "train/000000.tar.idx"
    wait_until(lambda: first.exists() or process.poll() is not None, 120, "first shard", 0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_until(lambda: not live_members(process.pid), 30, "the converting processes exit")
    finished = (out / "train/000000.tar").stat().st_mtime_ns
    CliRunner().invoke(app.app, command, catch_exceptions=False)
    assert (out / "train/000000.tar").stat().st_mtime_ns == finished
    assert files(out) == files(tmp_path / "whole")


def live_members(group: int) -> list[psutil.Process]:
    """Return the processes of a process group, except zombies."""
    found = []
    for process in psutil.process_iter(["status"]):
        with contextlib.suppress(ProcessLookupError):
            if os.getpgid(process.pid) == group and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


@pytest.mark.parametrize(
    ("options", "message"),
    [({"size": 22}, "size 20, not 22"), ({"jpeg": 90}, "jpeg None, not 90")],
)
def test_packing_is_not_resumed_with_other_options(
    photos: Path, tmp_path: Path, options: dict[str, int], message: str
) -> None:
    interrupt_after(60, photos, tmp_path / "out")
    before = files(tmp_path / "out")
    with pytest.raises(
        DataError, match=rf"interrupted \({message}\); .* remove .*{PACKING_FILE}, "
    ):
        pack(photos, tmp_path / "out", **options)
    assert files(tmp_path / "out") == before


def test_packing_is_not_resumed_with_changed_images(photos: Path, tmp_path: Path) -> None:
    interrupt_after(60, photos, tmp_path / "out")
    os.utime(photos / "088.png", ns=(0, 0))
    with pytest.raises(DataError, match=r"another packing at .* in progress .* \(sources "):
        pack(photos, tmp_path / "out")


def test_a_packing_that_fails_before_writing_leaves_nothing(photos: Path, tmp_path: Path) -> None:
    Image.new("RGB", (3, 4)).save(photos / "000.png")
    with pytest.raises(DataError, match="not square; give --size"):
        pack(photos, tmp_path / "out", size=None)
    assert files(tmp_path / "out") == {}
    pack(photos, tmp_path / "out")


@pytest.mark.server
def test_two_concurrent_packings_write_one_set(photos: Path, s3: str, tmp_path: Path) -> None:
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
    # The later one may find a complete set and leave it alone.
    assert 0 in codes
    assert files(s3) == files(tmp_path / "whole")


def test_a_file_is_never_overwritten_with_other_content(tmp_path: Path) -> None:
    storage = FolderStorage(tmp_path)
    put_once(storage, "x", b"one", "remove it")
    put_once(storage, "x", b"one", "remove it")
    with pytest.raises(DataError, match="x already exists with other content; remove it"):
        put_once(storage, "x", b"two", "remove it")
    assert storage.get("x") == b"one"


def test_packing_is_not_resumed_after_a_corrupt_shard(photos: Path, tmp_path: Path) -> None:
    interrupt_after(60, photos, tmp_path / "out")
    shard = tmp_path / "out/train/000000.tar"
    content = bytearray(shard.read_bytes())
    content[700] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DataError, match=r"train/000000\.tar is corrupt; remove .* pack it again"):
        pack(photos, tmp_path / "out")


def test_an_interrupted_fetch_is_resumed_with_the_same_options_only(tmp_path: Path) -> None:
    def progress(done: int, total: int) -> None:
        if done == total:
            raise Interrupted

    fetch("digits", str(tmp_path / "whole"), size=8)
    out = tmp_path / "out"
    (out / "train").mkdir(parents=True)
    shutil.copy(tmp_path / "whole/train/000000.tar", out / "train")
    with pytest.raises(Interrupted):
        fetch("digits", str(out), size=8, progress=progress)
    with pytest.raises(DataError, match=r"another packing .*\(size 8, not 16\)"):
        fetch("digits", str(out), size=16)
    with pytest.raises(DataError, match=r"another packing .*fetch digits, not openmoji"):
        fetch("openmoji", str(out), size=8)
    fetch("digits", str(out), size=8)
    assert files(out) == files(tmp_path / "whole")


def kill_itself(number: int) -> None:
    if number == 5:
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_process_is_an_environment_problem() -> None:
    with pytest.raises(EnvironmentProblem, match=r"one of 2 processes was killed, .* with fewer"):
        list(map_in_processes(kill_itself, range(20), 2))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("pairs", [False, True])
def test_jpeg_is_packed_at_a_given_quality(tmp_path: Path, channels: int, pairs: bool) -> None:
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
    decoded = packed.decode_image(data, "").astype(int)
    wanted = numpy.asarray(image.convert("RGB" if channels == 3 else "L")).reshape(decoded.shape)
    assert 0 < numpy.abs(decoded - wanted).mean() < 8


def test_shard_bytes_take_a_unit(tmp_path: Path, photos: Path) -> None:
    arguments = ["data", "pack", str(photos), str(tmp_path / "out"), "--shard-bytes"]
    error = CliRunner().invoke(app.app, [*arguments, "64 apples"]).exception
    assert isinstance(error, UsageError)
    assert "--shard-bytes: '64 apples' is not a valid size; use a number with a unit" in str(error)
    CliRunner().invoke(app.app, [*arguments, "16KiB"], catch_exceptions=False)
    shards = open_set(str(tmp_path / "out/train")).index.shards
    assert len(shards) > 3
    assert all(shard.num_bytes <= 16 << 10 for shard in shards)

"""The working directory of a submitted job: what is uploaded, and what is refused."""

import os
import socket
from pathlib import Path

import pytest

from orchestrator.cluster import job_upload
from orchestrator.cluster.job_upload import JOB_FOLDER, WorkingFolder
from orchestrator.errors import UsageError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a job, seen from the folder above it."""
    made = tmp_path / "mine"
    made.mkdir()
    (made / "job.yaml").write_text("name: x\n")
    monkeypatch.chdir(tmp_path)
    return made


def refusal(job: str = "job.yaml", place: str = "mine") -> str:
    with pytest.raises(UsageError) as refused:
        WorkingFolder(place, job)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_an_uploaded_folder_is_a_subfolder_whose_modules_no_process_finds(folder: Path) -> None:
    (folder / "random.py").touch()
    with WorkingFolder("mine", "job.yaml").upload_tree() as tree:
        assert [path.name for path in tree.iterdir()] == [JOB_FOLDER]
        assert (tree / JOB_FOLDER / "random.py").is_file()
    assert not JOB_FOLDER.isidentifier()
    (folder / "orchestrator").mkdir()
    (folder / "orchestrator/__main__.py").touch()
    with WorkingFolder("mine", "job.yaml").upload_tree() as tree:
        assert (tree / "orchestrator/__main__.py").is_file()
    assert (folder / "random.py").is_file(), "the links are removed, not what they lead to"


def test_a_folder_that_is_missing_or_a_file_is_refused(folder: Path) -> None:
    assert refusal(place="./mien").startswith("--working-dir ./mien does not exist")
    assert refusal(place="mine/job.yaml").startswith("--working-dir mine/job.yaml is not a folder")


def test_a_job_that_is_not_in_the_folder_is_refused_with_its_path_from_there(folder: Path) -> None:
    assert refusal("mine/job.yaml").endswith("give its path from there: job.yaml")
    assert refusal("jb.yaml").endswith("check the path")
    (folder.parent / "other.yaml").touch()
    assert refusal("other.yaml").endswith("copy it in")
    assert refusal("../other.yaml") == "../other.yaml is outside of --working-dir mine; copy it in"
    WorkingFolder("mine", "/on/the/cluster.yaml")


def test_a_job_that_an_ignore_file_leaves_out_is_refused(folder: Path) -> None:
    (folder / ".rayignore").write_text("*.yaml\n")
    assert "job.yaml is left out of the upload by a .rayignore" in refusal()
    (folder / ".rayignore").write_bytes(b"\xff\xfe")
    assert "a .rayignore or .gitignore in mine cannot be read" in refusal()


def test_a_folder_that_is_too_large_is_refused_with_its_five_largest_entries(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(7):
        part = folder / f"part{number}"
        part.mkdir()
        (part / "a.bin").write_bytes(bytes(100_000 * (number + 1)))
    (folder / "ignored.bin").write_bytes(bytes(3_000_000))
    (folder / ".rayignore").write_text("ignored.bin\n")
    monkeypatch.setattr(job_upload, "UPLOAD_LIMIT", 2_000_000)
    said = refusal()
    assert "2.8 MB in 9 files" in said, "what .rayignore names does not count"
    assert "part6 0.7 MB, part5 0.6 MB, part4 0.5 MB, part3 0.4 MB, part2 0.3 MB; keep" in said
    monkeypatch.setattr(job_upload, "UPLOAD_LIMIT", 2_900_000)
    WorkingFolder("mine", "job.yaml")


def test_what_ray_cannot_read_is_refused_by_name(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    assert refusal() == ("mine/pipe: a pipe or a device; remove it, or name it in mine/.rayignore")
    (folder / ".rayignore").write_text("pipe\n")
    WorkingFolder("mine", "job.yaml")
    (folder / "sub").mkdir()
    (folder / "sub/up").symlink_to("..")
    assert refusal().startswith("mine/sub/up: a link to a folder that contains it")
    (folder / "sub/up").unlink()
    odd = os.fsencode(folder) + b"/caf\xe9.txt"
    Path(os.fsdecode(odd)).touch()
    assert "its name is not UTF-8" in refusal()


@pytest.mark.skipif(os.getuid() == 0, reason="root reads everything")
def test_an_unreadable_file_is_refused_by_name(folder: Path) -> None:
    (folder / "secret").touch(mode=0)
    assert refusal().startswith("mine/secret: permission denied")


def test_sockets_and_links_that_lead_nowhere_are_left_out_with_a_word(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "gone").symlink_to("nowhere")
    with socket.socket(socket.AF_UNIX) as server:
        os.chdir(folder)
        server.bind("s")
        os.chdir(folder.parent)
        WorkingFolder("mine", "job.yaml")
    assert "left out of the upload: 2 sockets and links" in capsys.readouterr().err

"""Following a job's log, with a fake cluster; the folder that is uploaded."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.job_submission import JobStatus

from orchestrator.cluster import job_submission
from orchestrator.errors import TryAgain, UsageError


class FakeClient:
    """Client of a job that runs until ``losses`` streams were lost, each after some output."""

    def __init__(self, losses: int, pieces: int) -> None:
        self.losses, self.pieces = losses, pieces
        self.streams = 0

    def get_job_info(self, job_id: str) -> SimpleNamespace:
        done = self.streams >= self.losses
        return SimpleNamespace(status=JobStatus.SUCCEEDED if done else JobStatus.RUNNING)

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        self.streams += 1
        for number in range(self.streams * self.pieces):
            yield f"{number}\n"
            await asyncio.sleep(0.02)
        if self.streams <= self.losses:
            raise RuntimeError("WebSocket connection closed unexpectedly with close code 1006")


def _client(losses: int, pieces: int) -> Any:
    return FakeClient(losses, pieces)


@pytest.fixture(autouse=True)
def short_timeouts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_submission, "FOLLOW_TIMEOUT_S", 0.2)
    monkeypatch.setattr(job_submission, "RECONNECT_S", 0.01)


def test_a_log_stream_lost_after_more_than_the_timeout_is_opened_again(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert job_submission.follow(_client(losses=2, pieces=20), "job") == 0  # 0.4 s each
    printed = capsys.readouterr().out.split()
    assert printed == [str(number) for number in range(60)], "each line once"


def test_a_log_without_new_output_ends_in_an_error_after_the_timeout() -> None:
    with pytest.raises(TryAgain, match="the job may still be running: ray job status job"):
        job_submission.follow(_client(losses=1000, pieces=0), "job")


def test_an_uploaded_folder_is_a_subfolder_whose_modules_no_process_finds(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "random.py").touch()
    with job_submission._upload_tree(folder) as tree:
        assert [path.name for path in tree.iterdir()] == [job_submission.JOB_FOLDER]
        assert (tree / job_submission.JOB_FOLDER / "random.py").is_file()
    assert not job_submission.JOB_FOLDER.isidentifier()
    (folder / "orchestrator").mkdir()
    (folder / "orchestrator/__main__.py").touch()
    with job_submission._upload_tree(folder) as tree:
        assert (tree / "orchestrator/__main__.py").is_file()
    assert (folder / "random.py").is_file(), "the links are removed, not what they lead to"


@pytest.mark.parametrize(
    "options",
    [
        ("--set", "tracking.uri=postgresql://me:hunter22@db/mlflow"),
        ("--set", "tracking.uri=postgresql://db/mlflow?password=hunter22"),
        ("--init-from", "s3://key:hunter22@bucket/runs/x"),
    ],
)
def test_a_password_on_the_command_line_of_the_driver_is_refused(options: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="contains a password in plain text") as refused:
        job_submission.submit("job.yaml", options, address="http://127.0.0.1:1")
    assert "hunter22" not in str(refused.value)
    job_submission._refuse_passwords(("--set", "tracking.uri=http://me:${env:PW}@mlflow:5000"))

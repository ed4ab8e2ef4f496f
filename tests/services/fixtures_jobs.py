"""A fixture that loads job files; heavy imports wait until a test uses it."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from orchestrator.config.load import LoadedJob

Load = Callable[..., "LoadedJob"]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Load a job from its text, by default a sweep's, as the file x.yaml in the current folder."""
    from orchestrator.config.load import load_job
    from support.sweep_jobs import VALID

    monkeypatch.chdir(tmp_path)
    for name in ("ORCHESTRATOR_STORAGE", "ORCHESTRATOR_DATA", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)

    def from_text(text: str = VALID, *overrides: str, **environ: str) -> "LoadedJob":
        Path("x.yaml").write_text(text)
        return load_job("x.yaml", overrides, environ or None)

    return from_text

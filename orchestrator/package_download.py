"""Download files with package clients, cache them and verify their sha256."""

import hashlib
import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import DataError, EnvironmentProblem
from orchestrator.redaction import mask

TIMEOUT_S = 600


@dataclass(frozen=True)
class Download:
    """A file of a public package registry."""

    file: str
    """Name in the cache folder."""
    sha256: str
    command: tuple[str, ...]
    """Writes only this file into its working directory, without running the package's scripts."""
    advice: str
    """What to do if the command fails."""

    def get(self) -> Path:
        """Return the file in the cache folder, downloading it if it is not there.

        Raises EnvironmentProblem if the command fails, DataError if the file has another sha256.
        """
        cached = cache_folder() / self.file
        if cached.is_file():
            self._check(cached, f"remove {cached} to fetch it again")
            return cached
        cached.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cached.parent) as folder:
            run(self.command, cwd=folder, advice=f"{self.advice}; or put {self.file} at {cached}")
            written = list(Path(folder).iterdir())
            if len(written) != 1:
                raise EnvironmentProblem(f"`{' '.join(self.command)}` wrote no file; {self.advice}")
            self._check(written[0], "the registry serves another file than the one pinned here")
            written[0].replace(cached)  # only complete files get their name in the cache
        return cached

    def _check(self, path: Path, advice: str) -> None:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != self.sha256:
            raise DataError(
                f"{path.name} has the sha256 {found}, not the expected {self.sha256}; {advice}"
            )


def cache_folder() -> Path:
    """Return the folder where downloads are kept, so that another size needs no new download."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "orchestrator"


def run(command: tuple[str, ...], *, cwd: str | None = None, advice: str) -> bytes:
    """Run ``command`` and return its stdout.

    Raises EnvironmentProblem, which ends with ``advice``, if it fails.
    """
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, check=False, timeout=TIMEOUT_S)
    except FileNotFoundError as error:
        raise EnvironmentProblem(f"{command[0]} is not installed; {advice}") from error
    except subprocess.TimeoutExpired as error:
        raise EnvironmentProblem(
            f"`{' '.join(command)}` did not finish within {TIMEOUT_S} s; {advice}"
        ) from error
    if done.returncode != 0:
        lines = [line for line in done.stderr.decode(errors="replace").splitlines() if line.strip()]
        reason = mask(lines[0].strip()) if lines else f"exit code {done.returncode}"
        raise EnvironmentProblem(f"`{' '.join(command)}` failed ({reason}); {advice}")
    return done.stdout

"""Files that a package client fetches once, kept in a cache folder and checked by their sha256."""

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
    """One file of a public registry."""

    file: str
    """Its name in the cache folder."""
    sha256: str
    command: tuple[str, ...]
    """Writes it, alone, into the folder where it runs; no script of the package is run."""
    advice: str
    """What to do if the command fails."""

    def get(self) -> Path:
        """The file, from the cache folder or else by the command.

        Raises:
            EnvironmentProblem: the command is not there, or fails, as without a network.
            DataError: the file is not the expected one.
        """
        kept = downloads_folder() / self.file
        if kept.is_file():
            self._check(kept, f"remove {kept} to fetch it again")
            return kept
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
            run(self.command, cwd=folder, advice=f"{self.advice}; or put {self.file} at {kept}")
            written = list(Path(folder).iterdir())
            if len(written) != 1:
                raise EnvironmentProblem(f"`{' '.join(self.command)}` wrote no file; {self.advice}")
            self._check(written[0], "the registry gives another file than the one pinned here")
            written[0].replace(kept)  # only whole files get their name in the cache
        return kept

    def _check(self, path: Path, advice: str) -> None:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != self.sha256:
            raise DataError(
                f"{path.name} has the sha256 {found}, not the expected {self.sha256}; {advice}"
            )


def downloads_folder() -> Path:
    """Where downloads are kept, so that a second size does not fetch them again."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "orchestrator"


def run(command: tuple[str, ...], *, cwd: str | None = None, advice: str) -> bytes:
    """What ``command`` prints. Raises EnvironmentProblem with ``advice`` if it fails."""
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, check=False, timeout=TIMEOUT_S)
    except FileNotFoundError as error:
        raise EnvironmentProblem(f"{command[0]} is not installed; {advice}") from error
    except subprocess.TimeoutExpired as error:
        raise EnvironmentProblem(
            f"`{' '.join(command)}` did not end within {TIMEOUT_S} s; {advice}"
        ) from error
    if done.returncode != 0:
        said = [line for line in done.stderr.decode(errors="replace").splitlines() if line.strip()]
        reason = mask(said[0].strip()) if said else f"exit code {done.returncode}"
        raise EnvironmentProblem(f"`{' '.join(command)}` failed ({reason}); {advice}")
    return done.stdout

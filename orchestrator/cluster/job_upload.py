"""The working directory of a submitted job: what of it is uploaded, and whether Ray takes it."""

import contextlib
import os
import stat
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from orchestrator.cluster.ray_compat import UPLOAD_LIMIT, visit_uploaded
from orchestrator.console import log_info
from orchestrator.errors import UsageError

JOB_FOLDER = "job-folder"
"""Uploaded working directory within the upload; the hyphen keeps it from being a package."""
EXCLUDES = ["**/__pycache__/"]
NUM_SHOWN = 5


class WorkingFolder:
    """Folder that is uploaded for a job, without what .rayignore and .gitignore in it name."""

    def __init__(self, place: str, job_file: str) -> None:
        """Check that Ray can upload the folder ``place``, and that it holds the job.

        Args:
            place: as the user has written it.
            job_file: path from the folder, or an absolute one, which is the cluster's.

        Raises:
            UsageError: it cannot be uploaded, or the job is not in it.
        """
        self.place, self.path = place, Path(place).expanduser().absolute()
        if not self.path.is_dir():
            problem = "is not a folder" if self.path.exists() else "does not exist"
            raise UsageError(f"--working-dir {place} {problem}; give the folder to upload")
        self._check_job(job_file)
        self._sizes: Counter[str] = Counter()
        self._files: set[str] = set()
        with self.upload_tree() as tree:
            self._check_files(tree)
        if not os.path.isabs(job_file) and os.path.normpath(job_file) not in self._files:
            raise UsageError(
                f"{job_file} is left out of the upload by a .rayignore or .gitignore in {place}; "
                "add the line !" + job_file
            )
        if sum(self._sizes.values()) >= UPLOAD_LIMIT:
            raise self.too_large()

    @contextlib.contextmanager
    def upload_tree(self) -> Iterator[Path]:
        """Make a folder to upload that holds the working directory as a subfolder.

        Ray puts the uploaded folder first on the PYTHONPATH of its own processes too, which a
        user's ``random.py`` in it would break. A checkout of this package is linked at the top, to
        be found.
        """
        with tempfile.TemporaryDirectory(prefix="orchestrator-upload-") as tree:
            Path(tree, JOB_FOLDER).symlink_to(self.path)
            if (self.path / "orchestrator/__main__.py").is_file():
                Path(tree, "orchestrator").symlink_to(self.path / "orchestrator")
            yield Path(tree)

    def too_large(self, limit: str = f"Ray takes {UPLOAD_LIMIT / 1e6:,.0f} MB") -> UsageError:
        """Describe a folder that is too large: its size, and its largest entries."""
        total, largest = sum(self._sizes.values()), self._sizes.most_common(NUM_SHOWN)
        shown = ", ".join(f"{name} {size / 1e6:,.1f} MB" for name, size in largest)
        return UsageError(
            f"--working-dir {self.place} is too large to upload: {total / 1e6:,.1f} MB in "
            f"{len(self._files):,} files, and {limit}; the "
            f"largest: {shown}; keep data in storage that the cluster reads, and name what the job "
            f"does not need in {self.place}/.rayignore"
        )

    def _check_job(self, job_file: str) -> None:
        if os.path.isabs(job_file) or (self.path / job_file).is_file():
            if not os.path.isabs(job_file) and os.path.normpath(job_file).startswith(".."):
                raise UsageError(f"{job_file} is outside of --working-dir {self.place}; copy it in")
            return
        here = Path(job_file).absolute()
        hint = "copy it in"
        if here.is_file() and here.is_relative_to(self.path):
            hint = f"give its path from there: {here.relative_to(self.path)}"
        elif not here.is_file():
            hint = "check the path"
        raise UsageError(f"there is no {job_file} in --working-dir {self.place}; {hint}")

    def _check_files(self, tree: Path) -> None:
        """Check each file that would be uploaded, and sum up sizes by entry of the folder."""
        left_out = []

        def visit(path: Path) -> None:
            top, *parts = path.relative_to(tree).parts or ("",)
            if top != JOB_FOLDER or not parts:
                return
            shown = "/".join(parts)
            if problem := _file_problem(path):
                raise UsageError(f"{self.place}/{shown}: {problem}; {self._remedy}")
            if path.is_file():
                self._files.add(shown)
                self._sizes[parts[0]] += path.stat().st_size
            elif not path.is_dir():
                left_out.append(shown)

        try:
            visit_uploaded(tree, EXCLUDES, visit)
        except OSError as error:
            name = str(error.filename).replace(str(tree / JOB_FOLDER), self.place)
            raise UsageError(f"{name}: {error.strerror}; {self._remedy}") from error
        except ValueError as error:
            raise UsageError(
                f"a .rayignore or .gitignore in {self.place} cannot be read: {error}"
            ) from error
        if left_out:
            log_info(
                f"left out of the upload: {len(left_out)} sockets and links that lead nowhere, "
                f"such as {left_out[0]}"
            )

    @property
    def _remedy(self) -> str:
        return f"remove it, or name it in {self.place}/.rayignore"


def _file_problem(path: Path) -> str:
    """Say why Ray cannot upload ``path``; "" if it can, or leaves it out itself."""
    mode = path.stat().st_mode if path.exists() else None
    is_folder = mode is not None and stat.S_ISDIR(mode)
    around = (os.path.realpath(folder) for folder in path.parents)
    needed = os.R_OK | (os.X_OK if is_folder else 0)
    checks = {
        "its name is not UTF-8": not _is_utf8(path),
        "a pipe or a device": mode is not None
        and not (is_folder or stat.S_ISREG(mode) or stat.S_ISSOCK(mode)),
        "a link to a folder that contains it": is_folder
        and path.is_symlink()
        and os.path.realpath(path) in around,
        "permission denied": mode is not None and not os.access(path, needed),
    }
    return next((problem for problem, is_so in checks.items() if is_so), "")


def _is_utf8(path: Path) -> bool:
    try:
        os.fsencode(path).decode()
    except UnicodeDecodeError:
        return False
    return True

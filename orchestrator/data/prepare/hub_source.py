"""Download a dataset of the Hugging Face Hub into its own cache: hf://datasets/ORG/NAME@REVISION.

huggingface_hub resumes downloads, checks them, and reads HF_TOKEN, HF_ENDPOINT, HF_HOME and
HF_HUB_OFFLINE.
"""

import fnmatch
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from orchestrator.distribution import install_command
from orchestrator.errors import DataError, EnvironmentProblem, UsageError
from orchestrator.redaction import mask

SCHEME = "hf://"


@dataclass(frozen=True)
class HubDataset:
    """A dataset of the Hub, and perhaps a folder in it."""

    name: str
    revision: str | None = None
    folder: str = ""

    @property
    def uri(self) -> str:
        """The address it was given by."""
        revision = f"@{self.revision}" if self.revision else ""
        return f"{SCHEME}datasets/{self.name}{revision}" + (f"/{self.folder}" * bool(self.folder))


def parse_hub_uri(uri: str) -> HubDataset:
    """Parse hf://datasets/ORG/NAME, hf://datasets/ORG/NAME@REVISION and folders in it.

    >>> parse_hub_uri("hf://datasets/a/b@v1/data")
    HubDataset(name='a/b', revision='v1', folder='data')

    Raises UsageError.
    """
    match = re.fullmatch(
        r"hf://datasets/([\w.-]+/[\w.-]+)(?:@([^/@]+))?(?:/(.+?))?/?", uri, re.ASCII
    )
    if match is None:
        raise UsageError(
            f"{uri!r} is not the address of a dataset; expected hf://datasets/ORG/NAME or "
            "hf://datasets/ORG/NAME@REVISION"
        )
    name, revision, folder = match.groups()
    return HubDataset(name, revision, folder or "")


def download(dataset: HubDataset) -> Path:
    """Download the Parquet files of a dataset, or its images if it has none; return their folder.

    Raises EnvironmentProblem if huggingface_hub is not installed, the Hub is out of reach, or the
    dataset does not exist or is not open to the user; DataError if it has no such folder.
    """
    try:
        from huggingface_hub import errors
    except ImportError as error:
        raise EnvironmentProblem(
            f"{SCHEME} needs the package huggingface_hub; get it with "
            f"`{install_command('hub')}`, or download the files and give their folder"
        ) from error
    try:
        folder = _snapshot(dataset)
    except errors.GatedRepoError as error:
        raise EnvironmentProblem(
            f"{dataset.uri} asks its users to accept terms: do so on its page, and set HF_TOKEN"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise EnvironmentProblem(
            f"{dataset.uri}: there is no revision {dataset.revision}; check its name"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise EnvironmentProblem(
            f"{dataset.uri} does not exist, or needs a login: check its name, and set HF_TOKEN if "
            "it is private"
        ) from error
    except Exception as error:  # whatever the HTTP client raises; the file system's errors too
        if not _is_of_hub(error):
            raise
        raise EnvironmentProblem(
            f"{dataset.uri} cannot be downloaded ({mask(_first_line(error))}); check the network, "
            "HF_ENDPOINT and HF_HUB_OFFLINE, or download the files and give their folder"
        ) from error
    if not Path(folder, dataset.folder).is_dir():
        raise DataError(f"{dataset.uri}: the dataset has no folder {dataset.folder}")
    return Path(folder, dataset.folder)


def _snapshot(dataset: HubDataset) -> str:
    """Download what is not in the Hub's cache; return the folder of the dataset there."""
    import huggingface_hub
    from huggingface_hub import errors

    download = partial(
        huggingface_hub.snapshot_download,
        dataset.name,
        repo_type="dataset",
        revision=dataset.revision,
    )
    in_folder = f"{dataset.folder}/" if dataset.folder else ""
    tables, everything = f"{in_folder}*.parquet", f"{in_folder}*"
    try:
        info = huggingface_hub.HfApi().dataset_info(dataset.name, revision=dataset.revision)
    except errors.OfflineModeIsEnabled:  # HF_HUB_OFFLINE
        folder = download(local_files_only=True, allow_patterns=tables)
        if any(Path(folder, dataset.folder).rglob("*.parquet")):
            return str(folder)
        return str(download(local_files_only=True, allow_patterns=everything))
    names = [file.rfilename for file in info.siblings or ()]
    has_tables = bool(fnmatch.filter(names, tables))
    return str(download(allow_patterns=tables if has_tables else everything))


def _is_of_hub(error: Exception) -> bool:
    """Whether an error is of the Hub's client, of the HTTP client below it or of a connection."""
    modules = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    known = {"huggingface_hub", "httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3"}
    return bool(modules & known) or isinstance(error, OSError)


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)

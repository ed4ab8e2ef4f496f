"""Register the weights of an older version anew, in this version's format."""

from safetensors.torch import load_file

from orchestrator.errors import UsageError
from orchestrator.registry.bundle import (
    FORMAT,
    WEIGHTS,
    read_config,
    read_format,
    read_notes,
)
from orchestrator.registry.registry import (
    RegisteredVersion,
    download_files,
    find_version,
    register,
    require_database,
)
from orchestrator.temporary_folder import temporary_folder
from orchestrator.tracking.client import RunRef, connect


def upgrade(spec: str, uri: str) -> RegisteredVersion:
    """Register the model ``spec`` anew: the same weights and run, with an image for each seed.

    The older version stays as it is, for the version of the orchestrator that draws it.

    Raises:
        UsageError: there is no such version, or it has a format that is not older.
    """
    uri = require_database(uri)
    with temporary_folder(f"the files of {spec}") as temporary:
        with connect(uri, timeout_s=30) as client:
            found = find_version(client, spec)
            files = download_files(client, found, temporary, uri)
            experiment = client.get_run(found.run_id).info.experiment_id
        if (format_ := read_format(files)) >= FORMAT:
            raise UsageError(f"{found.title} has format {format_}: there is nothing to upgrade")
        notes = {**read_notes(files), "upgraded_from": f"{found.name}/{found.version}"}
        run, weights = RunRef(uri, experiment, found.run_id), load_file(files / WEIGHTS)
        return register(run, found.name, read_config(files), weights, example=None, notes=notes)

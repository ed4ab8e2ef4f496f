"""Find servers that a job reaches without encryption over a network."""

from orchestrator.addresses import is_loopback, split_address
from orchestrator.errors import EnvironmentProblem
from orchestrator.storage.cloud_settings import CloudPlace
from orchestrator.storage.s3_errors import endpoint


def find_unencrypted(tracking_uri: str, storage: str) -> list[str]:
    """Return the servers of http:// addresses on other machines, such as `S3 at http://10.0.0.1`.

    Addresses that are not valid are left to the checks of MLflow and the storage.
    """
    servers = {"MLflow": tracking_uri}
    try:
        if storage.startswith("s3://"):
            servers["S3"] = endpoint()
        elif storage.startswith(("gs://", "az://", "abfs")):
            servers["the storage"] = CloudPlace.parse(storage).endpoint()
    except EnvironmentProblem:
        pass
    found = []
    for name, address in servers.items():
        try:
            parts = split_address(address)
        except ValueError:
            continue
        if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
            found.append(f"{name} at http://{parts.netloc.rpartition('@')[2]}")
    return found

"""The installed package: its name for pip, its version, and how to install its extras."""

from importlib import metadata

DISTRIBUTION = "ray-image-orchestrator"
"""Name for pip. `orchestrator` on PyPI is another project; this one is installed from a clone."""


def installed_version() -> str | None:
    """Return the version; None if the package is only on sys.path, as in the container image."""
    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return None


def install_command(extra: str) -> str:
    """Return the command that installs the dependencies of ``extra``, in the clone."""
    return f"pip install -e '.[{extra}]'"

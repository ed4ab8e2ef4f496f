"""Options of a manifest: what a job file does not define, with the help of the command line."""

from dataclasses import dataclass, field
from typing import Any

from orchestrator.distribution import installed_version
from orchestrator.errors import UsageError


def _option(default: Any, help_text: str, **cli: Any) -> Any:
    """Return a dataclass field; ``cli`` has typer's arguments for the option of the same name."""
    return field(default=default, metadata={"help": help_text, **cli})


@dataclass(frozen=True)
class ManifestOptions:
    """Where, when and how often to run a job, and the resources of its pods."""

    image: str | None = _option(
        None,
        "Image with this project and this version of Ray, best as NAME@sha256:DIGEST; by default "
        "orchestrator:VERSION.",
    )
    namespace: str | None = _option(None, "Namespace; by default that of kubectl.")
    cluster: str | None = _option(
        None, "Run on this RayCluster; by default the job gets its own.", metavar="NAME"
    )
    queue: str | None = _option(None, "Wait in this Kueue LocalQueue.", metavar="NAME")
    schedule: str | None = _option(
        None, 'Print a RayCronJob; "0 3 * * 1" is Mondays at three.', metavar="CRON"
    )
    time_zone: str | None = _option(
        None, "Time zone of the schedule: Europe/Berlin; by default the operator's."
    )
    retries: int | None = _option(
        None,
        "How often to retry a failed job, each time on a new cluster; by default 2, or 0 with "
        "--cluster.",
        min=0,
        show_default=False,
    )
    resume: bool | None = _option(
        None,
        "As for `orchestrator run`; by default only an orphaned run is resumed.",
        show_default=False,
    )
    deadline: int | None = _option(
        None, "Stop the job after this time, including retries.", min=1, metavar="SECONDS"
    )
    start_deadline: int | None = _option(
        None, "Stop the job if it has not started by then.", min=1, metavar="SECONDS"
    )
    keep: int = _option(
        300, "Keep the cluster this long after the job, for its logs.", min=0, metavar="SECONDS"
    )
    config_map: str = _option("orchestrator-environment", "ConfigMap with the job's environment.")
    secret: str = _option("orchestrator-credentials", "Secret with the job's environment.")
    tls: bool = _option(True, "Use TLS between the pods of the job's cluster.")
    worker_memory: str = _option("8Gi", "Memory of each worker pod.")
    head_cpus: int = _option(2, "CPU cores for the driver and the Ray head.", min=1)
    head_memory: str = _option("8Gi", "Memory for the driver and the Ray head.")

    @property
    def image_name(self) -> str:
        """The image, or the default for this version.

        Raises:
            UsageError: no image is given and the version is not known.
        """
        if self.image is not None:
            return self.image
        version = installed_version()
        if version is None:
            raise UsageError(
                "the package is not installed, so its version is unknown; give --image"
            )
        return f"orchestrator:{version}"

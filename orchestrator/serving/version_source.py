"""Where a service has its versions from: the registry, or a pulled folder."""

from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.errors import DataError, UsageError
from orchestrator.registry import registry
from orchestrator.registry.bundle import check_pulled
from orchestrator.serving.engines import Device, EngineChoice
from orchestrator.serving.limits import Limits
from orchestrator.serving.served_version import ServedVersion, load_version
from orchestrator.serving.service_metrics import ServiceMetrics
from orchestrator.temporary_folder import temporary_folder


@dataclass
class VersionSource:
    """Loads the version that a model's name, alias or version stands for; see ``Load``."""

    spec: str
    """NAME for the newest version, NAME@ALIAS, NAME/VERSION, or a pulled folder."""
    tracking_uri: str
    engine: EngineChoice
    device: Device
    limits: Limits
    metrics: ServiceMetrics
    _unusable: dict[int, Exception] = field(default_factory=dict)
    """Versions that could not be loaded; a registered version never changes."""

    def check(self) -> None:
        """Raise OrchestratorError if there is no such version, or the folder's is damaged."""
        if Path(self.spec).is_dir():
            check_pulled(Path(self.spec))
        else:
            registry.resolve(self.spec, self.tracking_uri)

    def __call__(self, serving: int | None) -> ServedVersion | None:
        """Load the version that ``spec`` stands for now, unless it is number ``serving``."""
        if Path(self.spec).is_dir():
            return self._load(Path(self.spec)) if serving is None else None
        found = registry.resolve(self.spec, self.tracking_uri)
        if (number := found.version) == serving:
            return None
        if number in self._unusable:
            raise self._unusable[number]
        try:
            with temporary_folder(f"the files of {self.spec}") as temporary:
                spec, dest = f"{found.name}/{number}", temporary / "model"
                return self._load(registry.pull(spec, dest, self.tracking_uri))
        except (DataError, UsageError) as error:
            self._unusable[number] = error
            raise

    def _load(self, folder: Path) -> ServedVersion:
        return load_version(
            folder,
            engine=self.engine,
            device=self.device,
            limits=self.limits,
            observe=self.metrics.observe_batch,
        )

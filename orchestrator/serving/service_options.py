"""What a service serves and how: the options of `orchestrator serve`, or of a deployment."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat

from orchestrator.serving.access import AccessOptions, access_options, read_token
from orchestrator.serving.engines import Device, EngineChoice
from orchestrator.serving.limits import Limits
from orchestrator.serving.service import DrawingService
from orchestrator.serving.service_metrics import ServiceMetrics
from orchestrator.serving.version_slot import VersionSlot
from orchestrator.serving.version_source import VersionSource


class ServiceOptions(BaseModel):
    """Options of a service. Holds no secret: of a token only the file is named."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    model: str
    """NAME for the newest version, NAME@ALIAS, NAME/VERSION, or a pulled folder."""
    tracking_uri: str
    """The registry's."""
    engine: EngineChoice = "auto"
    """What draws."""
    device: Device = "cpu"
    """Where it draws."""
    canary: str | None = None
    """Another version, which answers ``canary_share`` of the requests to draw."""
    canary_share: float = Field(default=0.1, ge=0, le=1)
    """See ``canary``."""
    shadow: str | None = None
    """Another version, which draws everything too, for the metrics."""
    refresh_s: NonNegativeFloat = 30.0
    """Seconds between two looks for a new version; 0: none."""
    token_file: Path | None = None
    """File with the token of clients, on the machine that serves."""
    allowed_hosts: tuple[str, ...] = ()
    """Names by which clients call the service."""
    log_requests: bool = False
    """Whether each request is logged."""

    def make_service(self) -> DrawingService:
        """Return the service, with nothing loaded."""
        limits, metrics = Limits(), ServiceMetrics()

        def slot(role: str, spec: str) -> VersionSlot:
            return VersionSlot(role, self._source(spec, limits, metrics), metrics)

        return DrawingService(
            main=slot("main", self.model),
            metrics=metrics,
            limits=limits,
            canary=None if self.canary is None else slot("canary", self.canary),
            canary_share=self.canary_share,
            shadow=None if self.shadow is None else slot("shadow", self.shadow),
            refresh_s=self.refresh_s,
        )

    def check(self) -> None:
        """Raise OrchestratorError if there is no such version; loads nothing."""
        for spec in (self.model, self.canary, self.shadow):
            if spec is not None:
                self._source(spec, Limits(), ServiceMetrics()).check()

    def _source(self, spec: str, limits: Limits, metrics: ServiceMetrics) -> VersionSource:
        return VersionSource(spec, self.tracking_uri, self.engine, self.device, limits, metrics)

    def access(self, host: str) -> AccessOptions:
        """Return who may ask at an address. Raises as ``read_token`` and ``access_options`` do."""
        token = None if self.token_file is None else read_token(self.token_file)
        return access_options(host, token, self.allowed_hosts, log_requests=self.log_requests)

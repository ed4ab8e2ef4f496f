"""What an exported file says about itself."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from orchestrator.export.exported_sampler import Kind, inputs_of, output_of
from orchestrator.models.base import ModelConfig


@dataclass(frozen=True)
class ExportedFrom:
    """The trained model that a file is exported from."""

    name: str
    """Registered name; empty if unknown."""
    version: int | None
    weights_sha256: str

    @property
    def title(self) -> str:
        """Name and version for people."""
        return self.name if self.version is None else f"{self.name}/{self.version}"


def facts_of(config: ModelConfig, kind: Kind, source: ExportedFrom) -> Mapping[str, str]:
    """Return keys and values for a file's own metadata; lists are JSON."""
    known = {"name": source.name, "version": source.version}
    facts = {
        **{key: str(value) for key, value in known.items() if value},
        "model": config.name,
        "kind": kind,
        "inputs": json.dumps([asdict(info) for info in inputs_of(config, kind)]),
        "outputs": json.dumps([asdict(output_of(config, kind))]),
        "image_size": str(config.image_size),
        "weights_sha256": source.weights_sha256,
    }
    return {f"orchestrator.{key}": value for key, value in facts.items()}

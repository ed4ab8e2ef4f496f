"""What a call of `orchestrator sample` draws."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from orchestrator.data.format.images import Fit
from orchestrator.data.format.index_entries import Origin
from orchestrator.data.format.pixel_values import ValueRange
from orchestrator.data.format.preparation import preparation_of
from orchestrator.file_sums import sum_file
from orchestrator.models.base import ModelConfig
from orchestrator.registry.bundle import (
    WEIGHTS,
    check_pulled,
    read_config,
    read_notes,
    read_source,
)
from orchestrator.sampling.conditions import Conditions, choose_conditions
from orchestrator.sampling.image_blocks import Drawer, block_size
from orchestrator.sampling.image_inputs import ImageInputs, open_inputs
from orchestrator.sampling.sampling_record import SamplingRecord


@dataclass(frozen=True)
class SamplingCall:
    """A pulled model, and how its images are drawn and written."""

    folder: Path
    """Of the pulled model."""
    seed: int
    device: str
    shard_bytes: int | None
    """See ``SamplingRecord``."""

    @cached_property
    def config(self) -> ModelConfig:
        """The model's config. Raises as ``check_pulled`` does."""
        check_pulled(self.folder)
        return read_config(self.folder)

    def of_samples(
        self,
        num_images: int | None,
        labels: Sequence[int],
        counts: str | None,
        caption: str | None,
    ) -> SamplingRecord:
        """Return what is drawn from noise; see ``choose_conditions``."""
        return self._record(choose_conditions(self.config, num_images, labels, counts, caption))

    def of_translations(
        self, uri: str, fit: Fit | None, value_range: ValueRange | None, field: str | None
    ) -> SamplingRecord:
        """Return the translations of the images at ``uri``, made square as in training.

        ``fit`` and ``value_range`` change how; see ``open_inputs``.
        """
        config, notes = self.config, read_notes(self.folder)
        preparation = preparation_of(notes).changed(fit, value_range)
        pair_input = "b" if notes.get("direction") == "BtoA" else "a"
        inputs = open_inputs(uri, config, preparation, field, pair_input)
        return self._record(Conditions(len(inputs.stems)), inputs)

    def _record(self, conditions: Conditions, inputs: ImageInputs | None = None) -> SamplingRecord:
        source = read_source(self.folder)
        origin = Origin(
            model=source.model,
            version=source.version,
            weights_sha256=sum_file(self.folder / WEIGHTS).sha256,
            seed=self.seed,
        )
        drawer = Drawer(
            self.folder.absolute(),
            self.config,
            self.seed,
            self.device,
            conditions.caption,
            inputs,
            for_set=self.shard_bytes is not None,
        )
        block = block_size(self.device, self.config.image_size)
        return SamplingRecord(origin, drawer, conditions, block, self.shard_bytes)

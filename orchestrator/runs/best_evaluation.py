"""Which checkpoint of a run is the best by its evaluations: `register.best` with `evaluation/...`.

The results in the storage decide, so a run that was killed and resumed chooses among all of them.
A checkpoint counts if it has a result and is still there. Only results that were measured as the
newest one are compared: of another set or number of images they are other metrics.
"""

from collections.abc import Collection

from orchestrator.config.register_section import BestSection
from orchestrator.record_reader import DamagedRecord
from orchestrator.registry.gate import COMPARED_BY
from orchestrator.runs.evaluation_task import EvaluationRecord, read_record, records_folder
from orchestrator.storage.base import NotFound, Storage


class BestEvaluation:
    """Finds the best evaluated checkpoint of one run."""

    def __init__(self, storage: Storage, run: str, settings: BestSection) -> None:
        """``settings`` has a metric of the evaluation; ``run`` is the run's folder."""
        self._storage, self._folder, self._settings = storage, records_folder(run), settings
        self._read: dict[str, EvaluationRecord] = {}

    def find(self, names: Collection[str] | None = None) -> EvaluationRecord | None:
        """Return the best evaluation of the checkpoints ``names``; the first one of equal values.

        None stands for all, also those that are gone. Returns None if none has the metric.
        """
        found = sorted(self._records(), key=lambda each: (each.images_seen, each.checkpoint))
        sign, metric = 1 if self._settings.mode == "min" else -1, self._settings.metric
        counted = [
            each
            for each in found
            if metric in each.points()
            and (names is None or each.checkpoint in names)
            and all(each.about.get(key) == found[-1].about.get(key) for key in COMPARED_BY)
        ]
        return min(counted, key=lambda each: sign * each.points()[metric], default=None)

    def keep(self, names: Collection[str]) -> set[str]:
        """Return which of the checkpoints ``names`` must not be deleted: the best one so far."""
        best = self.find(names)
        return set() if best is None else {best.checkpoint}

    def _records(self) -> list[EvaluationRecord]:
        """Read the results that are there, each once; damaged ones are left out."""
        keys = self._storage.list(self._folder)
        for key in keys:
            if key not in self._read:
                try:
                    self._read[key] = read_record(self._storage, key)
                except (DamagedRecord, NotFound):
                    continue
        return [self._read[key] for key in keys if key in self._read]

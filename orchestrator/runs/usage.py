"""Resources that a run has used, and their cost: GPU-hours, CPU-hours, money.

<storage>/<run>/usage/<name>.json    use of one worker group, from its start to its end

Each worker group rewrites a file of its own every few seconds; the run's use is the sum of all
files. A group that is killed loses its last seconds at most. Checkpoints play no part: steps that
are trained again after a restart cost again. Time without a worker group is not counted.
"""

import json
import logging
import time
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Annotated

from annotated_types import Ge, Le

from orchestrator.config.job import ClusterSection, Price
from orchestrator.errors import OrchestratorError
from orchestrator.periodic import Periodic
from orchestrator.record_reader import DamagedRecord, parse_record
from orchestrator.storage.base import NotFound, Storage

WRITE_EVERY_S = 15.0
_Amount = Annotated[float, Ge(0), Le(1e15)]
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Usage:
    """Resources that workers have used."""

    gpu_hours: _Amount = 0.0
    cpu_hours: _Amount = 0.0
    cost: _Amount | None = None
    """At the price at that time; None without a price."""
    currency: str | None = None

    def metrics(self) -> dict[str, float]:
        """Return it as metrics: cost/gpu_hours, cost/cpu_hours and, with a price, cost/total."""
        hours = {"cost/gpu_hours": self.gpu_hours, "cost/cpu_hours": self.cpu_hours}
        return hours if self.cost is None else {**hours, "cost/total": self.cost}

    def format(self) -> str:
        """Format it for a person."""
        gpus = f"{self.gpu_hours:.3g} GPU-hours and " if self.gpu_hours else ""
        cost = "" if self.cost is None else f": {self.format_cost()}"
        return f"{gpus}{self.cpu_hours:.3g} CPU-hours{cost}"

    def format_cost(self) -> str:
        """Format the cost for a person."""
        return f"{self.cost or 0:.2f} {self.currency or ''}".rstrip()


def compute_usage(
    cluster: ClusterSection, num_workers: int, seconds: float, price: Price | None
) -> Usage:
    """Compute what ``num_workers`` workers use in ``seconds``."""
    hours = num_workers * seconds / 3600
    gpus, cpus = hours * cluster.gpus, hours * cluster.cpus_per_worker
    return sum_usage([Usage(gpus, cpus)], price)


def sum_usage(usages: Iterable[Usage], price: Price | None) -> Usage:
    """Add up ``usages`` in the currency of ``price``.

    Each counts at its own price. One without a price, or in another currency, counts at the
    current ``price``.
    """
    usages = list(usages)
    gpus, cpus = sum(u.gpu_hours for u in usages), sum(u.cpu_hours for u in usages)
    if price is None:
        return Usage(gpus, cpus)
    costs = [
        usage.cost
        if usage.cost is not None and usage.currency == price.currency
        else price.total(usage.gpu_hours, usage.cpu_hours)
        for usage in usages
    ]
    return Usage(gpus, cpus, sum(costs), price.currency)


def read_usage(storage: Storage, run: str) -> list[Usage]:
    """Read what the worker groups of ``run`` have written so far."""
    found = []
    for key in storage.list(f"{run}/usage/"):
        try:
            remedy = "what its workers used is not counted"
            found.append(parse_record(Usage, storage.get_record(key), key, remedy))
        except NotFound:  # removed since
            continue
        except DamagedRecord as error:
            logger.warning("%s", error)
    return found


class UsageMeter:
    """Measures what one worker group uses, on rank 0, from its creation on."""

    def __init__(
        self,
        storage: Storage,
        run: str,
        cluster: ClusterSection,
        num_workers: int,
        price: Price | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Raises OrchestratorError if ``storage`` is out of reach."""
        self._clock, self._start = clock, clock()
        self._storage, self._key = storage, f"{run}/usage/{uuid.uuid4().hex}.json"
        self._cluster, self._num_workers, self._price = cluster, num_workers, price
        self._earlier_groups = read_usage(storage, run)

    def group_usage(self) -> Usage:
        """Return what this worker group has used so far."""
        seconds = self._clock() - self._start
        return compute_usage(self._cluster, self._num_workers, seconds, self._price)

    def run_usage(self) -> Usage:
        """Return what the run has used so far, earlier worker groups included."""
        return sum_usage([*self._earlier_groups, self.group_usage()], self._price)

    def write(self) -> None:
        """Write what this worker group has used so far."""
        self._storage.put(self._key, json.dumps(asdict(self.group_usage())).encode())

    def write_periodically(self) -> Periodic:
        """Write every few seconds within a with block, and once more at its end."""
        return Periodic(
            self._try_write, WRITE_EVERY_S, name="usage", delay=True, at_end=True, join_timeout_s=60
        )

    def _try_write(self) -> None:
        with suppress(OrchestratorError):  # the next write makes up for it
            self.write()

"""What a run has used and what that cost: GPU-hours, CPU-hours, money.

<storage>/<run>/usage/<name>.json    what one group of workers has used, from its start to its end

Each group has a file of its own, which it writes again and again: what is lost with a group is at
most its last seconds, and the run's sum is that of all files. It does not depend on checkpoints,
for steps that are taken again are paid again. While no group is there nothing is counted.
"""

import json
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass

from orchestrator.config.job import ClusterSection, Price
from orchestrator.errors import OrchestratorError
from orchestrator.storage.base import NotFound, Storage

WRITE_S = 15.0


@dataclass(frozen=True)
class Usage:
    """What workers have used."""

    gpu_hours: float = 0.0
    cpu_hours: float = 0.0
    cost: float | None = None
    """At the price of its time; None without a price."""
    currency: str | None = None

    def metrics(self) -> dict[str, float]:
        """As points of curves: cost/gpu_hours, cost/cpu_hours and, with a price, cost/total."""
        hours = {"cost/gpu_hours": self.gpu_hours, "cost/cpu_hours": self.cpu_hours}
        return hours if self.cost is None else {**hours, "cost/total": self.cost}

    def words(self) -> str:
        """For a person."""
        gpus = f"{self.gpu_hours:.3g} GPU-hours and " if self.gpu_hours else ""
        money = "" if self.cost is None else f": {self.money()}"
        return f"{gpus}{self.cpu_hours:.3g} CPU-hours{money}"

    def money(self) -> str:
        """What it cost, for a person."""
        return f"{self.cost or 0:.2f} {self.currency or ''}".rstrip()


def usage_of(
    cluster: ClusterSection, num_workers: int, seconds: float, price: Price | None
) -> Usage:
    """What ``num_workers`` workers use in ``seconds``."""
    hours = num_workers * seconds / 3600
    gpus, cpus = hours * cluster.gpus_per_worker, hours * cluster.cpus_per_worker
    return total([Usage(gpus, cpus)], price)


def total(usages: Iterable[Usage], price: Price | None) -> Usage:
    """All of ``usages`` together, in the currency of ``price``.

    Each counts at the price of its time. One that had none, or one in another currency, counts at
    the present ``price``.
    """
    usages = list(usages)
    gpus, cpus = sum(u.gpu_hours for u in usages), sum(u.cpu_hours for u in usages)
    if price is None:
        return Usage(gpus, cpus)
    costs = [
        usage.cost
        if usage.cost is not None and usage.currency == price.currency
        else price.of(usage.gpu_hours, usage.cpu_hours)
        for usage in usages
    ]
    return Usage(gpus, cpus, sum(costs), price.currency)


def recorded(storage: Storage, run: str) -> list[Usage]:
    """What the groups of workers of ``run`` have written so far."""
    found = []
    for key in storage.list(f"{run}/usage/"):
        with suppress(NotFound, ValueError, TypeError):  # of another version
            found.append(Usage(**json.loads(storage.get(key))))
    return found


class Meter:
    """Counts what one group of workers uses; rank 0 has it."""

    def __init__(
        self,
        storage: Storage,
        run: str,
        cluster: ClusterSection,
        num_workers: int,
        price: Price | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin to count. Raises OrchestratorError if ``storage`` is out of reach."""
        self._clock, self._start = clock, clock()
        self._storage, self._key = storage, f"{run}/usage/{uuid.uuid4().hex}.json"
        self._cluster, self._num_workers, self._price = cluster, num_workers, price
        self._before = recorded(storage, run)

    def own(self) -> Usage:
        """Of this group, so far."""
        seconds = self._clock() - self._start
        return usage_of(self._cluster, self._num_workers, seconds, self._price)

    def all(self) -> Usage:
        """Of the run, so far, those that came before included."""
        return total([*self._before, self.own()], self._price)

    def write(self) -> None:
        """Write what this group has used so far."""
        self._storage.put(self._key, json.dumps(asdict(self.own())).encode())

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Write every few seconds until the block ends, and then once more.

        A storage that is out of reach stops nothing: the next writing has all.
        """
        over = threading.Event()

        def write_on() -> None:
            while not over.wait(WRITE_S):
                with suppress(OrchestratorError):
                    self.write()

        thread = threading.Thread(target=write_on, name="usage", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join(WRITE_S)
            with suppress(OrchestratorError):
                self.write()

"""Values of all ranks reach each rank as they were, and nothing that arrives is unpickled."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from orchestrator.training import collectives
from orchestrator.training.collectives import gather, gather_vectors
from support.ranks import on_two_ranks

VALUES: tuple[Any, ...] = (
    ["a", "\udcff of no UTF-8", ""],
    {"x": ["0" * 5000, 7]},
    [[0.1, 1e-300, -0.0], []],
    [],
)


def exchange(rank: int, out: Path) -> None:
    for value in VALUES:
        own = value if rank else VALUES[-1]
        assert gather(own, 2) == [VALUES[-1], value]
    counts = gather_vectors(torch.arange(3 * rank), 2)
    assert [each.tolist() for each in counts] == [[], [0, 1, 2]]
    halves = gather_vectors(torch.full((2 - rank,), 0.1), 2)
    assert torch.equal(halves[0], torch.tensor([0.1, 0.1]))
    assert torch.equal(halves[1], torch.tensor([0.1]))
    assert [each.tolist() for each in gather_vectors(torch.empty(0), 2)] == [[], []]
    (out / str(rank)).touch()


def test_values_of_other_sizes_and_none_arrive_as_they_were(tmp_path: Path) -> None:
    on_two_ranks(exchange, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"0", "1"}


class Malicious:
    """Creates a file where it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return open, (self.path, "w")


def send_pickle(rank: int, out: Path) -> None:
    """Rank 1 sends what torch's collectives for objects would unpickle on rank 0."""
    if rank == 1:
        payload = bytearray(pickle.dumps(Malicious(str(out / "executed"))))
        gather_vectors(torch.frombuffer(payload, dtype=torch.uint8), 2)
    else:
        with pytest.raises(ValueError, match=r"Expecting value|codec can't decode"):
            gather("x", 2)
    (out / str(rank)).touch()


def test_a_pickle_of_another_rank_is_not_executed(tmp_path: Path) -> None:
    on_two_ranks(send_pickle, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"0", "1"}


def test_no_file_uses_the_collectives_for_objects() -> None:
    product = Path(collectives.__file__).parents[1]
    unpickling = [name for name in dir(dist) if "object" in name]
    assert "all_gather_object" in unpickling
    found = {
        f"{path.relative_to(product)}: {name}"
        for path in [*product.rglob("*.py"), *(product / "models").rglob("*.py")]
        for name in unpickling
        if f"{name}(" in path.read_text()
    }
    assert found == set()

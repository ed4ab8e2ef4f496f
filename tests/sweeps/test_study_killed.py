"""Sweeps whose driver is killed at any write, with the simulated processes of pools.py."""

import random
from collections import Counter

import pytest

from support.pools import (
    SECTIONS,
    STEP,
    TOTAL,
    Disk,
    Killed,
    Pool,
    check_history,
    make_sweep,
    outcome,
)

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", SECTIONS)
def test_a_sweep_killed_at_any_write_ends_like_an_uninterrupted_one(name: str) -> None:
    """Each record and each checkpoint in turn is the last write of a driver."""
    section = SECTIONS[name]
    uninterrupted = Disk()
    Pool(uninterrupted, section).run()
    check_history(uninterrupted)
    expected = outcome(uninterrupted, orders="pbt" not in name)
    for fuse in range(1, uninterrupted.writes + 1):
        disk = Disk(fuse=fuse)
        with pytest.raises(Killed):
            Pool(disk, section).run()
        disk.fuse = None
        Pool(disk, section).run()
        check_history(disk)
        assert outcome(disk, orders="pbt" not in name) == expected, f"killed after write {fuse}"


def test_the_simulated_sweeps_stop_promote_and_copy_trials() -> None:
    """Otherwise the test above would prove nothing."""
    ends = {}
    for name, section in SECTIONS.items():
        disk = Disk()
        Pool(disk, section).run()
        ends[name] = Counter[str](trial.status for trial in disk.trials())
        ends[name]["copies"] = sum(len(trial.segments) - 1 for trial in disk.trials())
    assert ends["fifo"] == {"finished": 3, "copies": 0}
    assert ends["fifo with two seeds"] == {"finished": 4, "copies": 0}
    assert ends["grid"] == {"finished": 3, "copies": 0}
    for name in ("asha", "median", "hyperband", "tpe"):
        assert ends[name]["stopped"] >= 2
        assert ends[name]["finished"] >= 1
    assert ends["pbt"] == {"finished": 4, "copies": 8}
    assert ends["pbt with many intervals"] == {"finished": 3, "copies": 8}


@pytest.mark.parametrize("name", ["asha", "hyperband", "pbt", "pbt with many intervals"])
def test_a_sweep_killed_repeatedly_ends_like_an_uninterrupted_one(name: str) -> None:
    uninterrupted = Disk()
    Pool(uninterrupted, SECTIONS[name]).run()
    for seed in range(25):
        rng, disk = random.Random(seed), Disk()
        for _ in range(1000):
            disk.fuse = disk.writes + rng.randint(1, 12)
            try:
                Pool(disk, SECTIONS[name]).run()
            except Killed:
                continue
            break
        check_history(disk)
        assert outcome(disk) == outcome(uninterrupted)


@pytest.mark.parametrize("name", ["hyperband", "pbt", "pbt with many intervals"])
def test_synchronous_schedulers_do_not_depend_on_the_order_of_processes(name: str) -> None:
    uninterrupted = Disk()
    Pool(uninterrupted, SECTIONS[name]).run()
    for seed in range(25):
        rng, disk = random.Random(seed), Disk()
        disk.fuse = rng.randint(1, uninterrupted.writes) if seed % 2 else None
        pools = [Pool(disk, SECTIONS[name], rng.randint(1, 6), rng) for _ in range(1)]
        try:
            pools[0].run()
        except Killed:
            disk.fuse = None
            Pool(disk, SECTIONS[name], rng.randint(1, 6), rng).run()
        check_history(disk)
        assert [row[3:] for row in outcome(disk)] == [row[3:] for row in outcome(uninterrupted)]


@pytest.mark.parametrize("name", SECTIONS)
def test_with_concurrent_processes_every_trial_ends_exactly_once(name: str) -> None:
    """Even if drivers are killed and trials diverge."""
    for seed in range(12):
        rng, disk = random.Random(f"{name}/{seed}"), Disk()
        bad = {(rng.randrange(7), STEP * rng.randint(1, 18)) for _ in range(seed % 3)}

        def broken(number: int, images: int, bad: set[tuple[int, int]] = bad) -> bool:
            return (number, images) in bad

        for _ in range(1000):
            disk.fuse = disk.writes + rng.randint(5, 80)
            pool = Pool(disk, SECTIONS[name], rng.randint(2, 5), rng, broken)
            try:
                pool.run()
            except Killed:
                continue
            break
        check_history(disk)
        assert sorted(disk.records) == list(range(make_sweep(**SECTIONS[name]).num_trials))
        assert all(
            t.results[-1].images_seen == TOTAL for t in disk.trials() if t.status == "finished"
        )
        assert {t.number for t in disk.trials() if t.status == "diverged"} <= {n for n, _ in bad}
        orders = [result.order for trial in disk.trials() for result in trial.results]
        assert sorted(orders) == list(range(len(orders)))

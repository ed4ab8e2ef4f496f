"""Ranking of configurations, and the job file with the best values."""

import math
import random
import statistics
from collections.abc import Mapping
from typing import Any

import pytest

from orchestrator.config.edit import edit_values
from orchestrator.config.flatten import flatten
from orchestrator.config.overrides import to_overrides
from orchestrator.config.sweep import SweepSection, Value
from orchestrator.sweeps.records import (
    IntermediateResult,
    Status,
    Sweep,
    Trial,
    TrialSegment,
    pareto_front,
    rank_configs,
)
from services.fixtures_jobs import Load
from support.sweep_jobs import VALID, at

ENDS: list[Status] = ["finished"] * 6
ENDS += ["stopped", "stopped", "diverged", "failed", "running", "waiting"]


def ended(seed: int, **section: Any) -> Sweep:
    """Make a sweep whose trials ended in all ways, with many equal metrics."""
    rng = random.Random(seed)
    repeats, metrics = rng.choice([1, 1, 3]), rng.choice([1, 2])
    names = ["a", "b"][:metrics]
    modes = [rng.choice(["min", "max"]) for _ in names]
    given = {"metric": names, "mode": modes, "seeds_per_config": repeats, "trials": 9, **section}
    settings = SweepSection.model_validate({**given, "space": {"x": {"uniform": [0, 1]}}})
    trials = []
    for number in range(rng.randint(1, 9 * repeats)):
        configuration, seed_index = divmod(number, repeats)
        images = rng.choice([300, 900, 900])
        values = tuple(rng.choice([float(rng.randint(0, 3))] * 9 + [math.nan]) for _ in names)
        status = rng.choice(ENDS)
        results = [IntermediateResult(images, values, number)] if rng.random() < 0.95 else []
        segment = TrialSegment(f"r{number}", {"x": configuration / 9})
        trials.append(Trial(number, configuration, seed_index, [segment], status, results=results))
    return Sweep("s", "j", settings, 900, trials, num_trials=9 * repeats)


def naive_ranking(sweep: Sweep) -> list[tuple[int, list[float], int]]:
    """Rank each configuration on its own, then bubble sort."""
    repeats, found = sweep.section.seeds_per_config, []
    for configuration in range(9):
        own = [t for t in sweep.trials if t.configuration == configuration]
        good = [t for t in own if t.status in ("finished", "stopped") and t.results]
        good = [t for t in good if all(math.isfinite(v) for v in t.results[-1].values)]
        if len(own) == len(good) == repeats:
            columns = range(len(sweep.section.metrics))
            means = [statistics.fmean(t.results[-1].values[k] for t in own) for k in columns]
            found.append((configuration, means, min(t.results[-1].images_seen for t in own)))
    high = sweep.section.modes[0] == "max"
    for _ in found:
        for i in range(len(found) - 1):
            (a, means, images), (b, others, seen) = found[i], found[i + 1]
            worse = means[0] < others[0] if high else means[0] > others[0]
            same = images == seen and means[0] == others[0]
            if images < seen or (images == seen and worse) or (same and a > b):
                found[i], found[i + 1] = found[i + 1], found[i]
    return found


def test_configurations_are_ranked_as_by_a_naive_implementation() -> None:
    counts = set()
    for seed in range(600):
        sweep = ended(seed)
        found = rank_configs(sweep)
        expected = naive_ranking(sweep)
        assert [(s.configuration, s.images_seen) for s in found] == [
            (configuration, images) for configuration, _, images in expected
        ]
        for ranked, (configuration, means, _) in zip(found, expected, strict=True):
            assert ranked.means == pytest.approx(means)
            own = [t for t in sweep.trials if t.configuration == configuration]
            assert ranked.trials == tuple(t.number for t in own)
            assert ranked.values == own[0].values
            for k, spread in enumerate(ranked.spreads):
                values = [t.results[-1].values[k] for t in own]
                deviation = statistics.stdev(values) if len(values) > 1 else 0.0
                assert spread == pytest.approx(deviation)
        counts.add(len(found))
    assert counts >= {0, 1, 2, 5}


def test_the_pareto_front_has_the_configurations_that_none_dominates() -> None:
    lengths = set()
    for seed in range(600):
        sweep = ended(seed)
        ranked = rank_configs(sweep)
        front = []
        for one in ranked:
            beaten = False
            for other in ranked:
                pairs = zip(one.means, other.means, sweep.section.modes, strict=True)
                gains = [(o - m) if mode == "max" else (m - o) for m, o, mode in pairs]
                beaten |= min(gains) >= 0 < max(gains) and other.images_seen >= one.images_seen
            if not beaten:
                front.append(one)
        assert pareto_front(sweep) == front
        lengths.add(len(front))
    assert lengths >= {0, 1, 2, 3}


VALUES: list[dict[str, Value]] = [
    {"model.gamma": 0.1 + 0.2, "model.learning_rate": 2e-05},
    {"model.gamma": 1 / 3, "train.ema_decay": None, "model.filters": 24},
    {"guard.collapse": "stop", "model.gamma": 1.0},
    {"train.channels_last": True, "data.augment.flip": True},
]


@pytest.mark.parametrize("values", VALUES)
def test_a_rewritten_job_has_exactly_the_given_values_and_keeps_its_comments(
    load: Load, values: Mapping[str, Value]
) -> None:
    own = ("train.batch_size=32", "data.augment={resize: 32}")
    text = edit_values(VALID, (*own, *to_overrides(values)), ("sweep",), "the best of all")
    again = load(text).job
    assert again.sweep is None
    for path, value in values.items():
        assert at(again, path) == value
    assert again.train.batch_size == 32
    by_hand = load(VALID, "sweep=null", *own, *to_overrides(values))
    assert flatten(by_hand.render()) == flatten(load(text).render())
    lines = text.splitlines()
    assert lines[:3] == [
        "#!/usr/bin/env -S orchestrator run",
        "# the best of all",
        "# A sweep over BEGAN's balance.",
    ]
    assert "  latent: 16          # small" in lines
    assert any(line.startswith("  gamma: ") and "# the paper's" in line for line in lines)
    assert "measure" not in text


def test_comments_after_a_removed_section_are_kept() -> None:
    text = VALID + "\n# where it goes\nstorage: runs   # a folder\n# the end\n"
    done = edit_values(text, (), ("sweep",), "best")
    head = VALID[: VALID.index("sweep:")].replace("run\n#", "run\n# best\n#", 1)
    assert done == head + "\n# where it goes\nstorage: runs   # a folder\n# the end\n"


def test_a_job_without_comments_and_a_job_in_flow_style_are_rewritten() -> None:
    assert edit_values("name: x\nsweep: {a: 1}\n", ("a.b=2",), ("sweep",), "best") == (
        "# best\nname: x\na:\n  b: 2\n"
    )
    assert (
        edit_values("{name: x, sweep: {a: 1}}\n", (), ("sweep",), "best") == "# best\n{name: x}\n"
    )
    shared = "name: x\nsweep: {space: &a {b: 1}}\nother: *a\n"
    assert load_text_of(edit_values(shared, (), ("sweep",), "best")) == {
        "name": "x",
        "other": {"b": 1},
    }


def load_text_of(text: str) -> Any:
    from orchestrator.config.yaml_source import parse_yaml

    return parse_yaml(text, "x").data

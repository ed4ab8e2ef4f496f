"""The best checkpoint by its evaluations is kept and chosen, and its metric is checked before."""

import random
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from orchestrator.config.load import load_job
from orchestrator.config.register_section import BestSection
from orchestrator.data.format.shard_index import open_set
from orchestrator.data.prepare.pack import pack_folder
from orchestrator.diagnostics.plan import make_plan
from orchestrator.errors import UsageError
from orchestrator.evaluation.report import Measurement
from orchestrator.runs.best_evaluation import BestEvaluation
from orchestrator.runs.checkpoints import Checkpoints, images_of
from orchestrator.runs.evaluation_task import EvaluationRecord, check_evaluation_sets, record_key
from orchestrator.storage.base import Storage
from orchestrator.storage.open import open_storage
from support.checkpoints import flip_bit, make_checkpoints, make_state
from support.drawings import draw_pairs
from support.small_runs import pack_pairs, write_job


@dataclass
class Run:
    """A run whose training and evaluator are the test; each checkpoint has its own number."""

    storage: Storage
    mode: str = "min"
    values: dict[str, float] = field(default_factory=dict)
    """What was measured, by checkpoint."""

    def open(self) -> Checkpoints:
        """The checkpoints as a process opens them that knows nothing of earlier ones."""
        checkpoints = make_checkpoints(self.storage)
        checkpoints.also_kept = self.best().keep
        return checkpoints

    def best(self) -> BestEvaluation:
        settings = {"metric": "evaluation/l1", "mode": self.mode}
        return BestEvaluation(self.storage, "run", BestSection.model_validate(settings))

    def evaluate(self, checkpoint: str, value: float, metric: str = "l1", **about: int) -> None:
        measured = (Measurement(metric, value, 4), Measurement("other", -value, 4))
        record = EvaluationRecord(checkpoint, images_of(checkpoint), about, measured)
        self.storage.put(record_key("run", checkpoint), record.to_json().encode())
        self.values[checkpoint] = value


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(open_storage(str(tmp_path)))


@pytest.mark.parametrize("mode", ["min", "max"])
def test_the_best_evaluated_checkpoint_so_far_is_kept_by_any_process(run: Run, mode: str) -> None:
    """Evaluations lag behind, leave checkpoints out, and the run is killed at random."""
    run.mode, draw, checkpoints = mode, random.Random(1), None
    for seen in range(10, 301, 10):
        if checkpoints is None or draw.random() < 0.3:
            checkpoints = run.open()
        checkpoints.save(make_state(seen))
        names = checkpoints.names()
        if run.values:
            best = (min if mode == "min" else max)(run.values.values())
            first = min(name for name, value in run.values.items() if value == best)
            assert first in names
            assert {*names} <= {first, *names[-6:]}, "the others are deleted"
        if draw.random() < 0.4:
            candidates = [name for name in names[-3:] if name not in run.values]
            if candidates:
                run.evaluate(draw.choice(candidates), draw.choice([1.0, 2.0, 3.0, 4.0]))
    assert len(run.values) >= 8
    found = run.best().find(run.open().names())
    assert found is not None
    assert (found.checkpoint, found.points()["evaluation/l1"]) == (first, best)


def test_a_result_that_lands_while_old_checkpoints_are_deleted_keeps_its_own(run: Run) -> None:
    checkpoints = run.open()
    for seen in (10, 20, 30):
        checkpoints.save(make_state(seen))
    first, *_, newest = checkpoints.names()
    checkpoints.in_use = first
    real = run.best()

    def keep(names: list[str]) -> set[str]:
        found = real.keep(names)
        run.evaluate(first, 1.0)
        checkpoints.in_use = newest  # the next evaluation begins
        return found

    checkpoints.also_kept = keep
    checkpoints.save(make_state(40))
    assert first in checkpoints.names()


def test_results_of_damaged_and_deleted_checkpoints_do_not_count(run: Run) -> None:
    checkpoints = run.open()
    for seen in (10, 20, 30):
        checkpoints.save(make_state(seen))
    one, two, three = checkpoints.names()
    for name, value in ((one, 3.0), (two, 1.0), (three, 2.0)):
        run.evaluate(name, value)
    run.evaluate("000000000005-gone", 0.5)
    flip_bit(run.storage, three, "networks.safetensors")
    assert checkpoints.latest() is not None, "the newest one is quarantined"
    flip_bit(run.storage, two, "networks.safetensors")
    assert checkpoints.latest() is not None
    found, everywhere = run.best().find(checkpoints.names()), run.best().find()
    assert found is not None
    assert everywhere is not None
    assert (found.checkpoint, everywhere.checkpoint) == (one, "000000000005-gone")


def test_only_results_that_were_measured_as_the_newest_are_compared(run: Run) -> None:
    run.evaluate("000000000010-a", 1.0, num_images=100)
    run.evaluate("000000000020-a", 3.0, num_images=500)
    run.evaluate("000000000030-a", 4.0, num_images=500)
    found = run.best().find()
    assert found is not None
    assert found.checkpoint == "000000000020-a"


def test_a_damaged_result_and_one_without_the_metric_do_not_count(run: Run) -> None:
    run.evaluate("000000000010-a", 1.0)
    run.storage.put(record_key("run", "000000000010-a"), b'{"format": 1, "checkpoint": 3}')
    run.evaluate("000000000020-a", 0.5, metric="psnr")
    assert run.best().find() is None
    run.evaluate("000000000030-a", 2.0)
    found = run.best().find()
    assert found is not None
    assert found.checkpoint == "000000000030-a"


BEST = "register.best={{metric: {}, mode: min}}"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return pack_pairs(tmp_path_factory.mktemp("best"))


@pytest.mark.parametrize(
    ("metric", "settings", "message"),
    [
        ("evaluation/l1", [], None),
        ("evaluation/l1", ["evaluate=null"], "evaluation/l1 needs an evaluation beside the tra"),
        ("evaluation/kid.lite0", [], "register.best.metric: no evaluation of pairs with the"),
        ("evaluation/l2", [], "register.best.metric: no evaluation of pairs with the extractor"),
    ],
)
def test_the_metric_is_checked_with_the_job(
    data: str, tmp_path: Path, metric: str, settings: list[str], message: str | None
) -> None:
    job, settings = write_job(tmp_path / "x", data), ["evaluate={metrics: [pairs]}", *settings]
    if message is not None:
        with pytest.raises(UsageError) as error:
            load_job(job, [*settings, BEST.format(metric)])
        assert message in str(error.value)
        assert len(str(error.value).splitlines()) == 1
        return
    shown = make_plan(load_job(job, [*settings, BEST.format(metric)])).render()
    assert "the checkpoint with the smallest evaluation/l1" in shown


def test_a_value_that_the_set_is_too_small_for_is_refused_before_the_run(tmp_path: Path) -> None:
    """A model that translates draws one image for each of the set, so n is the set's."""
    pairs = draw_pairs(tmp_path / "pairs", count=120, size=16)
    pack_folder(pairs, str(tmp_path / "data"), size=16, validation_share=0.5)
    held_out = open_set(f"{tmp_path}/data/validation").num_samples
    job = write_job(tmp_path / "x", str(tmp_path / "data"))
    settings = ["evaluate={metrics: [frechet], num_images: 1000}"]
    best = BEST.format("evaluation/frechet.lite0.n1000")
    expected = (
        "register.best.metric: there will be no value evaluation/frechet.lite0.n1000: evaluate "
        f"measures frechet with {held_out} images by lite0"
    )
    with pytest.raises(UsageError, match=expected):
        check_evaluation_sets(load_job(job, [*settings, best]).job)
    right = BEST.format(f"evaluation/frechet.lite0.n{held_out}")
    check_evaluation_sets(load_job(job, [*settings, right]).job)

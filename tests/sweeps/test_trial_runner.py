"""A real trial in this process: what it reports, how it ends and resumes."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from orchestrator.config.load import load_job
from orchestrator.config.sweep import Distribution, SweepSection
from orchestrator.data.prepare.pack import pack_folder
from orchestrator.runs.checkpoints import Checkpoints
from orchestrator.runs.evaluation_task import read_record
from orchestrator.runs.resolved_job import resolve_job
from orchestrator.runs.signals import StopRequest
from orchestrator.storage.open import open_storage
from orchestrator.sweeps.early_stopping import CONTINUE, TrialDecision
from orchestrator.sweeps.intermediate import score
from orchestrator.sweeps.records import (
    IntermediateResult,
    Sweep,
    Trial,
    TrialSegment,
    rank_configs,
)
from orchestrator.sweeps.store import SweepRecord
from orchestrator.sweeps.trial_job import make_task
from orchestrator.sweeps.trial_runner import TrialEnd, TrialTask, train_trial
from orchestrator.training.collapse import SampleDiversity
from support.drawings import draw_pairs

pytestmark = pytest.mark.slow
JOB = """\
name: small
model: {{name: pix2pix, image_size: 16, filters: 4, discriminator_filters: 4,
         receptive_field: 16, norm: instance}}
data: {{train: {data}/train, validation: {data}/validation}}
train: {{images: 48, batch_size: 4}}
tracking: {{uri: "sqlite:///{folder}/mlflow.db"}}
storage: {folder}/runs
sweep:
  metric: validation/l1
  trials: 2
  report_every: 16
  space: {{model.learning_rate: {{loguniform: [1.0e-4, 1.0e-2]}}}}
"""
Result = tuple[int, tuple[float, ...]]


@dataclass
class FakeReporter:
    """Reporter that records what it is told."""

    decide_after: Callable[[int], TrialDecision] = lambda images: CONTINUE
    request_at: Callable[[int], TrialDecision | None] = lambda images: None
    results: list[Result] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)
    last_decision: TrialDecision = CONTINUE

    def report_start(self, mlflow_run_id: str) -> None:
        self.runs.append(mlflow_run_id)

    def report_result(self, images_seen: int, values: tuple[float, ...]) -> None:
        self.results.append((images_seen, values))
        self.last_decision = self.decide_after(images_seen)

    def requested_action(self, images_seen: int) -> TrialDecision | None:
        if self.last_decision != CONTINUE:
            return self.last_decision
        return self.request_at(images_seen)


@dataclass
class SweepFolder:
    """Folder with a sweep that has started."""

    folder: Path

    def task(self, segment: TrialSegment, *reported: Result) -> TrialTask:
        loaded = load_job(self.folder / "small.yaml")
        results = [
            IntermediateResult(images, values, n) for n, (images, values) in enumerate(reported)
        ]
        resolved = resolve_job(loaded)
        job = resolved.job
        assert job.sweep is not None
        record = SweepRecord(
            "s", "small", "small.yaml", loaded.text, (), loaded.render(),
            job.sweep.model_dump(mode="json", exclude_none=True), "d", 48, 16, "", "", "parent",
        )  # fmt: skip
        return make_task(Trial(0, 0, 0, [segment], results=results), record, resolved)

    def saved(self, segment: TrialSegment) -> list[str]:
        storage = open_storage(f"{self.folder}/runs")
        return Checkpoints(storage, f"{segment.run}/checkpoints", "").names()


def trained(task: TrialTask, reporter: FakeReporter) -> TrialEnd:
    return train_trial(task, reporter, StopRequest(), None)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> SweepFolder:
    folder = tmp_path_factory.mktemp("sweep")
    pairs = draw_pairs(tmp_path_factory.mktemp("pairs"), count=20, size=16)
    pack_folder(pairs, str(folder / "data"), size=16, validation_share=0.3, side_by_side=True)
    (folder / "small.yaml").write_text(JOB.format(data=folder / "data", folder=folder))
    return SweepFolder(folder)


@pytest.fixture(scope="module")
def uninterrupted(sweep: SweepFolder) -> FakeReporter:
    reporter = FakeReporter()
    assert trained(sweep.task(make_segment("uninterrupted")), reporter) == TrialEnd("finished")
    assert [images for images, _ in reporter.results] == [16, 32, 48]
    assert len({values for _, values in reporter.results}) == 3
    return reporter


def make_segment(name: str, rate: float = 1e-3) -> TrialSegment:
    return TrialSegment(f"sweeps/s/{name}", {"model.learning_rate": rate})


def test_a_paused_trial_and_its_copy_continue_like_an_uninterrupted_trial(
    sweep: SweepFolder, uninterrupted: FakeReporter
) -> None:
    segment = make_segment("waits")
    pause = TrialDecision("pause", "waits for other trials at 16 images")
    first = FakeReporter(lambda images: pause if images == 16 else CONTINUE)
    assert trained(sweep.task(segment), first) == TrialEnd("paused", pause.reason)
    assert first.results == uninterrupted.results[:1]
    saved = sweep.saved(segment)

    # Its process died before it could report the pause: the checkpoint to copy stays the newest.
    again = FakeReporter(request_at=lambda images: pause if images >= 16 else None)
    assert trained(sweep.task(segment, *first.results), again) == TrialEnd("paused", pause.reason)
    assert (sweep.saved(segment), again.results) == (saved, [])

    source = f"{segment.run}/checkpoints/{saved[-1]}"
    copy = FakeReporter()
    copied = replace(make_segment("copy"), source_checkpoint=source, parent=0, start_images=16)
    assert trained(sweep.task(copied, *first.results), copy) == TrialEnd("finished")
    following = FakeReporter()
    assert trained(sweep.task(segment, *first.results), following) == TrialEnd("finished")
    assert copy.results == following.results == uninterrupted.results[1:]
    assert first.runs == following.runs != copy.runs


def test_a_trial_is_judged_by_the_evaluation_of_its_last_checkpoint(
    tmp_path_factory: pytest.TempPathFactory, sweep: SweepFolder
) -> None:
    folder = tmp_path_factory.mktemp("evaluated")
    job = JOB.format(data=sweep.folder / "data", folder=folder)
    job = job.replace("metric: validation/l1", "metric: evaluation/l1")
    (folder / "small.yaml").write_text(job + "evaluate: {metrics: [pairs]}\n")
    evaluated, segment = SweepFolder(folder), make_segment("evaluated")
    reporter = FakeReporter()
    assert trained(evaluated.task(segment), reporter) == TrialEnd("finished")
    (images, values) = reporter.results[-1]
    storage = open_storage(f"{folder}/runs")
    (key,) = [k for k in storage.list(f"{segment.run}/evaluations/") if f"{48:012d}-" in k]
    assert (images, values) == (48, (read_record(storage, key).points()["evaluation/l1"],))
    assert all(math.isnan(value) for _, (value,) in reporter.results[:-1])

    # Its process died after the evaluation and before the report: another one reports the same.
    again = FakeReporter()
    assert trained(evaluated.task(segment, *reporter.results[:-1]), again) == TrialEnd("finished")
    assert again.results == [(48, values)]


def test_a_trial_that_died_before_it_saved_repeats_the_steps_and_reports_once(
    sweep: SweepFolder, uninterrupted: FakeReporter
) -> None:
    """The checkpoints after its result are missing; then the scheduler stops it."""
    segment, pause = make_segment("unsaved"), TrialDecision("pause", "waits")
    early = FakeReporter(request_at=lambda images: pause if images >= 4 else None)
    assert trained(sweep.task(segment), early) == TrialEnd("paused", "waits")
    assert early.results == []
    again = FakeReporter(request_at=lambda images: pause if images >= 16 else None)
    assert trained(sweep.task(segment, uninterrupted.results[0]), again) == TrialEnd(
        "paused", "waits"
    )
    assert again.results == []
    assert f"{16:012d}" in [name.partition("-")[0] for name in sweep.saved(segment)]
    stop = TrialDecision("stop", "0.5 after 32 images")
    following = FakeReporter(lambda images: stop)
    assert trained(sweep.task(segment, uninterrupted.results[0]), following) == TrialEnd(
        "stopped", stop.reason
    )
    assert following.results == uninterrupted.results[1:2]


@pytest.mark.parametrize("images", [16, 20])
def test_a_trial_stopped_anywhere_has_the_results_of_an_uninterrupted_one(
    sweep: SweepFolder, uninterrupted: FakeReporter, images: int
) -> None:
    """At 16 images it is stopped after logging the losses, before the validation that is due."""
    segment = make_segment(f"stops-at-{images}")
    pause = TrialDecision("pause", "someone stopped the sweep")
    first = FakeReporter(request_at=lambda seen: pause if seen >= images else None)
    assert trained(sweep.task(segment), first).status == "paused"
    assert sweep.saved(segment)[-1].startswith(f"{images:012d}-")
    following = FakeReporter()
    assert trained(sweep.task(segment, *first.results), following) == TrialEnd("finished")
    assert first.results + following.results == uninterrupted.results


def test_a_trial_whose_process_is_stopped_may_resume_in_another(sweep: SweepFolder) -> None:
    request = StopRequest()
    request.request()
    end = train_trial(sweep.task(make_segment("asked")), FakeReporter(), request, None)
    assert end == TrialEnd("paused", "its process was asked to stop", retryable=True)


def test_a_trial_whose_samples_are_alike_is_never_the_best_however_good_its_metric(
    sweep: SweepFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With guard.collapse: warn it trains to its end, and its results count as the worst."""
    model = "{{name: dcgan, image_size: 16, filters: 4, latent_size: 8}}"
    old = JOB[JOB.index("{{name: pix2pix") : JOB.index("\ndata:")]
    text = JOB.replace(old, model).replace("validation/l1", "discriminator/loss")
    text = text.replace(
        "batch_size: 4}}", "batch_size: 4, sample_every: 4}}\nguard: {{collapse_grace: 14}}"
    )
    (tmp_path / "small.yaml").write_text(text.format(data=sweep.folder / "data", folder=tmp_path))
    ends, trials = [], []
    for number, diversity in enumerate((0.5, 0.001)):
        monkeypatch.setattr(SampleDiversity, "measure", lambda _, __, value=diversity: value)
        reporter, segment = FakeReporter(), make_segment(str(number))
        ends.append(trained(SweepFolder(tmp_path).task(segment), reporter))
        results = [
            IntermediateResult(images, values, n)
            for n, (images, values) in enumerate(reporter.results)
        ]
        trials.append(Trial(number, number, 0, [segment], ends[-1].status, results=results))
    assert [(end.status, end.reason.partition(":")[0]) for end in ends] == [
        ("finished", ""), ("diverged", "collapsed"),
    ]  # fmt: skip
    alike = [math.isnan(result.values[0]) for result in trials[1].results]
    assert alike == [False, True, True], (
        "the last samples before 16 images were drawn within the grace period"
    )
    section = SweepSection(
        metric="discriminator/loss", trials=2, space={"model.beta1": Distribution(grid=[0.5])}
    )
    record = Sweep("s", "small", section, 48, trials)
    assert [config.trials for config in rank_configs(record)] == [(0,)]
    assert not any(math.isfinite(score(record, result)) for result in trials[1].results[1:])

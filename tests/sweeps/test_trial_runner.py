"""One training of a sweep, for real, in this process: what it tells, how it ends and goes on."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from orchestrator.config.load import load_job
from orchestrator.config.paths import resolve_places
from orchestrator.data.prepare.pack import pack_folder
from orchestrator.runs.checkpoints import Checkpoints
from orchestrator.runs.signals import StopRequest
from orchestrator.storage.open import open_storage
from orchestrator.sweeps.early_stopping import Verdict
from orchestrator.sweeps.records import Leg, Look, Trial
from orchestrator.sweeps.store import SweepRecord
from orchestrator.sweeps.trial_job import task_of
from orchestrator.sweeps.trial_runner import End, Task, train_trial
from support.drawings import draw_pairs

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
Seen = tuple[int, tuple[float, ...]]
GO_ON = Verdict("go on")


@dataclass
class Desk:
    """Notes what it is told."""

    after_look: Callable[[int], Verdict] = lambda images: GO_ON
    wish_at: Callable[[int], Verdict | None] = lambda images: None
    looks: list[Seen] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)
    told: Verdict = GO_ON

    def started(self, mlflow_run_id: str) -> None:
        self.runs.append(mlflow_run_id)

    def look(self, images_seen: int, values: tuple[float, ...]) -> None:
        self.looks.append((images_seen, values))
        self.told = self.after_look(images_seen)

    def wish(self, images_seen: int) -> Verdict | None:
        return self.told if self.told != GO_ON else self.wish_at(images_seen)


@dataclass
class Place:
    """A folder with a sweep that has begun."""

    folder: Path

    def task(self, leg: Leg, *told: Seen) -> Task:
        loaded = load_job(self.folder / "small.yaml")
        looks = [Look(images, values, n) for n, (images, values) in enumerate(told)]
        job = resolve_places(loaded.job)
        assert job.sweep is not None
        record = SweepRecord(
            "s", "small", "small.yaml", loaded.text, (), loaded.render(),
            job.sweep.model_dump(mode="json", exclude_none=True), "d", 48, 16, "", "", "parent",
        )  # fmt: skip
        return task_of(Trial(0, 0, 0, [leg], looks=looks), record, loaded, job)

    def saved(self, leg: Leg) -> list[str]:
        storage = open_storage(f"{self.folder}/runs")
        return Checkpoints(storage, f"{leg.run}/checkpoints", "").names()


def trained(task: Task, desk: Desk) -> End:
    return train_trial(task, desk, StopRequest(), None)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("sweep")
    pairs = draw_pairs(tmp_path_factory.mktemp("pairs"), count=20, size=16)
    pack_folder(pairs, str(folder / "data"), size=16, validation_share=0.3, side_by_side=True)
    (folder / "small.yaml").write_text(JOB.format(data=folder / "data", folder=folder))
    return Place(folder)


@pytest.fixture(scope="module")
def whole(place: Place) -> Desk:
    desk = Desk()
    assert trained(place.task(leg_of("whole")), desk) == End("finished")
    assert [images for images, _ in desk.looks] == [16, 32, 48]
    assert len({values for _, values in desk.looks}) == 3
    return desk


def leg_of(name: str, rate: float = 1e-3) -> Leg:
    return Leg(f"sweeps/s/{name}", {"model.learning_rate": rate})


def test_a_training_that_waits_is_copied_and_goes_on_as_an_uninterrupted_one(
    place: Place, whole: Desk
) -> None:
    leg, pause = leg_of("waits"), Verdict("pause", "waits for others at 16 images")
    first = Desk(lambda images: pause if images == 16 else GO_ON)
    assert trained(place.task(leg), first) == End("paused", "waits for others at 16 images")
    assert first.looks == whole.looks[:1]
    saved = place.saved(leg)

    # It could not tell that it had saved: the checkpoint that others may copy stays the newest.
    again = Desk(wish_at=lambda images: pause if images >= 16 else None)
    assert trained(place.task(leg, *first.looks), again) == End("paused", pause.why)
    assert (place.saved(leg), again.looks) == (saved, [])

    source = f"{leg.run}/checkpoints/{saved[-1]}"
    copy = Desk()
    copied = replace(leg_of("copy"), source=source, parent=0, from_images=16)
    assert trained(place.task(copied, *first.looks), copy) == End("finished")
    following = Desk()
    assert trained(place.task(leg, *first.looks), following) == End("finished")
    assert copy.looks == following.looks == whole.looks[1:]
    assert first.runs == following.runs != copy.runs


def test_one_that_was_lost_before_it_saved_trains_up_to_its_look_and_tells_it_once(
    place: Place, whole: Desk
) -> None:
    """As if the checkpoints after its look had not been written; then it is told to stop."""
    leg, pause = leg_of("unsaved"), Verdict("pause", "waits")
    early = Desk(wish_at=lambda images: pause if images >= 4 else None)
    assert trained(place.task(leg), early) == End("paused", "waits")
    assert early.looks == []
    again = Desk(wish_at=lambda images: pause if images >= 16 else None)
    assert trained(place.task(leg, whole.looks[0]), again) == End("paused", "waits")
    assert again.looks == []
    assert f"{16:012d}" in [name.partition("-")[0] for name in place.saved(leg)]
    stop = Verdict("stop", "0.5 after 32 images")
    following = Desk(lambda images: stop)
    assert trained(place.task(leg, whole.looks[0]), following) == End("stopped", stop.why)
    assert following.looks == whole.looks[1:2]


@pytest.mark.parametrize("images", [16, 20])
def test_one_that_is_told_to_stop_anywhere_has_the_looks_of_an_uninterrupted_one(
    place: Place, whole: Desk, images: int
) -> None:
    """At 16 it is told so by the step's points, before the validation that is due then."""
    leg, pause = leg_of(f"stops-at-{images}"), Verdict("pause", "someone stopped the sweep")
    first = Desk(wish_at=lambda seen: pause if seen >= images else None)
    assert trained(place.task(leg), first).status == "paused"
    assert place.saved(leg)[-1].startswith(f"{images:012d}-")
    following = Desk()
    assert trained(place.task(leg, *first.looks), following) == End("finished")
    assert first.looks + following.looks == whole.looks


def test_one_whose_process_is_told_to_stop_may_go_on_in_another(place: Place) -> None:
    request = StopRequest()
    request.ask()
    end = train_trial(place.task(leg_of("told")), Desk(), request, None)
    assert end == End("paused", "its process was told to stop", lost=True)

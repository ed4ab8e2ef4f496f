"""A new version takes over without a gap; canaries and shadows draw beside the main version."""

import gc
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from orchestrator.errors import DataError, OrchestratorError, UsageError
from orchestrator.models.base import GenerativeModel
from orchestrator.registry import registry as registry_module
from orchestrator.registry.aliases import force
from orchestrator.serving.limits import Limits
from orchestrator.serving.served_version import ServedVersion, load_version
from orchestrator.serving.service_metrics import ServiceMetrics
from orchestrator.serving.version_slot import VersionSlot
from orchestrator.serving.version_source import VersionSource
from support.registries import make_registry, register_random
from support.served import Client, running, service_of, to_png, write_model
from support.small import scattered_model, small_config

pytestmark = pytest.mark.server
WHITE = to_png(np.full((3, 16, 16), 255, np.uint8))


class Shelf(NamedTuple):
    """Versions of a model in folders, and the one that should serve."""

    folder: Path
    wanted: list[int]
    problems: dict[int, OrchestratorError]

    def load(self, serving: int | None) -> ServedVersion | None:
        number = self.wanted[-1]
        if number == serving:
            return None
        if number in self.problems:
            raise self.problems[number]
        return load_version(self.folder / str(number), engine="torch")


def version(folder: Path, number: int, model: str = "pix2pix") -> GenerativeModel:
    """Write a version whose pictures are unlike those of others."""
    made = scattered_model(model).eval()
    with torch.no_grad():
        for parameter in made.inference_module().parameters():
            parameter.mul_(1 + 0.05 * number)
    write_model(folder / str(number), made, number)
    return made


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    for number in (1, 2):
        version(tmp_path, number)
    return Shelf(tmp_path, [1], {})


def ask(client: Client) -> tuple[int, str, bytes]:
    answer = client.post_image("/v1/translate?seed=4", WHITE)
    return answer.status, answer.headers["x-model-version"], answer.body


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_new_version_takes_over_under_load_without_a_failure(shelf: Shelf) -> None:
    slot = VersionSlot("main", shelf.load, ServiceMetrics())
    answers: list[tuple[int, str, bytes]] = []
    done = threading.Event()
    with running(service_of(slot, refresh_s=0.05)) as client:

        def keep_asking() -> None:
            while not done.is_set():
                answers.append(ask(client))

        clients = [threading.Thread(target=keep_asking) for _ in range(4)]
        for each in clients:
            each.start()
        for number in (2, 1, 2, 1, 2):
            shelf.wanted.append(number)
            until(lambda: slot.current.version == number)  # noqa: B023 - called at once
            seen = len(answers)
            until(lambda: len(answers) > seen + 8)  # noqa: B023
        done.set()
        for each in clients:
            each.join()
        assert ask(client)[1] == "2"
        named = [thread for thread in threading.enumerate() if thread.name == "batcher"]
        until(lambda: len([t for t in named if t.is_alive()]) == 1)
    assert {status for status, _, _ in answers} == {200}
    pictures = {(number, body) for _, number, body in answers}
    assert sorted(number for number, _ in pictures) == ["1", "2"], "each version has one picture"


def test_versions_that_have_gone_leave_no_thread_and_no_weights(shelf: Shelf) -> None:
    slot, seen = VersionSlot("main", shelf.load, ServiceMetrics()), []
    with running(service_of(slot, refresh_s=0.01)) as client:
        for turn in range(6):
            shelf.wanted.append(2 - turn % 2)
            until(lambda: slot.current.version == shelf.wanted[-1])
            assert ask(client)[0] == 200
            seen.append(weakref.ref(slot.current))
        until(lambda: sum(t.name == "batcher" for t in threading.enumerate()) == 1)
        gc.collect()
        assert [each() is not None for each in seen] == [False] * 5 + [True]


@pytest.mark.parametrize("kind", ["damaged", "other inputs"])
def test_a_version_that_cannot_serve_leaves_the_old_one(
    kind: str, shelf: Shelf, capfd: pytest.CaptureFixture[str]
) -> None:
    if kind == "damaged":
        shelf.problems[2] = DataError("weights.safetensors is not what was registered")
    else:
        version(shelf.folder, 3, "dcgan")
    slot = VersionSlot("main", shelf.load, ServiceMetrics())
    with running(service_of(slot, refresh_s=0.02)) as client:
        before = ask(client)
        shelf.wanted.append(2 if kind == "damaged" else 3)

        def failures() -> float:
            return float(slot.metrics.refresh_failures.labels("main")._value.get())

        until(lambda: failures() >= 3)
        assert ask(client) == before
        logged = capfd.readouterr().err
        assert logged.count("refresh failed") == 1, "told once, not at every look"
        assert '"serving": "pix2pix/1"' in logged
        shelf.problems.clear()
        shelf.wanted.append(2)
        until(lambda: slot.current.version == 2)


def test_a_canary_answers_its_share_and_a_shadow_answers_nobody(shelf: Shelf) -> None:
    def slot(role: str, number: int) -> VersionSlot:
        only = Shelf(shelf.folder, [number], {})
        return VersionSlot(role, only.load, metrics)

    metrics = ServiceMetrics()
    with running(service_of(slot("main", 1), canary=slot("canary", 2), canary_share=0.3)) as client:
        numbers = [ask(client)[1] for _ in range(200)]
    assert 30 <= numbers.count("2") <= 90, "200 draws with probability 0.3: 60 +- 4.6 deviations"

    metrics = ServiceMetrics()
    with running(service_of(slot("main", 1), shadow=slot("shadow", 2))) as client:
        assert {ask(client)[1] for _ in range(20)} == {"1"}
        line = 'draw_seconds_count{role="shadow",version="pix2pix/2"} 20.0'
        until(lambda: line in client.get("/metrics").body.decode())


class Registry(NamedTuple):
    uri: str
    source: Callable[[str], VersionSource]


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    uri = make_registry(tmp_path)
    for _ in range(2):
        register_random(uri, "drawer", small_config("pix2pix"), {})
    force("drawer/1", "champion", "a test", uri)

    def source(spec: str) -> VersionSource:
        return VersionSource(spec, uri, "torch", "cpu", Limits(), ServiceMetrics())

    return Registry(uri, source)


def test_an_alias_in_mlflow_is_followed_and_a_version_is_not(registry: Registry) -> None:
    champion, newest, pinned = map(registry.source, ("drawer@champion", "drawer", "drawer/1"))
    first = champion(None)
    assert first is not None
    assert (first.name, first.version) == ("drawer", 1)
    assert champion(1) is None
    force("drawer/2", "champion", "a test", registry.uri)
    second = champion(1)
    assert second is not None
    assert second.version == 2
    latest = newest(None)
    assert latest is not None
    assert latest.version == 2
    assert pinned(1) is None


@pytest.mark.parametrize("role", ["canary", "shadow"])
def test_a_version_beside_that_takes_other_inputs_is_refused_at_the_start(
    role: str, shelf: Shelf
) -> None:
    version(shelf.folder, 3, "dcgan")
    metrics = ServiceMetrics()
    main, other = (
        VersionSlot(name, Shelf(shelf.folder, [number], {}).load, metrics)
        for name, number in (("main", 1), (role, 3))
    )
    with pytest.raises(UsageError, match="dcgan/3 takes other inputs than pix2pix/1"):
        service_of(main, None, **{role: other}).load()


def test_a_damaged_version_of_the_registry_is_fetched_once(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for weights in tmp_path.glob("artifacts/**/weights.safetensors"):
        weights.write_bytes(weights.read_bytes()[:-1])
    source, pull = registry.source("drawer/2"), registry_module.pull
    fetched: list[str] = []

    def note(spec: str, dest: Path, uri: str) -> Path:
        fetched.append(spec)
        return pull(spec, dest, uri)

    monkeypatch.setattr(registry_module, "pull", note)
    for _ in range(3):
        with pytest.raises(DataError, match=r"weights\.safetensors"):
            source(1)
    assert fetched == ["drawer/2"]

"""Runs that diverge or collapse, compared with runs in which updates are skipped by hand."""

import json
import logging
import math
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch

from orchestrator.config.job import Job
from orchestrator.errors import Collapsed, Diverged
from orchestrator.models.base import Batch, GenerativeModel
from orchestrator.models.parts.noise import uniform
from orchestrator.training.nonfinite import Buffers, first_not_finite
from orchestrator.training.state import TrainState
from support.fakes import MemoryCheckpoints, small_job
from support.poison import Poisoned, PositionedStream, different, not_finite, poison, skip_update
from support.small import SMALL

pytestmark = pytest.mark.slow

Change = Callable[[GenerativeModel, PositionedStream], None]


def job(model: str = "pix2pix", guard: dict[str, object] | None = None, **train: object) -> Job:
    """24 images in steps of 4."""
    options = {"name": model, "image_size": 16, "channels": 3, **SMALL[model]}
    made = small_job(**{"log_every": 4, **train}).model_dump(by_alias=True)
    made |= {"model": options, "guard": guard or {}}
    return Job.model_validate(made)


def nan_at(*places: int, network: str = "generator", once: bool = False) -> Change:
    """Make the gradient NaN in the batches after so many images; ``once``: only the first time."""
    left = set(places)

    def now(stream: PositionedStream) -> bool:
        found = stream.at in left
        if found and once and stream.at is not None:
            left.discard(stream.at)
        return found

    return lambda model, stream: poison(model, network, lambda: now(stream))


@pytest.mark.parametrize("network", ["generator", "discriminator"])
@pytest.mark.parametrize("name", ["pix2pix", "dcgan", "began"])
@pytest.mark.parametrize("train", [{"ema_decay": 0.5}, {"max_grad_norm": 1.0}])
def test_a_gradient_that_is_not_finite_skips_exactly_that_update(
    name: str, network: str, train: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def by_hand(model: GenerativeModel, stream: PositionedStream) -> None:
        skip_update(model, network, lambda: stream.at == 12)

    run = Poisoned(monkeypatch, job(name, **train), nan_at(12, network=network))
    assert different(
        run.state, Poisoned(monkeypatch, job(name, {"gradients": "off"}, **train), by_hand).state
    ) == []  # fmt: skip
    untouched = Poisoned(monkeypatch, job(name, **train))
    assert different(run.state, untouched.state) != []
    assert run.recorder.curve("guard/skipped_updates")[-1] == (24, 1.0)
    assert untouched.recorder.curve("guard/skipped_updates")[-1] == (24, 0.0)
    assert all(math.isfinite(v) for _, point in run.recorder.points for v in point.values())
    assert 16 not in dict(run.recorder.curve(f"{network}/grad_norm"))


def test_one_microbatch_that_is_not_finite_skips_the_whole_update(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def by_hand(model: GenerativeModel, stream: PositionedStream) -> None:
        skip_update(model, "generator", lambda: stream.at == 12)

    calls: list[None] = []

    def first_part(model: GenerativeModel, stream: PositionedStream) -> None:
        def now() -> bool:
            calls.extend([None] if stream.at == 12 else [])
            return stream.at == 12 and len(calls) == 1

        poison(model, "generator", now)

    run = Poisoned(monkeypatch, job(microbatch_size=1), first_part)
    assert len(calls) == 4
    hand = Poisoned(monkeypatch, job(guard={"gradients": "off"}, microbatch_size=1), by_hand)
    assert different(run.state, hand.state) == []


def with_rates_times(factor: float, state: TrainState) -> TrainState:
    changed = deepcopy(state)
    for phase in changed.settings.values():
        for group in phase["groups"]:
            group["initial_lr"] *= factor
    return changed


def test_too_many_skips_roll_back_to_the_checkpoint_with_half_the_learning_rate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The checkpoint at 12 images waits for a finite update, so the one at 8 is the newest.
    configured = job(guard={"max_consecutive_skips": 2}, checkpoint_every=4)
    run = Poisoned(monkeypatch, configured, nan_at(8, 12, 16, once=True))
    assert [s.images_seen for s in run.checkpoints.states] == [4, 8, 12, 16, 20, 24]
    assert run.state.stateful["divergence_guard"]["rollbacks"] == 1
    first = with_rates_times(0.5, run.checkpoints.states[1])
    hand = Poisoned(monkeypatch, job(checkpoint_every=4), states=[first])
    for mine, theirs in zip(run.checkpoints.states[2:], hand.checkpoints.states[1:], strict=True):
        assert different(mine, with_rates_times(2, theirs)) == []
    plain = Poisoned(monkeypatch, job(checkpoint_every=4))
    assert different(run.state, plain.state) != []
    assert run.recorder.curve("guard/rollbacks")[-1] == (24, 1.0)
    assert run.recorder.curve("guard/skipped_updates")[-1] == (24, 3.0)


@pytest.mark.parametrize("name", ["pix2pix", "began", "pixelcnn_pp"])
def test_without_a_checkpoint_a_rollback_returns_to_the_first_weights(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = "" if name == "pixelcnn_pp" else "generator"
    guard: dict[str, object] = {"max_consecutive_skips": 0, "learning_rate_factor": 1.0}
    configured = job(name, guard, checkpoint_every=1000, ema_decay=0.9)
    run = Poisoned(monkeypatch, configured, nan_at(16, network=network, once=True))
    assert run.recorder.curve("guard/rollbacks")[-1] == (24, 1.0)
    assert different(run.state, Poisoned(monkeypatch, configured).state) == []


def test_a_run_that_keeps_diverging_fails_with_exit_code_6_and_what_was_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    always = nan_at(*range(12, 1000, 4))
    configured = job(
        guard={"max_consecutive_skips": 1, "max_rollbacks": 2, "learning_rate_factor": 0.1},
        checkpoint_every=4,
    )
    with pytest.raises(Diverged) as error:
        Poisoned(monkeypatch, configured, always)
    assert error.value.exit_code == 6
    assert str(error.value) == (
        "the gradient of generator is not finite (its norm is nan), 2 times in a row, after "
        "16 images; 6 updates were skipped (guard.max_consecutive_skips 1 in a row), and training "
        "was rolled back 2 of 2 times (guard.max_rollbacks), to 0.01 of the learning rate; a lower "
        "model.learning_rate or train.max_grad_norm: 1 often helps"
    )


@pytest.mark.parametrize("stop_at", [8, 12, 16, 20])
def test_a_run_that_was_stopped_between_two_skips_resumes_as_the_uninterrupted_one(
    stop_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    configured = job(guard={"max_consecutive_skips": 2}, ema_decay=0.9)
    whole = Poisoned(monkeypatch, configured, nan_at(8, 12))
    first = Poisoned(monkeypatch, configured, nan_at(8, 12), stop_at=stop_at)
    assert not first.outcome.finished
    kept = deepcopy(first.state)
    kept.stateful.update(json.loads(json.dumps(first.state.stateful)))
    rest = Poisoned(monkeypatch, configured, nan_at(8, 12), states=[kept])
    assert different(whole.state, rest.state) == []
    assert whole.state.stateful == rest.state.stateful
    stays = Poisoned(monkeypatch, configured, nan_at(8, 12, 16, once=True), states=[kept])
    assert stays.state.stateful["divergence_guard"]["rollbacks"] == int(stop_at < 20)


@pytest.mark.parametrize("gradients", ["watch", "off"])
@pytest.mark.parametrize("name", ["pix2pix", "dcgan", "began", "vae"])
def test_no_checkpoint_ever_holds_a_value_that_is_not_finite(
    name: str, gradients: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = job(name, {"gradients": gradients}, checkpoint_every=4, ema_decay=0.5)
    model = made.model.model_copy(update={"learning_rate": 1e30})
    kept: list[TrainState] = []

    def save(checkpoints: MemoryCheckpoints, state: TrainState) -> None:
        kept.append(deepcopy(state))
        checkpoints.states.append(kept[-1])

    monkeypatch.setattr(MemoryCheckpoints, "save", save)
    with pytest.raises(Diverged) as error:
        Poisoned(monkeypatch, made.model_copy(update={"model": model}))
    assert "finite" in str(error.value)
    assert [not_finite(state) for state in kept] == [[]] * len(kept)


def test_with_the_guard_off_an_update_that_is_not_finite_is_made_but_never_saved(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    configured = job(guard={"gradients": "off"}, log_every=1000, checkpoint_every=4)
    with pytest.raises(Diverged, match=r"guard\.gradients is off") as error:
        Poisoned(monkeypatch, configured, nan_at(12))
    assert str(error.value).startswith("generator.")
    assert "no longer finite, after 16 images" in str(error.value)


def test_images_that_are_not_finite_leave_no_trace_in_running_statistics(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = Poisoned(monkeypatch, job("dcgan", checkpoint_every=4), broken=[8, 16])
    assert run.outcome.finished
    assert run.recorder.curve("guard/skipped_updates")[-1] == (24, 2.0)
    assert run.recorder.curve("guard/rollbacks")[-1] == (24, 0.0)
    assert [not_finite(state) for state in run.checkpoints.states] == [[]] * 4
    assert [state.images_seen for state in run.checkpoints.states] == [4, 8, 16, 24]


def test_buffers_that_are_not_finite_are_restored_and_the_others_keep_their_changes() -> None:
    norms = torch.nn.ModuleList([torch.nn.BatchNorm1d(2), torch.nn.BatchNorm1d(2)])
    buffers = Buffers(norms)
    buffers.snapshot()
    norms[0](torch.full((4, 2), torch.nan))
    norms[1](torch.arange(8.0).view(4, 2))
    moved = norms[1].get_buffer("running_mean").clone()
    assert buffers.restore(torch.device("cpu"), 1) is None
    assert norms[0].get_buffer("running_mean").tolist() == [0, 0]
    assert norms[0].get_buffer("running_var").tolist() == [1, 1]
    assert norms[1].get_buffer("running_mean").tolist() == moved.tolist() != [0, 0]


def test_a_broken_buffer_that_is_too_large_to_copy_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("orchestrator.training.nonfinite.MAX_COPIED", 1)
    norm = torch.nn.BatchNorm1d(2)
    buffers = Buffers(norm)
    buffers.snapshot()
    assert buffers.restore(torch.device("cpu"), 1) is None
    norm(torch.full((4, 2), torch.nan))
    assert buffers.restore(torch.device("cpu"), 1) == "running_mean"


def test_a_run_with_a_lost_buffer_rolls_back_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.training.nonfinite.MAX_COPIED", 0)
    configured = job("dcgan", {"max_rollbacks": 1}, checkpoint_every=4)
    with pytest.raises(Diverged, match=r"and neither is the buffer running_mean, after 12 images"):
        Poisoned(monkeypatch, configured, broken=[12])


def test_the_first_tensor_that_is_not_finite_is_named_and_integers_are_finite() -> None:
    good = {"a": torch.ones(3), "n": torch.tensor(7), "h": torch.ones(2, dtype=torch.bfloat16)}
    assert first_not_finite({}) is first_not_finite(good) is None
    assert first_not_finite({**good, "x": torch.tensor([1.0, -torch.inf])}) == "x"


def drawing(*spreads: float) -> Change:
    """Sample noise of these amplitudes, one for each grid; the last one is repeated."""
    left = list(spreads)

    def change(model: GenerativeModel, stream: PositionedStream) -> None:
        def draw(seeds: torch.Tensor, condition: torch.Tensor | None) -> torch.Tensor:
            spread = left.pop(0) if len(left) > 1 else left[0]
            return (uniform(seeds, "image", (3, 16, 16)) * 2 - 1) * spread

        model.draw = draw  # type: ignore[method-assign]

    return change


def test_the_diversity_of_samples_like_the_data_is_one_and_of_equal_samples_zero(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = Poisoned(monkeypatch, job("dcgan", sample_every=8), drawing(1.0, 0.5, 0.0))
    measured = run.recorder.curve("samples/diversity")
    # The data are uniform noise, too; 12 examples estimate the deviation to about a tenth.
    assert [n for n, _ in measured] == [8, 16, 24]
    assert [value for _, value in measured] == pytest.approx([1.0, 0.5, 0.0], rel=0.1)


def test_a_collapse_is_reported_once_and_marked_in_the_metrics(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        run = Poisoned(monkeypatch, job("dcgan", sample_every=4), drawing(1.0, 1.0, 0.0))
    lines = [r.getMessage() for r in caplog.records if "diversity" in r.getMessage()]
    assert len(lines) == 1
    assert lines[0].startswith("after 12 images samples/diversity fell to 0")
    assert run.outcome.finished
    curve = dict(run.recorder.curve("guard/collapse"))
    assert [curve[n] for n in (4, 8, 12, 24)] == [0.0, 0.0, 0.0, 1.0]
    assert dict(run.recorder.curve("samples/collapsed"))[12] == 1.0


def test_a_resumed_run_remembers_that_its_samples_were_diverse(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    configured = job("dcgan", {"collapse": "stop"}, sample_every=4)
    first = Poisoned(monkeypatch, configured, drawing(1.0), stop_at=12)
    with pytest.raises(Collapsed, match="after 12 images"):  # the grid was pending
        Poisoned(monkeypatch, configured, drawing(0.0), states=[first.state])


def test_samples_that_are_alike_from_the_start_stop_a_run_after_the_grace_period(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stops: dict[str, object] = {"collapse": "stop"}
    with pytest.raises(Collapsed, match=r"after 12 images samples/diversity was never above 0\.1"):
        Poisoned(monkeypatch, job("dcgan", stops, sample_every=4), drawing(0.0))
    longer = job("dcgan", {**stops, "collapse_grace": 20}, sample_every=4)
    with pytest.raises(Collapsed, match=r"after 20 images samples/diversity was never above 0\.1"):
        Poisoned(monkeypatch, longer, drawing(0.0))
    late = job("dcgan", {**stops, "collapse_grace": 1000}, sample_every=4)
    assert Poisoned(monkeypatch, late, drawing(0.0)).outcome.finished
    slow = job("dcgan", stops, sample_every=4)
    run = Poisoned(monkeypatch, slow, drawing(0.0, 0.0, 1.0))
    assert run.outcome.finished, "diverse by the end of the grace period"
    assert {value for _, value in run.recorder.curve("samples/collapsed")} == {0.0}


def test_k_t_at_its_limit_stops_a_run_if_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    configured = job("began", {"collapse": "stop", "collapse_patience": 40}, images=400)
    model = configured.model.model_copy(update={"lambda_k": 100.0, "gamma": 1.0})

    def flat(model: GenerativeModel, stream: PositionedStream) -> None:
        """A generator whose images the autoencoder reconstructs at once: L(G(z)) stays low."""
        generator = model.get_submodule("generator")
        zero = torch.zeros(4, 3, 16, 16)

        def shared(batch: Batch) -> dict[str, torch.Tensor]:
            return {"fake": zero[: len(batch)] + 0 * generator(torch.zeros(len(batch), 8))}

        model.shared = shared  # type: ignore[method-assign]

    with pytest.raises(
        Collapsed, match=r"began/k_t at 1 or above for 40 images: k_t is at its limit"
    ):
        Poisoned(monkeypatch, configured.model_copy(update={"model": model}), flat)


def test_a_collapse_stops_a_run_if_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    configured = job("dcgan", {"collapse": "stop"}, sample_every=4)
    with pytest.raises(Collapsed, match=r"after 12 images samples/diversity fell to 0") as error:
        Poisoned(monkeypatch, configured, drawing(1.0, 1.0, 0.0))
    assert error.value.exit_code == 6
    assert Poisoned(monkeypatch, configured, drawing(1.0)).outcome.finished


def test_with_collapse_off_diversity_is_still_logged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    configured = job("dcgan", {"collapse": "off"}, sample_every=4)
    run = Poisoned(monkeypatch, configured, drawing(1.0, 0.0))
    assert run.recorder.curve("guard/collapse") == []
    assert len(run.recorder.curve("samples/diversity")) == 6


def test_a_discriminator_that_is_always_right_stops_a_run_if_configured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def blind(model: GenerativeModel, stream: PositionedStream) -> None:
        """A generator that learns nothing: its images are all white."""
        model.shared = lambda batch: {  # type: ignore[method-assign]
            "fake": 0 * model.get_submodule("generator")(
                torch.zeros(len(batch), 8, 1, 1), None
            ) + 1
        }  # fmt: skip

    configured = job("dcgan", {"collapse": "stop", "collapse_patience": 40}, images=4000)
    with pytest.raises(Collapsed, match="the discriminator is nearly always right"):
        Poisoned(monkeypatch, configured, blind)

"""The training loop with pix2pix on tiny images, and fakes for everything around it."""

import math
import shutil

import pytest
import torch

from orchestrator.config.job import Job, TrainSection
from orchestrator.errors import Diverged
from orchestrator.models.base import Batch, build_model
from orchestrator.training.ema import Ema
from orchestrator.training.evaluate import validate
from orchestrator.training.interfaces import Worker
from orchestrator.training.loop import Outcome, train
from orchestrator.training.state import TrainState
from orchestrator.training.step import TrainingStep
from support.fakes import ListRecorder, MemoryCheckpoints, MemoryStream, small_job, without_clock
from support.small import small_batch, small_config


class Run:
    """A completed run, with its metrics and checkpoints."""

    def __init__(self, job: Job, states: list[TrainState] | None = None, stop_at: int = 0) -> None:
        self.recorder, self.checkpoints = ListRecorder(), MemoryCheckpoints(states or [])
        self.steps = 0

        def should_stop() -> bool:
            self.steps += 1
            return self.steps == stop_at

        worker = Worker(
            self.recorder, self.checkpoints, torch.device("cpu"), should_stop=should_stop
        )
        self.outcome: Outcome = train(job, MemoryStream(), worker)

    @property
    def state(self) -> TrainState:
        return self.checkpoints.states[-1]


def curves(run: Run) -> list[tuple[int, dict[str, float]]]:
    """All points except those that depend on the machine."""
    return [(n, without_clock(p)) for n, p in run.recorder.points]


def assert_equal_states(a: TrainState, b: TrainState) -> None:
    assert a.images_seen == b.images_seen
    assert a.settings == b.settings
    for one, other in (
        (a.networks, b.networks),
        (a.snapshot, b.snapshot),
        (a.optimizers, b.optimizers),
    ):
        assert one.keys() == other.keys()
        assert [k for k in one if not torch.equal(one[k], other[k])] == []


def test_the_same_job_gives_the_same_result() -> None:
    job = small_job(log_every=4)
    first, again = Run(job), Run(job)
    assert curves(first) == curves(again)
    assert_equal_states(first.state, again.state)


def test_another_seed_gives_another_result() -> None:
    assert curves(Run(small_job(seed=1))) != curves(Run(small_job(seed=2)))


@pytest.mark.parametrize("options", [{}, {"ema_decay": 0.5}, {"microbatch_size": 2}])
def test_a_resumed_run_equals_the_uninterrupted_one(
    options: dict[str, object],
) -> None:
    job = small_job({"decay_from": 0.5}, log_every=4, **options)
    whole, first = Run(job), Run(job, stop_at=2)
    assert not first.outcome.finished
    rest = Run(job, [first.state])
    assert_equal_states(whole.state, rest.state)
    assert [p for p in curves(whole) if p[0] > 8] == [p for p in curves(rest) if p[0] > 8]


def test_a_run_that_is_stopped_in_its_last_step_ends_like_any_other() -> None:
    job = small_job(images=28, validate_every=12, sample_every=12)
    whole, stopped = Run(job), Run(job, stop_at=7)
    assert stopped.outcome == whole.outcome
    assert stopped.outcome.finished
    assert curves(stopped) == curves(whole)
    assert [n for n, _ in stopped.recorder.grids] == [n for n, _ in whole.recorder.grids]
    assert_equal_states(stopped.state, whole.state)


def test_intervals_are_counted_in_images_and_the_end_is_always_logged() -> None:
    run = Run(small_job(images=28, log_every=8, sample_every=12, checkpoint_every=16))
    assert [n for n, _ in run.recorder.curve("generator/loss")] == [8, 16, 24, 28]
    assert [n for n, _ in run.recorder.grids] == [12, 24, 28]
    assert [s.images_seen for s in run.checkpoints.states] == [16, 28]
    assert [n for n, _ in run.recorder.curve("validation/l1")] == [12, 24, 28]


def test_a_grid_shows_input_output_and_target_of_the_same_examples() -> None:
    run, stream = Run(small_job()), MemoryStream()
    for _, rows in run.recorder.grids:
        assert len(rows) == 8
        for index, (left, output, right) in enumerate(rows):
            assert torch.equal(left, stream.condition[index])
            assert torch.equal(right, stream.images[index])
            assert output.shape == right.shape


def test_validation_l1_is_the_mean_over_the_set() -> None:
    stream = MemoryStream()
    a, y = stream.condition[:4], stream.images[:4]
    metrics = Run(small_job()).outcome.metrics
    assert metrics["validation/l1_baseline_input"] == pytest.approx((a - y).abs().mean().item())
    assert metrics["validation/l1_baseline_white"] == pytest.approx((1 - y).abs().mean().item())


def test_clipping_limits_the_step_but_not_the_logged_norm() -> None:
    free, clipped = Run(small_job(images=4)), Run(small_job(images=4, max_grad_norm=1e-3))
    norm = "generator/grad_norm"
    assert clipped.recorder.curve(norm)[0][1] == pytest.approx(
        free.recorder.curve(norm)[0][1], 1e-4
    )
    assert free.recorder.curve(norm)[0][1] > 1
    moments = [v for k, v in clipped.state.optimizers.items() if k.endswith("exp_avg")]
    first_moment = math.sqrt(sum(m.square().sum().item() for m in moments))
    assert first_moment <= 0.5 * 1e-3 * math.sqrt(2) * 1.001  # (1 - beta1) x two clipped phases


def test_ema_follows_its_formula_and_can_be_swapped_with_the_weights() -> None:
    module = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(module.weight, 1.0)
    ema, expected = Ema(module, 0.9), 1.0
    for value in (2.0, -3.0, 5.0):
        torch.nn.init.constant_(module.weight, value)
        ema.update()
        expected = 0.9 * expected + 0.1 * value
    assert ema.average["weight"].item() == pytest.approx(expected)
    ema.swap()
    assert module.weight.item() == pytest.approx(expected)
    ema.swap()
    assert module.weight.item() == 5.0


def test_ema_of_each_tensor_is_its_formula_to_the_bit_also_of_a_buffer_that_was_replaced() -> None:
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8))
    ema = Ema(module, 0.9)
    expected = {name: value.clone() for name, value in module.state_dict().items()}
    for _ in range(5):
        module(torch.randn(4, 3, 8, 8)).square().sum().backward()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.sub_(torch.randn_like(parameter))
        module[1].running_mean = torch.randn(8)
        ema.update()
        for name, value in module.state_dict().items():
            if value.is_floating_point():
                expected[name].lerp_(value, 1 - 0.9)
            else:
                expected[name] = value.clone()
    assert expected["1.num_batches_tracked"] == 5
    assert all(torch.equal(ema.average[name], expected[name]) for name in expected)


def test_ema_changes_the_snapshot_but_not_the_training() -> None:
    plain, averaged = Run(small_job()), Run(small_job(ema_decay=0.9))
    assert [
        k for k, v in plain.state.networks.items() if not torch.equal(v, averaged.state.networks[k])
    ] == []
    assert plain.outcome.metrics != averaged.outcome.metrics
    generator = {f"generator.{k}": v for k, v in plain.state.snapshot.items()}
    assert all(torch.equal(v, plain.state.networks[k]) for k, v in generator.items())


def test_a_run_that_diverges_fails_and_explains_why() -> None:
    made = small_job(log_every=4)
    model = made.model.model_copy(update={"learning_rate": 1e30})
    with pytest.raises(Diverged) as error:
        Run(made.model_copy(update={"model": model}))
    assert "the gradient of generator is not finite" in str(error.value)
    assert "rolled back 2 of 2 times" in str(error.value)
    assert error.value.exit_code == 6


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_validation_draws_each_image_by_its_position_whatever_is_beside_it(norm: str) -> None:
    """With dropout, in batches and passes of several sizes, and in another order."""
    job = small_job({"norm": norm, "dropout": 0.5}, batch_size=4)
    model = build_model(job.model)
    inputs, targets = torch.rand(6, 3, 16, 16), torch.zeros(6, 3, 16, 16)
    batch = Batch(targets, torch.arange(6), inputs)
    order = [5, 2, 0, 3, 1, 4]
    permuted = Batch(targets, batch.positions[order], inputs[order])
    worker = Worker(ListRecorder(), MemoryCheckpoints(), torch.device("cpu"))
    expected = model.sample(batch.positions, inputs).abs().mean().item()
    for given in ([batch], batch.split(1), batch.split(5), [permuted]):
        measured = validate(model, iter(given), job, worker).means["validation/l1"]
        assert measured == pytest.approx(expected, rel=1e-6)
    one_seed = model.sample(torch.zeros(6, dtype=torch.int64), inputs).abs().mean().item()
    assert expected != pytest.approx(one_seed, rel=1e-5)


def test_a_pass_has_the_images_of_a_workers_share_or_of_a_microbatch() -> None:
    def job(workers: int, microbatch: int | None) -> Job:
        plain = small_job(batch_size=8, microbatch_size=microbatch)
        cluster = plain.cluster.model_copy(update={"workers": workers})
        return plain.model_copy(update={"cluster": cluster})

    assert [job(w, m).images_per_pass for w, m in ((1, None), (2, None), (2, 3), (4, 3))] == [
        8, 4, 3, 2,
    ]  # fmt: skip


def test_channels_last_takes_the_same_steps_and_resumes_exactly() -> None:
    plain, last = Run(small_job(log_every=4)), Run(small_job(log_every=4, channels_last=True))
    for (_, a), (_, b) in zip(curves(plain), curves(last), strict=True):
        assert b == pytest.approx(a, rel=1e-4)
    job = small_job(log_every=4, checkpoint_every=8, channels_last=True)
    whole, stopped = Run(job), Run(job, stop_at=2)
    resumed = Run(job, stopped.checkpoints.states)
    assert_equal_states(resumed.state, whole.state)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_losses_take_the_same_steps() -> None:
    """A VAE: its noise is drawn within the compiled loss."""
    runs = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = build_model(small_config("vae"))
        section = TrainSection(images=12, batch_size=4, compile=compiled)
        step = TrainingStep(model, model.phases(), section)
        steps = [step(small_batch(model.config, 4, 4 * n), n, 0.0) for n in range(3)]
        runs.append([{name: value.item() for name, value in one.items()} for one in steps])
    for plain, compiled_step in zip(*runs, strict=True):
        assert compiled_step == pytest.approx(plain, rel=1e-5)

"""Transient faults are retried, and no longer than the timeout."""

import pytest

from orchestrator.retry import retry


class Clock:
    """A clock that only sleeping moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.pauses = 100.0, list[float]()
        monkeypatch.setattr("time.monotonic", lambda: self.now)
        monkeypatch.setattr("time.sleep", self.sleep)
        monkeypatch.setattr("tenacity.nap.time.sleep", self.sleep)

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


class Flaky:
    """Fails ``failures`` times, then answers."""

    def __init__(self, failures: int, error: type[Exception] = ConnectionError) -> None:
        self.failures, self.error, self.calls = failures, error, 0

    def __call__(self) -> str:
        self.calls += 1
        if self.calls <= self.failures:
            raise self.error(f"failure {self.calls}")
        return "answer"


def run(call: Flaky, timeout_s: float = 60.0) -> tuple[str, list[str]]:
    told: list[str] = []
    answer = retry(
        call,
        is_transient=lambda error: isinstance(error, ConnectionError),
        timeout_s=timeout_s,
        first_pause_s=1.0,
        longest_pause_s=5.0,
        on_first_failure=lambda error: told.append(str(error)),
    )
    return answer, told


def test_pauses_double_up_to_the_longest_and_the_first_failure_is_reported(clock: Clock) -> None:
    answer, told = run(Flaky(5))
    assert (answer, told) == ("answer", ["failure 1"])
    assert clock.pauses == [1.0, 2.0, 4.0, 5.0, 5.0]


def test_the_last_error_is_raised_when_the_next_attempt_would_come_too_late(clock: Clock) -> None:
    call = Flaky(100)
    with pytest.raises(ConnectionError, match="failure 3"):
        run(call, timeout_s=6.0)
    assert clock.pauses == [1.0, 2.0], "a third pause of 4 s would end after 7 s"


def test_an_error_that_does_not_pass_is_raised_at_once(clock: Clock) -> None:
    with pytest.raises(ValueError, match="failure 1"):
        run(Flaky(1, ValueError))
    assert clock.pauses == []

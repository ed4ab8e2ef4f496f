"""Progress of a job: a bar on a terminal, plain lines in a log."""

import io

import pytest
from rich.console import Console

from orchestrator.console import ProgressDisplay, ProgressReport

METRICS = {
    "discriminator/loss": 0.5,
    "generator/loss": 20.25,
    "generator/grad_norm": 3.0,
    "images_per_s": 80.04,
    "validation/l1": 0.125,
}


def test_a_terminal_shows_a_bar_with_images_speed_losses_and_eta() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=150)
    with ProgressDisplay(console) as display:
        display.show(ProgressReport(500, 1000, METRICS))
    last = screen.getvalue()
    for part in ("500/1,000 images", "80.0 images/s", "ETA", "discriminator 0.5", "generator 20.2"):
        assert part in last
    assert "validation/l1 0.125" in last
    assert "grad_norm" not in last


def test_a_log_gets_few_plain_lines_and_always_the_last_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with ProgressDisplay(Console(file=io.StringIO(), force_terminal=False)) as display:
        for images in (100, 200, 300, 1000):
            display.show(ProgressReport(images, 1000, METRICS))
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[0] for line in lines] == ["100/1,000", "1,000/1,000"]
    assert all("\x1b" not in line for line in lines)
    assert "80.0 images/s" in lines[0]

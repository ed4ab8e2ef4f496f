"""Time whole commands, from the shell's view: this checkout, or this one and another in turn.

    python benchmarks/commands.py --rounds 5
    python benchmarks/commands.py --rounds 5 --other ../before     # with its own .venv

The trainings make two steps of a tiny pix2pix, so they are starts and ends. CPU seconds are those
of the whole machine, with Ray's processes; other work on it counts too. Figures are medians.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).parents[1]))

from orchestrator.data.prepare.pack import pack_folder
from support.drawings import draw_pairs

ROOT = Path(__file__).parents[1]
JOB = """\
name: start
model: {{name: pix2pix, image_size: 16, filters: 4, discriminator_filters: 4, receptive_field: 16,
  norm: instance}}
data: {{train: {folder}/data/train, validation: {folder}/data/validation, threads: 1}}
train: {{images: 8, batch_size: 4}}
tracking: {{uri: "sqlite:///{folder}/mlflow.db"}}
storage: {folder}/runs
"""
COMMANDS = {
    "help": ["--help"],
    "validate": ["validate", "JOB"],
    "plan": ["plan", "JOB"],
    "run --local": ["run", "JOB", "--local", "--no-resume"],
    "run": ["run", "JOB", "--no-resume"],
}


def cpu_seconds() -> float:
    """CPU seconds that this machine has spent since it started."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system)


def time_command(checkout: Path, command: list[str]) -> tuple[float, float]:
    """Run a command of a checkout; return its wall seconds and the machine's CPU seconds."""
    program = checkout / ".venv/bin/orchestrator"
    environ = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
    started, cpu = time.monotonic(), cpu_seconds()
    done = subprocess.run(
        [str(program), *command], cwd=checkout, env=environ, capture_output=True, check=False
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)} exited with {done.returncode}:\n{done.stderr.decode()}")
    return time.monotonic() - started, cpu_seconds() - cpu


def main() -> None:
    """Print a row per command, and the ratio of this checkout to the other."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--other", type=Path, help="another checkout, with its own .venv")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=list(COMMANDS))
    options = parser.parse_args()
    checkouts = [ROOT] if options.other is None else [options.other.absolute(), ROOT]
    more = "" if options.other is None else " other: wall s | CPU s | ratio of wall s |"
    print(f"| command | wall s | CPU s |{more}")
    print("|---|---|---|" + "---|" * (3 if more else 0))
    with tempfile.TemporaryDirectory(prefix="commands-") as temp:
        pairs = draw_pairs(Path(temp) / "pairs", count=20, size=16)
        pack_folder(pairs, f"{temp}/data", size=16, validation_share=0.2)
        job = Path(temp) / "job.yaml"
        job.write_text(JOB.format(folder=temp))
        for name in options.commands:
            command = [str(job) if word == "JOB" else word for word in COMMANDS[name]]
            rounds = [[time_command(c, command) for c in checkouts] for _ in range(options.rounds)]
            cells, ratio = [], statistics.median(times[-1][0] / times[0][0] for times in rounds)
            for index in reversed(range(len(checkouts))):
                for kind in (0, 1):
                    middle = statistics.median(times[index][kind] for times in rounds)
                    cells.append(f"{middle:.2f}")
            if len(checkouts) == 2:
                cells.append(f"{ratio:.2f}")
            print("| " + " | ".join([name, *cells]) + " |", flush=True)


if __name__ == "__main__":
    main()

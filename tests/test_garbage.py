"""When Python's garbage collector runs, in processes of their own."""

import subprocess
import sys

CYCLE = """
class Cycle:
    def __init__(self): self.own = self
    def __del__(self): print("collected", flush=True)
"""


def output_of(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout


def test_python_looks_for_cycles_when_a_process_exits() -> None:
    assert output_of(f"{CYCLE}\nCycle()") == "collected\n"


def test_a_command_exits_without_looking_for_cycles() -> None:
    command = "from orchestrator.cli.failures import run_command\nrun_command(Cycle)"
    assert output_of(f"{CYCLE}\n{command}") == ""


def test_a_process_that_imports_collects_after_50_000_objects_and_a_training_after_700() -> None:
    made = "print(next(n for n in range(10**6) if kept.append([]) or gc.get_count()[0] < n // 2))"
    start = "import gc\nfrom orchestrator.garbage import collect_as_usual, collect_rarely\n"
    for last, low, high in (("", 49_000, 51_000), ("collect_as_usual()\n", 600, 800)):
        code = f"{start}collect_rarely()\n{last}gc.collect()\nkept = []\n{made}"
        assert low < int(output_of(code)) < high


def test_a_training_leaves_out_what_was_there_but_finds_new_cycles() -> None:
    code = f"""{CYCLE}
import gc
from orchestrator.garbage import collect_as_usual, leave_to_the_system
old = Cycle()
collect_as_usual()
del old
new = Cycle()
del new
gc.collect()
leave_to_the_system()
"""
    assert output_of(code) == "collected\n"

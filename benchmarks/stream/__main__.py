"""Compare streaming from a real S3 server with four other tools.

    python -m benchmarks.stream --json stream.json
    python -m benchmarks.stream --kinds photos --tools orchestrator webdataset --photos 512

Needs Linux, the dev extra (SeaweedFS) and uv, which installs each tool in its own environment under
``--envs``. Each tool packs the same encoded images in its own format, into the same number of
shards, and reads one shuffled epoch into float32 batches of 32 with two decoding threads or
processes. All decode with OpenCV. Every measurement is a fresh process without cached data; timing
starts with the construction of the data set, after all imports (and the start of Ray).

Rounds go through the tools in turn. An extra round measures peak memory, the proportional set size
of the process tree, because sampling it takes time. Some pixels of every sample are checked, so
that each is known to arrive once. The server runs on the same cores and is not included in CPU
time.

``decoding`` reads the same files from memory with two decoding threads, which is the upper bound.
``streaming-mended`` gives each process its own S3 client; streaming does not.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.stream import report
from benchmarks.stream.environments import TOOLS, Tool, python_of
from benchmarks.stream.kinds import KINDS, VERSION, Kind
from benchmarks.stream.pixels import BATCH, WORKERS
from benchmarks.stream.processes import TimeLimit, run
from services.s3 import BUCKET, s3_server

REPOSITORY = Path(__file__).resolve().parents[2]
PACKING_LIMIT_S = 1800


class Runner:
    """Runs benchmarks.stream.child in a tool's environment."""

    def __init__(self, options: argparse.Namespace, server: dict[str, str]) -> None:
        self._options, self._server = options, server
        self._pythons = {name: python_of(TOOLS[name], options.envs) for name in options.tools}

    def child(
        self, do: str, kind: Kind, tool: Tool | None, seed: int = 0, sample: bool = False
    ) -> dict[str, Any]:
        """Run the child process; return its result or its error."""
        options = self._options
        count = getattr(options, kind.name)
        folder = tempfile.TemporaryDirectory(prefix="stream-", ignore_cleanup_errors=True)
        with folder as scratch:
            arguments = {
                "kind": kind.name,
                "count": count,
                "shards": options.shards,
                "seed": seed,
                "source": options.envs / "images" / f"{kind.name}-{count}-{VERSION}.tar",
                "scratch": scratch,
            }
            if tool is not None:
                arguments |= {
                    "tool": tool.module,
                    "uri": f"s3://{BUCKET}/{kind.name}/{tool.module}",
                }
            python = sys.executable if tool is None else self._pythons[tool.name]
            command = [python, "-m", "benchmarks.stream.child", do]
            for name, value in arguments.items():
                command += [f"--{name}", str(value)]
            limit_s = options.limit if do == "read" else PACKING_LIMIT_S
            environment = {
                **os.environ,
                **self._server,
                **self._extra(tool),
                "PYTHONPATH": str(REPOSITORY),
                "TMPDIR": scratch,
            }
            try:
                code, output, errors, peak = run(command, environment, limit_s, sample)
            except TimeLimit as error:
                return {"error": str(error)}
        lines = output.strip().splitlines()
        if code != 0 or not lines:
            print(errors[-3000:], file=sys.stderr)
            messages = [line for line in errors.splitlines() if "Error" in line] or [""]
            return {"error": f"exit code {code}: {messages[-1][:200]}"}
        return {**json.loads(lines[-1]), "peak_pss_mib": peak / 2**20}

    def _extra(self, tool: Tool | None) -> dict[str, str]:
        endpoint = self._server["AWS_ENDPOINT_URL_S3"]
        given = tool.environment if tool is not None else {}
        return {name: value.format(endpoint=endpoint) for name, value in given.items()}


def measure(kind: Kind, runner: Runner, options: argparse.Namespace) -> dict[str, list[Any]]:
    """Pack with each tool, then read in rounds; return results by tool."""
    results: dict[str, list[Any]] = {name: [] for name in options.tools}
    broken: dict[str, dict[str, Any]] = {}
    for name in options.tools:
        if TOOLS[name].packs:
            packed = runner.child("pack", kind, TOOLS[name])
            print(f"{time.strftime('%H:%M:%S')} {kind.name} {name}: packed", file=sys.stderr)
            if "error" in packed:
                broken[name] = packed
    for number in range(options.rounds + 1):
        for name in options.tools:
            sampled = number == options.rounds
            result = broken.get(name) or runner.child(
                "read", kind, TOOLS[name], seed=number, sample=sampled
            )
            line = f"{time.strftime('%H:%M:%S')} {kind.name} {name} {number}: {json.dumps(result)}"
            print(line, file=sys.stderr, flush=True)
            results[name].append({**result, "sampled": sampled})
    return results


def machine() -> str:
    """Describe the machine, the versions and the commit."""
    model = next(
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    )
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    torch, opencv = version("torch"), version("opencv-python-headless")
    load = os.getloadavg()[0]
    return (
        f"{model}, {os.cpu_count()} cores, load {load:.1f} at the start, "
        f"torch {torch}, OpenCV {opencv}, commit {commit}"
    )


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    cache = Path("~/.cache/orchestrator/bench-envs").expanduser()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=list(TOOLS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shards", type=int, default=8, help="shards per set")
    parser.add_argument(
        "--limit", type=float, default=120, help="timeout of a measurement in seconds"
    )
    parser.add_argument(
        "--envs", type=Path, default=cache, help="folder for environments and images"
    )
    parser.add_argument("--json", type=Path, help="file for all results")
    for kind in KINDS.values():
        parser.add_argument(
            f"--{kind.name}", type=int, default=kind.count, help="number of samples"
        )
    options = parser.parse_args()
    whole = BATCH * WORKERS * options.shards
    for name in KINDS:
        if getattr(options, name) % whole:
            parser.error(f"--{name}: use a multiple of {whole}, so that all shards are equal")
    return options


def main() -> None:
    """Measure and print; see the module docstring."""
    options = parse_arguments()
    (options.envs / "images").mkdir(parents=True, exist_ok=True)
    everything: dict[str, Any] = {
        "machine": machine(),
        "requirements": {name: TOOLS[name].requirements for name in options.tools},
        "results": {},
    }
    with (
        tempfile.TemporaryDirectory(prefix="s3-", ignore_cleanup_errors=True) as folder,
        s3_server(Path(folder) / "server") as server,
    ):
        runner = Runner(options, server.environment)
        print(f"{everything['machine']}; {options.rounds} rounds, medians (lowest to highest)\n")
        for name in options.kinds:
            kind, count = KINDS[name], getattr(options, name)
            made = options.envs / "images" / f"{name}-{count}-{VERSION}.json"
            if not made.exists():
                problem = runner.child("make", kind, None).get("error")
                if problem:
                    raise SystemExit(f"making {name}: {problem}")
            results = measure(kind, runner, options)
            print(report.table(kind, count, results), flush=True)
            everything["results"][name] = results
            if options.json:
                options.json.write_text(json.dumps(everything, indent=2))


if __name__ == "__main__":
    main()

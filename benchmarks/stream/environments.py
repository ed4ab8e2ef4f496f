"""The compared tools and their virtual environments."""

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path


@dataclass(frozen=True)
class Tool:
    """One way to stream images."""

    name: str
    module: str
    """Module in benchmarks.stream.tools."""
    requirements: tuple[str, ...] = ()
    """Packages of its own environment; none: this environment."""
    environment: dict[str, str] = field(default_factory=dict)
    """Environment variables; {endpoint} is the address of the S3 server."""
    packs: bool = True


STREAMING = ("mosaicml-streaming==0.13.0",)
TOOLS = {
    tool.name: tool
    for tool in (
        Tool("decoding", "ceiling", packs=False),
        Tool("orchestrator", "ours"),
        Tool("webdataset", "with_webdataset", ("webdataset==1.0.2",)),
        Tool("streaming", "with_streaming", STREAMING, {"S3_ENDPOINT_URL": "{endpoint}"}),
        Tool(
            "streaming-mended",
            "with_streaming_mended",
            STREAMING,
            {"S3_ENDPOINT_URL": "{endpoint}"},
        ),
        Tool("litdata", "with_litdata", ("litdata==0.2.76",)),
        Tool(
            "ray",
            "with_ray",
            ("ray[data]==2.60.0",),
            # The new Parquet reader leaves one of two CPUs idle on sets of this size.
            {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DATA_USE_DATASOURCE_V2": "0"},
        ),
    )
}


def python_of(tool: Tool, envs: Path) -> str:
    """Return the interpreter of the tool's environment; create it if missing or outdated."""
    if not tool.requirements:
        return sys.executable
    # The same tensors, decoder and S3 client for all; pillow for benchmarks.stream.kinds.
    shared = ("torch", "opencv-python-headless", "boto3", "pillow")
    common = [f"{name}=={version(name)}" for name in shared]
    wanted = "\n".join([*tool.requirements, *common])
    folder = envs / re.sub(r"\W+", "-", tool.requirements[0])
    python, note = folder / "bin" / "python", folder / "requirements.txt"
    if python.exists() and note.exists() and note.read_text() == wanted:
        return str(python)
    beside = Path(sys.executable).with_name("uv")
    uv = str(beside) if beside.exists() else shutil.which("uv")
    if uv is None:
        raise SystemExit("uv is missing: python -m pip install uv")
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([uv, "venv", "-q", "--python", sys.executable, str(folder)], check=True)
    install = [uv, "pip", "install", "-q", "--python", str(python), *wanted.splitlines()]
    subprocess.run(install, check=True)
    note.write_text(wanted)
    return str(python)

"""The files of onnxruntime-web, which runs ONNX in browsers: fetched once with npm, and kept."""

import importlib.util
import shutil
import tarfile
from pathlib import Path

from orchestrator.errors import EnvironmentProblem
from orchestrator.package_download import Download

VERSION = "1.30.0"
PACKAGE = Download(
    f"onnxruntime-web-{VERSION}.tgz",
    "d2228df7e4616bc3348bf504ee888f3bec43789a273f0a63f3e68d203ce3bf71",
    ("npm", "pack", "--ignore-scripts", "--silent", f"onnxruntime-web@{VERSION}"),
    advice="--format browser needs npm (of Node.js) and a network once",
)
FILES = {
    # Servers that do not know the ending .mjs send a type that browsers refuse for modules.
    "ort.wasm.bundle.min.mjs": "ort.js",
    "ort-wasm-simd-threaded.wasm": "ort-wasm-simd-threaded.wasm",
}
"""Files of the package's dist/, and their names in an export."""
LICENCES = ("LICENSE", "ThirdPartyNotices.txt")
"""In the Python package of the same project; the npm package has none."""


def fetch_runtime() -> Path:
    """Return the package in the cache folder. Raises EnvironmentProblem if it cannot be fetched."""
    return PACKAGE.get()


def write_runtime(package: Path, folder: Path) -> None:
    """Write the files that a page needs, and their licences, to a new folder."""
    folder.mkdir()
    with tarfile.open(package) as tar:
        for name, written in FILES.items():
            file = tar.extractfile(f"package/dist/{name}")
            assert file is not None, "the package's sha256 is pinned"
            with (folder / written).open("wb") as target:
                shutil.copyfileobj(file, target)
    for name in LICENCES:
        shutil.copyfile(_python_package() / name, folder / name)


def _python_package() -> Path:
    """Return the folder of onnxruntime, which runs the model before it is kept."""
    found = importlib.util.find_spec("onnxruntime")
    if found is None or found.origin is None:
        raise EnvironmentProblem("the package onnxruntime has no files here; install it with pip")
    return Path(found.origin).parent

"""Packing and drawing as tasks of a real Ray cluster: the same bytes and errors as here."""

import hashlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from orchestrator.data.prepare.find_source import find_source
from orchestrator.data.prepare.import_scan import scan_rows
from orchestrator.data.prepare.pack import pack_folder, pack_scanned
from orchestrator.models.base import build_model
from orchestrator.registry.bundle import write_bundle
from orchestrator.sampling.image_outputs import write_set
from orchestrator.sampling.sampling_call import SamplingCall
from services.ray_cluster import RayCluster, ray_cluster
from support.small import small_config

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    with ray_cluster(tmp_path_factory.mktemp("ray"), {"PYTHONPATH": str(ROOT)}) as cluster:
        yield cluster


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for n in range(100):
        pixels = numpy.random.default_rng(n).integers(0, 256, (24, 24, 3), numpy.uint8)
        Image.fromarray(pixels).save(folder / f"{n:03d}.png")
    return folder


def files(folder: Path) -> dict[str, str]:
    found = [path for path in folder.rglob("*") if path.is_file()]
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in found}


def test_a_cluster_packs_the_bytes_that_one_process_packs(
    cluster: RayCluster, photos: Path, tmp_path: Path
) -> None:
    pack_folder(photos, str(tmp_path / "here"), size=20, shard_bytes=30_000, workers=1)
    command = ["orchestrator", "data", "pack", str(photos), str(tmp_path / "there")]
    command += ["--size", "20", "--shard-bytes", "30000"]
    done = cluster.call("ray", "job", "submit", "--", *command, cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert "packing: 100 of 100" in done.stdout
    assert files(tmp_path / "there") == files(tmp_path / "here")


def test_a_cluster_imports_the_bytes_that_one_process_imports(
    cluster: RayCluster, photos: Path, tmp_path: Path
) -> None:
    rows = [path.read_bytes() for path in sorted(photos.iterdir())]
    parquet.write_table(pyarrow.table({"image": rows}), tmp_path / "x.parquet")
    scan = scan_rows(find_source(str(tmp_path / "x.parquet")), size=20, workers=1)
    pack_scanned(scan, str(tmp_path / "here"), workers=1)
    source, dest = str(tmp_path / "x.parquet"), str(tmp_path / "there")
    command = ["orchestrator", "data", "import", source, dest, "--size", "20"]
    done = cluster.call("ray", "job", "submit", "--", *command, cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert "packing: 100 of 100" in done.stdout
    assert files(tmp_path / "there") == files(tmp_path / "here")


def test_a_cluster_draws_the_bytes_that_one_process_draws(
    cluster: RayCluster, tmp_path: Path
) -> None:
    config = small_config("gated_pixelcnn")
    weights = build_model(config).inference_module().state_dict()
    write_bundle(tmp_path / "model", config, weights, {})
    call = SamplingCall(tmp_path / "model", 3, "cpu", 64 << 20)
    write_set(call.of_samples(None, (), "0:100,2:200", None), str(tmp_path / "here"))
    command = ["orchestrator", "sample", str(tmp_path / "model"), "--labels", "0:100,2:200"]
    command += ["--output", str(tmp_path / "there"), "--seed", "3", "--pack", "--cluster"]
    done = cluster.call("ray", "job", "submit", "--", *command, cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert "drawing: 300 of 300" in done.stdout
    assert files(tmp_path / "there") == files(tmp_path / "here")


def test_an_error_in_a_task_is_reported_as_one_in_this_process(
    cluster: RayCluster, photos: Path, tmp_path: Path
) -> None:
    (photos / "077.png").write_bytes(b"no image")
    command = ["orchestrator", "data", "pack", str(photos), str(tmp_path / "out")]
    done = cluster.call("ray", "job", "submit", "--", *command, cwd=tmp_path)
    assert done.returncode != 0
    assert f"error: {photos}/077.png cannot be decoded as an image" in done.stdout
    assert "Traceback" not in done.stdout


def test_a_node_that_cannot_open_the_images_is_named(cluster: RayCluster, tmp_path: Path) -> None:
    """Every process has its own /proc/self, so that no task can open the driver's file there."""
    script = tmp_path / "blind.py"
    script.write_text(
        "import os, pathlib\n"
        "from orchestrator.cluster.ray_map import map_on_ray\n"
        "from orchestrator.errors import DataError\n"
        "needs = pathlib.Path(f'/proc/self/task/{os.getpid()}/comm')\n"
        "assert needs.is_file()\n"
        "try:\n"
        "    print(list(map_on_ray(abs, [1], None, needs=needs)))\n"
        "except DataError as error:\n"
        "    print('raised:', error)\n"
    )
    done = cluster.call("ray", "job", "submit", "--", sys.executable, str(script), cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert re.search(r"raised: /proc/self/task/\d+/comm is not visible on [\d.]+; ", done.stdout)
    assert "put the images where every node of the cluster mounts them" in done.stdout

"""`orchestrator models export --format browser`: a folder that draws in Chromium, alone."""

import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from playwright.sync_api import Browser

from orchestrator.cli import app
from orchestrator.export import onnxruntime_web
from orchestrator.export.browser_folder import model_facts
from orchestrator.models.base import build_model
from orchestrator.page.page_files import page_files
from orchestrator.registry.bundle import Source, load_bundle, write_bundle, write_source
from services.ports import free_port
from support.fetched import download_or_skip
from support.page_in_chromium import PageInChromium, decode, encode
from support.small import scattered_model, small_config

CARD = "# cats\n\nDraws cats.\n"


def pulled(
    folder: Path, name: str, notes: Mapping[str, Any] = MappingProxyType({}), **options: object
) -> Path:
    """A pulled model whose images depend on its inputs."""
    model = scattered_model(name, **options)
    write_bundle(folder, model.config, model.inference_module().state_dict(), notes, CARD)
    write_source(folder, Source("cats", 3))
    return folder


def run(arguments: list[Any], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr("sys.argv", ["orchestrator", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        app.main()
    return int(end.value.code or 0)


def export(model: Path, dest: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    return run(["models", "export", model, dest, "--format", "browser"], monkeypatch)


@contextmanager
def file_server(folder: Path) -> Iterator[str]:
    """Python's own server of files."""
    port = free_port()
    command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"]
    process = subprocess.Popen(
        [*command, "--directory", str(folder)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    address = f"http://127.0.0.1:{port}/"
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                urllib.request.urlopen(address).close()
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        yield address
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(scope="module", autouse=True)
def _package() -> None:
    download_or_skip(onnxruntime_web.PACKAGE)


def sampled(
    model: Path, inputs: NDArray[np.uint8], seed: int, tmp_path: Path, patch: pytest.MonkeyPatch
) -> NDArray[np.int_]:
    """What `orchestrator sample` draws."""
    (tmp_path / "inputs").mkdir()
    (tmp_path / "inputs" / "x.png").write_bytes(encode(inputs))
    where = ["--input", tmp_path / "inputs", "--output", tmp_path / "drawn", "--seed", seed]
    assert run(["sample", model, *where], patch) == 0
    return decode((tmp_path / "drawn" / "x.png").read_bytes()).astype(int)


def _check_files(folder: Path) -> None:
    """Whether an export has all that the page needs, and the licences of what it has."""
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    pages = {f"page/{path.name}" for path in page_files()}
    runtime = ("LICENSE", "ThirdPartyNotices.txt", "ort.js", "ort-wasm-simd-threaded.wasm")
    expected = {"index.html", "model.json", "model.onnx", *pages}
    assert names == {*expected, *(f"onnxruntime/{name}" for name in runtime)}
    assert "MIT License" in (folder / "onnxruntime/LICENSE").read_text()


@pytest.mark.slow
@pytest.mark.server
def test_a_drawing_in_the_browser_is_what_sample_draws_of_it(
    chromium: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = pulled(tmp_path / "model", "pix2pix")
    (tmp_path / "site").mkdir()
    assert export(model, tmp_path / "site", monkeypatch) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"model", "site"}
    _check_files(tmp_path / "site")
    with file_server(tmp_path / "site") as address:
        page = PageInChromium(chromium.new_context(), address)
        page.wait_until_ready()
        page.page.locator("#seed").fill("12345678901")
        page.press("Cat")
        page.wait_for("() => document.getElementById('result-note').textContent")
        page.page.locator("#colour").fill("#d02090")
        page.drag((0.1, 0.9), (0.9, 0.9))
        page.page.wait_for_timeout(1000)
        drawing, result = page.download("Download drawing"), page.download("Download result")
        assert page.page.locator("#card-text").inner_text() == "cats\n\nDraws cats."
        assert page.page.locator("h1").inner_text() == "cats version 3"
        page.close()
    expected = sampled(model, drawing, 12345678901, tmp_path, monkeypatch)
    assert np.abs(result.astype(int) - expected).max() <= 1
    assert result.std() > 5
    assert drawing.std() > 5


@pytest.mark.slow
@pytest.mark.server
def test_a_gallery_in_the_browser_shows_the_classes_and_seeds_of_the_model(
    chromium: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    model = pulled(tmp_path / "model", "dcgan", channels=1, classes=3)
    assert export(model, tmp_path / "site", monkeypatch) == 0
    with file_server(tmp_path / "site") as address:
        page = PageInChromium(chromium.new_context(), address)
        page.wait_until_ready()
        page.page.locator("#images").get_by_text("Seed 11, class 2").wait_for()
        page.page.wait_for_selector("#images:not([aria-busy])")
        drawn = [
            page.pixels(f"#images button:nth-child({place + 1}) canvas")[..., :3]
            for place in range(12)
        ]
        for id_ in ("latents", "between", "rows", "likelihood"):
            assert page.page.locator(f"#{id_}").is_hidden()
        page.close()
    images = load_bundle(model).sample(torch.arange(12), torch.arange(12) % 3)
    levels = ((images + 1) * 127.5).round().clamp(0, 255).permute(0, 2, 3, 1).int().numpy()
    assert np.abs(np.stack(drawn).astype(int) - levels).max() <= 1


@pytest.mark.slow
@pytest.mark.server
def test_a_caption_in_the_browser_is_that_of_the_model(
    chromium: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from orchestrator.models.parts.text import caption_bytes

    model = pulled(tmp_path / "model", "text2image")
    assert export(model, tmp_path / "site", monkeypatch) == 0
    with file_server(tmp_path / "site") as address:
        page = PageInChromium(chromium.new_context(), address)
        page.wait_until_ready()
        page.page.get_by_label("Caption").fill("Vögel, 小鳥")
        page.page.locator("#images").get_by_text("Seed 11", exact=True).wait_for()
        page.page.wait_for_selector("#images:not([aria-busy])")
        drawn = page.pixels("#images button:nth-child(5) canvas")[..., :3]
        page.close()
    image = load_bundle(model).sample(torch.tensor([4]), caption_bytes("Vögel, 小鳥")[None])[0]
    levels = ((image + 1) * 127.5).round().clamp(0, 255).permute(1, 2, 0).int().numpy()
    assert np.abs(drawn.astype(int) - levels).max() <= 1


def test_the_page_is_told_what_the_service_tells_it(tmp_path: Path) -> None:
    model = pulled(tmp_path / "model", "inpainting")
    facts = dict(model_facts(load_bundle(model), model))
    top, left, height, width = facts.pop("hole")
    assert top == left > 0
    assert top + height == left + width == 32 - top
    assert facts == {
        "name": "cats",
        "version": 3,
        "model": "inpainting",
        "translates": True,
        "image_size": 32,
        "channels": 3,
        "classes": 0,
        "captions": False,
        "latent_size": 0,
        "rows": False,
        "likelihood": "",
        "hole_colour": "",
        "card": CARD,
        "token_required": False,
        "limits": {"bytes": None, "pixels": None, "images": 64},
    }


def test_what_cannot_be_a_page_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    model = pulled(tmp_path / "model", "pixelcnn")
    assert export(model, tmp_path / "full", monkeypatch) == 2
    assert "full exists already: give a new or an empty folder" in capsys.readouterr().err
    assert export(model, tmp_path / "site", monkeypatch) == 2
    assert "pixelcnn is exported as safetensors alone" in capsys.readouterr().err
    assert not (tmp_path / "site").exists()


@pytest.mark.parametrize("has_npm", [True, False])
def test_npm_that_is_missing_or_has_no_network_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    has_npm: bool,
) -> None:
    model = pulled(tmp_path / "model", "vae")
    programs = tmp_path / "bin"
    programs.mkdir()
    if has_npm:
        (programs / "npm").write_text("#!/bin/sh\necho 'npm error code ENOTFOUND' >&2\nexit 1\n")
        (programs / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}/bin" if has_npm else str(programs))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert export(model, tmp_path / "site", monkeypatch) == 3
    (line,) = capsys.readouterr().err.splitlines()
    reason = "failed (npm error code ENOTFOUND)" if has_npm else "npm is not installed"
    assert reason in line
    assert line.endswith(
        "--format browser needs npm (of Node.js) and a network once; or put "
        f"onnxruntime-web-1.30.0.tgz at {tmp_path}/cache/orchestrator/onnxruntime-web-1.30.0.tgz"
    )
    assert not (tmp_path / "site").exists()


def test_the_page_is_told_the_colour_of_holes_that_are_painted(tmp_path: Path) -> None:
    model = pulled(tmp_path / "model", "pix2pix", {"derived_input": "holes"})
    assert model_facts(load_bundle(model), model)["hole_colour"] == "#ff00ff"


def test_models_without_a_hole_have_none(tmp_path: Path) -> None:
    model = pulled(tmp_path / "model", "vae")
    assert model_facts(load_bundle(model), model)["hole"] is None
    assert model_facts(build_model(small_config("vae")), model)["version"] == 3

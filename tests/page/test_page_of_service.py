"""The page of a real service, token and all: it shows what the model draws."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from playwright.sync_api import Browser

from orchestrator.models.base import GenerativeModel
from orchestrator.serving.access import AccessOptions
from orchestrator.serving.request_batcher import Columns
from orchestrator.serving.service_metrics import ServiceMetrics
from orchestrator.serving.version_slot import VersionSlot
from support.page_in_chromium import PageInChromium
from support.served import running, service_of, slot_of, write_model
from support.small import scattered_model

pytestmark = [pytest.mark.server, pytest.mark.slow]
TOKEN = "a-token-that-the-page-asks-for"


@contextmanager
def page_of(
    chromium: Browser, folder: Path, model: GenerativeModel, token: str | None = None
) -> Iterator[tuple[PageInChromium, VersionSlot]]:
    write_model(folder, model)
    slot = slot_of(folder, ServiceMetrics())
    service = service_of(slot)
    access = AccessOptions(token, ("127.0.0.1",))
    with ExitStack() as stack:
        client = stack.enter_context(running(service, access))
        context = chromium.new_context()
        stack.callback(context.close)
        page = PageInChromium(context, f"http://127.0.0.1:{client.port}/")
        stack.callback(page.close)
        yield page, slot


def levels_of(images: torch.Tensor) -> np.ndarray:
    return ((images.double() + 1) * 127.5).clamp(0, 255).numpy()


def test_a_drawing_is_translated_as_the_model_does_after_the_token(
    chromium: Browser, tmp_path: Path
) -> None:
    model = scattered_model("pix2pix").eval()
    drawn_from: list[Columns] = []
    with page_of(chromium, tmp_path / "model", model, TOKEN) as (page, slot):
        engine = slot.current.engine
        draw = engine.draw

        def note(*inputs: Any) -> Any:
            drawn_from.append(inputs)
            return draw(*inputs)

        engine.draw = note  # type: ignore[method-assign]
        page.page.get_by_role("dialog").wait_for()
        page.page.get_by_role("textbox", name="Token").fill(TOKEN)
        page.page.keyboard.press("Enter")
        page.wait_until_ready()
        page.page.locator("#brush").fill("30")
        page.page.locator("#seed").fill("11")
        page.drag((0.2, 0.3), (0.8, 0.7))
        page.wait_for("() => document.getElementById('invitation').hidden")
        page.page.wait_for_timeout(500)  # the last picture may be on its way
        shown = page.download("Download result")
    seeds, levels = drawn_from[-1]
    assert seeds.tolist() == [11]
    assert levels.min() < 100, "something was drawn"
    expected = model.sample(torch.from_numpy(seeds), torch.from_numpy(levels).float() / 127.5 - 1)
    assert np.abs(shown.transpose(2, 0, 1) - levels_of(expected)[0]).max() < 0.51


def test_a_gallery_shows_the_images_of_its_seeds(chromium: Browser, tmp_path: Path) -> None:
    model = scattered_model("dcgan").eval()
    with page_of(chromium, tmp_path / "model", model) as (page, _):
        page.wait_until_ready()
        page.page.locator("#images").get_by_text("Seed 11", exact=True).wait_for()
        for seed in (0, 7, 11):
            shown = page.pixels(f"#images button:nth-child({seed + 1}) canvas")[..., :3]
            expected = levels_of(model.sample(torch.tensor([seed])))[0]
            assert np.abs(shown.transpose(2, 0, 1) - expected).max() < 0.51


def test_an_autoregressive_model_paints_its_image(chromium: Browser, tmp_path: Path) -> None:
    model = scattered_model("pixelcnn").eval()
    with page_of(chromium, tmp_path / "model", model) as (page, _):
        page.wait_until_ready()
        page.page.locator("#rows-seed").fill("3")
        page.press("Paint")
        page.page.get_by_text("row 8 of 8").wait_for()
        painted = page.pixels("#rows-canvas")[..., :3].transpose(2, 0, 1)
    expected = levels_of(model.sample(torch.tensor([3])))[0]
    assert np.abs(painted - expected).max() < 0.51

"""The page for everybody: axe-core, keyboard, dark, phones."""

import tarfile
from pathlib import Path
from typing import Any

import pytest

from orchestrator.package_download import Download
from page.conftest import OpenPage
from support.fetched import download_or_skip

AXE = Download(
    "axe-core-4.14.1.tgz",
    "e6b0ce02b84d892e2e33e403485e7f3d6c29e2be6df65daf44d89ba564139745",
    ("npm", "pack", "--ignore-scripts", "--silent", "axe-core@4.14.1"),
    advice="npm (of Node.js) and a network are needed once",
)
KINDS: dict[str, dict[str, Any]] = {
    "translator": {},
    "inpainting": {"hole": [8, 8, 16, 16]},
    "classes": {"translates": False, "classes": 5, "latent_size": 4, "likelihood": "nll_nats"},
    "captions": {"translates": False, "captions": True},
    "rows": {"translates": False, "rows": True, "channels": 1},
}


@pytest.fixture(scope="module")
def axe() -> str:
    with tarfile.open(download_or_skip(AXE)) as tar:
        file = tar.extractfile("package/axe.min.js")
        assert file is not None
        return file.read().decode()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(open_page: OpenPage, axe: str, kind: str, scheme: Any) -> None:
    page, _ = open_page(context={"color_scheme": scheme}, **KINDS[kind])
    if kind == "classes":
        page.page.locator("#images button").nth(0).click()
        page.page.locator("#images button").nth(1).click()
        page.press("Interpolate")
        page.page.locator("#strip canvas").first.wait_for()
    page.page.evaluate(axe)
    found = page.page.evaluate("async () => (await axe.run()).violations")
    assert [(each["id"], each["impact"], each["nodes"][0]["html"]) for each in found] == []


def test_axe_would_find_a_control_without_a_name(open_page: OpenPage, axe: str) -> None:
    page, _ = open_page()
    page.page.evaluate("document.querySelector('main').append(document.createElement('input'))")
    page.page.evaluate(axe)
    found = page.page.evaluate("async () => (await axe.run()).violations")
    assert [each["id"] for each in found if each["impact"] in ("serious", "critical")] == ["label"]


def test_the_question_for_the_token_passes_axe(open_page: OpenPage, axe: str) -> None:
    page, _ = open_page(wait=False, token="x")
    page.page.get_by_role("dialog").wait_for()
    page.page.evaluate(axe)
    assert page.page.evaluate("async () => (await axe.run()).violations") == []


@pytest.mark.parametrize("kind", KINDS)
def test_every_control_is_reached_by_tab_and_shows_its_focus(
    open_page: OpenPage, kind: str
) -> None:
    page, _ = open_page(**KINDS[kind])
    page.page.wait_for_timeout(300)
    script = """() => {
      const visible = (e) => e.checkVisibility() && !e.disabled;
      return [...document.querySelectorAll("button, input, select, summary, a, [tabindex]")]
        .filter(visible).filter((e) => e.type !== "radio" || e.checked).length;
    }"""
    expected, seen = page.page.evaluate(script), set()
    # The outline of the control, or of what is drawn in its place.
    look = """() => {
      const e = document.activeElement;
      if (e === document.body) return null;
      const all = [e, e.closest(".button"), e.closest(".frame"), e.nextElementSibling];
      const shows = all.some((o) => o && getComputedStyle(o).outlineStyle === "solid");
      window.order ??= new Map();
      if (!window.order.has(e)) window.order.set(e, window.order.size);
      return [window.order.get(e), shows, e.outerHTML.slice(0, 80)];
    }"""
    for _ in range(expected + 2):
        page.page.keyboard.press("Tab")
        found = page.page.evaluate(look)
        if found is not None:
            assert found[1], found[2]
            seen.add(found[0])
    assert len(seen) == expected


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_a_phone(open_page: OpenPage, tmp_path: Path, kind: str, scheme: Any) -> None:
    """The screenshots are to be looked at."""
    context = {"viewport": {"width": 360, "height": 740}, "color_scheme": scheme, "has_touch": True}
    page, _ = open_page(context=context, **KINDS[kind])
    page.page.wait_for_timeout(300)
    page.page.screenshot(path=tmp_path / f"{kind}-{scheme}.png", full_page=True)
    assert page.page.evaluate("document.documentElement.scrollWidth") == 360
    small = """() => [...document.querySelectorAll("button, select, input[type=number]")]
      .filter((e) => e.checkVisibility() && e.getBoundingClientRect().height < 40).length"""
    assert page.page.evaluate(small) == 0


def test_dark_is_dark(open_page: OpenPage) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    levels = []
    for scheme in ("light", "dark"):
        page, _ = open_page(context={"color_scheme": scheme})
        red = page.page.evaluate(ground).partition("(")[2].partition(",")[0]
        levels.append(int(red))
    assert levels[0] > 200
    assert levels[1] < 50

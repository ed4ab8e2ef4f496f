"""The page in Chromium, with what it must never do: ask other hosts, break its policy, fail."""

import base64
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

CHROMIUM = Path("/usr/bin/chromium")
HOW = "install Debian's package chromium"
VIOLATIONS = """
window.violations = [];
document.addEventListener("securitypolicyviolation",
  (event) => window.violations.push(`${event.violatedDirective} ${event.blockedURI}`));
"""
WAIT_MS = 20_000


@contextmanager
def start_chromium() -> Iterator[Browser]:
    """Run Chromium without a window within a with block; skip the test where it is missing."""
    if not CHROMIUM.is_file():
        pytest.skip(f"{CHROMIUM} is missing: {HOW}")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class PageInChromium:
    """One open page."""

    def __init__(self, context: BrowserContext, address: str) -> None:
        self.address, self.asked, self.failures = address, set[str](), list[str]()
        self.page: Page = context.new_page()
        self.page.set_default_timeout(WAIT_MS)
        self.page.add_init_script(VIOLATIONS)
        self.page.on("request", lambda request: self.asked.add(urlsplit(request.url).netloc))
        self.page.on("pageerror", lambda error: self.failures.append(str(error)))
        self.page.goto(address)

    def wait_until_ready(self) -> None:
        self.page.wait_for_selector("html[data-ready]")

    def wait_for(self, expression: str, argument: Any = None) -> None:
        self.page.wait_for_function(expression, arg=argument)

    def pixels(self, selector: str) -> NDArray[np.uint8]:
        """Return what a canvas shows, (H, W, 4)."""
        address = self.page.locator(selector).evaluate("(canvas) => canvas.toDataURL()")
        content = io.BytesIO(base64.b64decode(address.partition(",")[2]))
        return np.asarray(Image.open(content, formats=("PNG",)).convert("RGBA"))

    def wait_for_colour(self, selector: str, x: float, y: float, colour: Any) -> None:
        """Wait until a canvas has a colour at a place, given as parts of its sides."""
        self.wait_for(
            """([selector, x, y, colour]) => {
              const canvas = document.querySelector(selector);
              const at = [Math.floor(x * canvas.width), Math.floor(y * canvas.height)];
              const found = canvas.getContext("2d").getImageData(...at, 1, 1).data;
              return colour.every((level, i) => Math.abs(level - found[i]) <= 1);
            }""",
            [selector, x, y, [int(level) for level in colour]],
        )

    def place(self, selector: str, x: float, y: float) -> tuple[float, float]:
        """Return where a part of an element is on the screen."""
        box = self.page.locator(selector).bounding_box()
        assert box is not None
        return box["x"] + x * box["width"], box["y"] + y * box["height"]

    def drag(self, *points: tuple[float, float]) -> None:
        """Draw a line with the mouse."""
        mouse = self.page.mouse
        mouse.move(*self.place("#drawing", *points[0]))
        mouse.down()
        for point in points[1:]:
            mouse.move(*self.place("#drawing", *point), steps=5)
        mouse.up()

    def press(self, name: str) -> None:
        """Click a button."""
        self.page.get_by_role("button", name=name, exact=True).click()

    def error(self) -> str:
        """Wait for the line of an error and return it."""
        alert = self.page.get_by_role("alert")
        alert.wait_for()
        return alert.inner_text()

    def download(self, name: str) -> NDArray[np.uint8]:
        """Click a button that downloads a PNG; return its pixels, (H, W, 3)."""
        with self.page.expect_download() as waited:
            self.press(name)
        content = Path(waited.value.path()).read_bytes()
        return decode(content)

    def close(self) -> None:
        """Close the page after a look at what it did."""
        violations = self.page.evaluate("window.violations")
        self.page.close()
        assert violations == []
        assert self.asked == {urlsplit(self.address).netloc}
        assert self.failures == []


def decode(content: bytes) -> NDArray[np.uint8]:
    """Return the pixels of a PNG, (H, W, 3)."""
    image = Image.open(io.BytesIO(content), formats=("PNG",))
    return np.asarray(image.convert("RGB"))


def encode(pixels: NDArray[np.uint8]) -> bytes:
    """Return a PNG of pixels (H, W, 3)."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()

"""Drawing on the page: the fake server answers with the negative of what it gets."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from page.conftest import OpenPage
from support.page_in_chromium import PageInChromium, decode, encode
from support.page_server import PageServer

QUIET = "() => new Promise((resolve) => setTimeout(() => requestAnimationFrame(resolve), 400))"
"""Runs in the page: on a busy machine its own timers and events come first."""
WHITE, BLACK = (255, 255, 255), (0, 0, 0)


def newest(page: PageInChromium, server: PageServer) -> np.ndarray:
    """What the server was asked last to translate, when the page asks no more.

    A colour may be that of an earlier drawing, of which the last part is still on its way.
    """
    count = -1
    while count != len(server.requests):
        count = len(server.requests)
        page.page.evaluate(QUIET)
    return decode(server.asked("/v1/translate")[-1])


def until(page: PageInChromium, condition: Callable[[], bool]) -> None:
    """Wait: the first answer may be that of an earlier drawing."""
    for _ in range(200):
        if condition():
            return
        page.page.wait_for_timeout(50)
    raise AssertionError("it did not come true within 10 s")


def draw_line(page: PageInChromium, y: float = 0.5) -> None:
    page.page.locator("#brush").fill("30")
    page.drag((0.2, y), (0.8, y))


def test_a_shape_that_is_drawn_with_the_mouse_gives_a_picture(open_page: OpenPage) -> None:
    page, server = open_page()
    draw_line(page)
    page.wait_for_colour("#result", 0.5, 0.5, WHITE)
    page.wait_for_colour("#result", 0.5, 0.2, BLACK)
    until(page, lambda: bool((newest(page, server)[16, 8:24] < 128).all()))
    until(page, lambda: bool((page.pixels("#result")[..., :3] == 255 - newest(page, server)).all()))
    given = newest(page, server)
    assert given.shape == (32, 32, 3)
    dark = given[16].mean(axis=1) < 128
    assert not dark[:4].any()
    assert dark[8:24].all()
    assert (given[:10] == 255).all()
    assert page.page.locator("#invitation").is_hidden()


def test_the_picture_appears_while_one_draws(open_page: OpenPage) -> None:
    page, _ = open_page()
    mouse = page.page.mouse
    page.page.locator("#brush").fill("30")
    mouse.move(*page.place("#drawing", 0.2, 0.5))
    mouse.down()
    mouse.move(*page.place("#drawing", 0.6, 0.5), steps=5)
    page.wait_for_colour("#result", 0.4, 0.5, WHITE)
    assert page.page.locator("#undo").is_disabled()
    mouse.up()
    assert page.page.locator("#undo").is_enabled()


def test_one_request_is_in_flight_and_the_newest_drawing_wins(open_page: OpenPage) -> None:
    page, server = open_page()
    server.delay_s = 0.3
    for y in (0.1, 0.3, 0.5, 0.7, 0.9):
        draw_line(page, y)
    page.wait_for_colour("#result", 0.5, 0.9, WHITE)
    assert server.most_at_once == 1
    assert len(server.asked("/v1/translate")) < 10
    assert (newest(page, server)[[3, 9, 16, 22, 28], 16] < 50).all()


def test_the_keyboard_alone_draws(open_page: OpenPage) -> None:
    page, _ = open_page()
    keys = page.page.keyboard
    for _ in range(40):
        keys.press("Tab")
        if page.page.evaluate("document.activeElement.id") == "brush":
            for _ in range(20):
                keys.press("ArrowRight")
        if page.page.evaluate("document.activeElement.id") == "drawing":
            break
    page.wait_for("() => document.activeElement.id === 'drawing'")
    before = page.pixels("#overlay")
    for key in ("Shift+ArrowUp", "Space", "Shift+ArrowRight", "Shift+ArrowRight", "Enter"):
        keys.press(key)
    page.wait_for_colour("#result", 0.56, 0.44, WHITE)
    keys.press("Shift+ArrowDown")  # the pen is up
    page.wait_for_colour("#result", 0.63, 0.6, BLACK)
    assert (page.pixels("#overlay") != before).any()  # the cursor
    assert page.page.locator("#pen-state").inner_text() == "Pen up"
    keys.press("Control+z")
    page.wait_for_colour("#result", 0.56, 0.44, BLACK)


def test_touch_draws(open_page: OpenPage) -> None:
    page, _ = open_page(context={"has_touch": True, "viewport": {"width": 360, "height": 900}})
    page.page.locator("#brush").fill("30")
    page.page.locator("#drawing").scroll_into_view_if_needed()
    session = page.page.context.new_cdp_session(page.page)
    scrolled = page.page.evaluate("scrollY")
    for kind, at in (("Start", 0.2), ("Move", 0.4), ("Move", 0.6), ("Move", 0.8), ("End", None)):
        x, y = page.place("#drawing", 0.5, at or 0)
        points = [] if at is None else [{"x": x, "y": y}]
        session.send("Input.dispatchTouchEvent", {"type": f"touch{kind}", "touchPoints": points})
    page.wait_for_colour("#result", 0.5, 0.3, WHITE)
    page.wait_for_colour("#result", 0.5, 0.7, WHITE)
    assert page.page.evaluate("scrollY") == scrolled


def test_undo_redo_and_clear_restore_the_drawing_and_the_result(open_page: OpenPage) -> None:
    page, _ = open_page()
    draw_line(page, 0.3)
    page.wait_for_colour("#result", 0.5, 0.3, WHITE)
    first = page.pixels("#drawing")
    draw_line(page, 0.7)
    page.wait_for_colour("#result", 0.5, 0.7, WHITE)
    second = page.pixels("#drawing")
    page.press("Undo")
    page.wait_for_colour("#result", 0.5, 0.7, BLACK)
    assert (page.pixels("#drawing") == first).all()
    page.press("Redo")
    page.wait_for_colour("#result", 0.5, 0.7, WHITE)
    assert (page.pixels("#drawing") == second).all()
    page.press("Clear")
    page.wait_for_colour("#result", 0.5, 0.3, BLACK)
    assert (page.pixels("#drawing") == 255).all()
    page.press("Undo")
    page.wait_for_colour("#result", 0.5, 0.3, WHITE)
    assert (page.pixels("#drawing") == second).all()


def test_the_eraser_takes_ink_and_leaves_the_picture(open_page: OpenPage) -> None:
    page, server = open_page()
    blue = np.full((32, 32, 3), (0, 0, 200), np.uint8)
    upload(page, encode(blue))
    page.wait_for_colour("#result", 0.5, 0.5, (255, 255, 55))
    draw_line(page)
    page.wait_for_colour("#result", 0.5, 0.5, WHITE)
    page.page.locator("#tool-eraser").check(force=True)
    page.drag((0.1, 0.5), (0.9, 0.5))
    page.wait_for_colour("#result", 0.5, 0.5, (255, 255, 55))
    assert (newest(page, server) == blue).all()


def upload(page: PageInChromium, content: bytes, name: str = "x.png") -> None:
    file = {"name": name, "mimeType": "image/png", "buffer": content}
    page.page.locator("#upload").set_input_files(file)  # type: ignore[arg-type]


def test_an_uploaded_picture_of_the_models_size_arrives_to_the_bit(open_page: OpenPage) -> None:
    page, server = open_page()
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    upload(page, encode(pixels))
    page.wait_for_colour("#result", 0.0, 0.0, 255 - pixels[0, 0].astype(int))
    assert (newest(page, server) == pixels).all()


@pytest.mark.parametrize(
    ("fit", "left", "top"),
    [("crop", BLACK, BLACK), ("pad", BLACK, WHITE), ("stretch", BLACK, BLACK)],
)
def test_a_wide_picture_is_made_square_as_one_chooses(
    open_page: OpenPage, fit: str, left: tuple[int, int, int], top: tuple[int, int, int]
) -> None:
    page, server = open_page()
    upload(page, encode(np.zeros((40, 80, 3), np.uint8)))
    page.page.locator("#fit").select_option(fit)

    def is_square_as_chosen() -> bool:
        given = newest(page, server) if server.asked("/v1/translate") else np.zeros((32, 32, 3))
        return tuple(given[16, 0]) == left and tuple(given[2, 16]) == top

    until(page, is_square_as_chosen)
    page.wait_for_colour("#result", 0.5, 0.1, [255 - level for level in top])


def test_a_dropped_picture_is_taken_and_a_file_that_is_none_is_told(open_page: OpenPage) -> None:
    page, server = open_page()
    drop = """([bytes, name]) => {
      const data = new DataTransfer();
      data.items.add(new File([Uint8Array.from(bytes)], name));
      document.getElementById("paper").dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true}));
    }"""  # noqa: E501
    page.page.evaluate(drop, [list(encode(np.zeros((32, 32, 3), np.uint8))), "x.png"])
    page.wait_for_colour("#result", 0.5, 0.5, WHITE)
    count = len(server.requests)
    page.page.evaluate(drop, [[1, 2, 3], "notes.txt"])
    assert page.error() == (
        "notes.txt is not a picture that this browser reads; use PNG, JPEG or WebP."
    )
    assert len(server.requests) == count


def test_each_example_is_a_drawing_that_can_be_undone(open_page: OpenPage) -> None:
    page, server = open_page(image_size=64)
    buttons = page.page.locator("#examples button")
    seen = set()
    for number in range(buttons.count()):
        buttons.nth(number).click()
        page.wait_for("(count) => document.getElementById('result-note').textContent", number)
        page.page.wait_for_timeout(150)
        given = newest(page, server)
        assert 0.02 < (given < 128).mean() < 0.4
        seen.add(given.tobytes())
    assert len(seen) == buttons.count() == 5
    page.press("Undo")
    assert page.page.locator("#redo").is_enabled()


def test_the_seed_is_sent_and_one_that_is_none_is_told(open_page: OpenPage) -> None:
    page, server = open_page()
    draw_line(page)
    page.wait_for_colour("#result", 0.5, 0.5, WHITE)
    page.page.locator("#seed").fill("9007199254740991")
    page.page.locator("#save-input").focus()
    page.page.wait_for_timeout(200)
    assert server.requests[-1][0] == "/v1/translate?seed=9007199254740991"
    count = len(server.requests)
    page.page.locator("#seed").fill("-1")
    assert page.error() == "A seed is a whole number from 0 to 9007199254740991."
    assert page.page.locator("#seed").get_attribute("aria-invalid") == "true"
    assert len(server.requests) == count
    page.press("New seed")
    page.wait_for("() => document.getElementById('alert').hidden")
    assert (
        server.requests[-1][0] == f"/v1/translate?seed={page.page.locator('#seed').input_value()}"
    )


def test_drawing_and_result_can_be_downloaded(open_page: OpenPage) -> None:
    page, server = open_page()
    assert page.page.locator("#save-result").is_disabled()
    page.page.locator("#colour").fill("#ff0000")
    draw_line(page)
    page.wait_for_colour("#result", 0.5, 0.5, (0, 255, 255))
    drawing, result = page.download("Download drawing"), page.download("Download result")
    assert (drawing == newest(page, server)).all()
    assert (result == 255 - drawing).all()


def test_the_hole_of_an_inpainting_model_is_shown_and_not_sent(open_page: OpenPage) -> None:
    page, server = open_page(hole=[8, 4, 16, 20])
    shown = page.pixels("#overlay")[..., 3] > 0
    rows, columns = np.where(shown.any(axis=1))[0], np.where(shown.any(axis=0))[0]
    edges = np.array([rows[0], columns[0], rows[-1], columns[-1]]) / 16
    assert np.abs(edges - [8, 4, 24, 24]).max() < 0.2
    assert "the model fills the dashed region" in page.page.locator("#translate").inner_text()
    page.page.locator("#examples button").first.click()
    page.wait_for("() => document.getElementById('result-note').textContent")
    values = newest(page, server)
    assert (values[..., 0] == values[..., 1]).all()


def test_a_model_that_fills_painted_holes_gets_a_brush_of_their_colour(
    open_page: OpenPage,
) -> None:
    page, server = open_page(hole_colour="#ff00ff")
    assert page.page.locator("#colour").input_value() == "#ff00ff"
    assert "paint what the model is to fill" in page.page.locator("#translate").inner_text()
    draw_line(page)
    page.wait_for("() => document.getElementById('result-note').textContent")
    assert (newest(page, server) == (255, 0, 255)).all(axis=-1).any()


def test_a_grey_model_is_drawn_for_in_black(open_page: OpenPage) -> None:
    page, _ = open_page(channels=1)
    assert page.page.locator("#colour-field").is_hidden()
    draw_line(page)
    page.wait_for_colour("#result", 0.5, 0.5, WHITE)


def test_a_large_jpeg_is_scaled_like_pillow_scales_it(open_page: OpenPage) -> None:
    page, server = open_page()
    ramp = np.linspace(0, 255, 640).astype(np.uint8)
    pixels = np.stack([np.tile(ramp, (640, 1)), np.tile(ramp[:, None], (1, 640))], axis=2)
    image = Image.fromarray(np.concatenate([pixels, pixels[..., :1]], axis=2))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95)
    upload(page, buffer.getvalue(), "x.jpg")
    page.wait_for("() => document.getElementById('result-note').textContent")
    expected = np.asarray(image.resize((32, 32), Image.Resampling.BOX)).astype(int)
    assert np.abs(newest(page, server) - expected).max() <= 6


def test_screenshots_of_a_drawing(open_page: OpenPage, tmp_path: Path) -> None:
    """Light, dark and phone; they are to be looked at, and no page is wider than its screen."""
    sizes = {"wide": (1280, 900), "phone": (360, 740)}
    for scheme in ("light", "dark"):
        for name, (width, height) in sizes.items():
            context = {"color_scheme": scheme, "viewport": {"width": width, "height": height}}
            page, _ = open_page(context=context, image_size=64)
            page.press("Cat")
            page.wait_for_colour("#result", 0.1, 0.1, BLACK)
            page.page.screenshot(path=tmp_path / f"{name}-{scheme}.png", full_page=True)
            assert page.page.evaluate("document.documentElement.scrollWidth") == width
            boxes = [page.page.locator(f"#{id_}").bounding_box() for id_ in ("drawing", "result")]
            left, right = boxes
            assert left is not None
            assert right is not None
            assert (left["y"] == right["y"]) == (name == "wide")
    assert len(list(tmp_path.iterdir())) == 4

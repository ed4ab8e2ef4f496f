"""Generators on the page: each seed of the fake server has a colour."""

from typing import Any

import numpy as np

from page.conftest import OpenPage
from support.page_in_chromium import PageInChromium, encode
from support.page_server import PageServer, colour_of, latent_of

COUNT = 12


def shown(page: PageInChromium) -> list[tuple[int, ...]]:
    """Colours of the images of the gallery, once it is there."""
    page.page.wait_for_selector("#images:not([aria-busy])")
    places = range(page.page.locator("#images button").count())
    canvases = [page.pixels(f"#images button:nth-child({place + 1}) canvas") for place in places]
    return [tuple(canvas[5, 5, :3].tolist()) for canvas in canvases]


def wait_for_seed(page: PageInChromium, seed: int) -> None:
    page.page.locator("#images").get_by_text(f"Seed {seed}", exact=True).wait_for()


def choose(page: PageInChromium, *places: int) -> None:
    for place in places:
        page.page.locator("#images button").nth(place).click()


def last(server: PageServer, path: str) -> Any:
    return server.asked(path)[-1]


def test_a_generator_has_a_gallery_of_its_seeds_page_by_page(open_page: OpenPage) -> None:
    page, server = open_page(translates=False)
    wait_for_seed(page, 0)
    assert shown(page) == [colour_of(seed) for seed in range(COUNT)]
    assert page.page.locator("#translate").is_hidden()
    for id_ in ("conditions", "rows", "latents", "between", "likelihood"):
        assert page.page.locator(f"#{id_}").is_hidden()
    page.press("Next")
    wait_for_seed(page, COUNT)
    assert shown(page) == [colour_of(seed) for seed in range(COUNT, 2 * COUNT)]
    page.press("Previous")
    wait_for_seed(page, 0)
    page.press("New seeds")
    page.wait_for("() => !document.getElementById('images').textContent.startsWith('Seed 0')")
    (first, *_) = seeds = last(server, "/v1/sample")["seeds"]
    assert seeds == list(range(first, first + COUNT))
    assert page.page.locator("#first-seed").input_value() == str(first)
    assert shown(page)[0] == colour_of(first)


def test_no_more_images_than_the_server_draws_are_asked_for(open_page: OpenPage) -> None:
    limits = {"bytes": 10**7, "pixels": 2 * 10**7, "images": 5}
    page, server = open_page(translates=False, limits=limits)
    wait_for_seed(page, 4)
    assert last(server, "/v1/sample") == {"seeds": [0, 1, 2, 3, 4]}


def test_classes_come_one_after_the_other_or_as_one_chooses(open_page: OpenPage) -> None:
    page, server = open_page(translates=False, classes=5)
    page.page.locator("#images").get_by_text("Seed 11, class 1").wait_for()
    assert last(server, "/v1/sample")["classes"] == [seed % 5 for seed in range(COUNT)]
    page.page.locator("#class-each").uncheck()
    page.page.locator("#class-range").fill("3")
    page.page.locator("#images").get_by_text("Seed 11, class 3").wait_for()
    assert shown(page) == [colour_of(seed, 3) for seed in range(COUNT)]
    assert page.page.locator("#class-number").input_value() == "3"
    page.page.locator("#class-number").fill("4")
    page.page.locator("#images").get_by_text("Seed 11, class 4").wait_for()


def test_a_class_that_there_is_not_is_told(open_page: OpenPage) -> None:
    page, server = open_page(translates=False, classes=5)
    wait = page.page.locator("#images").get_by_text("Seed 11, class 1")
    wait.wait_for()
    page.page.locator("#class-each").uncheck()
    page.page.locator("#class-number").fill("9")
    assert page.error() == "A class is a whole number from 0 to 4."
    assert all(max(given["classes"]) < 5 for given in server.asked("/v1/sample"))


def test_captions_are_written_and_needed(open_page: OpenPage) -> None:
    page, server = open_page(translates=False, captions=True)
    page.page.get_by_text("Write a caption to draw images for it.").wait_for()
    assert server.requests == []
    page.page.get_by_label("Caption").fill("a red bird")
    wait_for_seed(page, 0)
    assert last(server, "/v1/sample")["caption"] == "a red bird"
    assert shown(page)[2] == colour_of(2, 0, "a red bird")


def test_a_seed_that_is_none_is_told(open_page: OpenPage) -> None:
    page, server = open_page(translates=False)
    wait_for_seed(page, 0)
    page.page.locator("#first-seed").fill("1.5")
    assert page.error() == "A seed is a whole number from 0 to 9007199254740991."
    assert len(server.asked("/v1/sample")) == 1


def test_the_last_seeds_that_there_are_can_be_shown(open_page: OpenPage) -> None:
    page, server = open_page(translates=False)
    wait_for_seed(page, 0)
    page.page.locator("#first-seed").fill(str(2**53 - 3))
    wait_for_seed(page, 2**53 - 1)
    assert last(server, "/v1/sample")["seeds"] == [2**53 - 3, 2**53 - 2, 2**53 - 1]
    page.press("Next")
    wait_for_seed(page, 2**53 - COUNT)


def test_the_sliders_change_the_largest_dimensions_of_a_chosen_image(open_page: OpenPage) -> None:
    page, server = open_page(translates=False, latent_size=9)
    wait_for_seed(page, 0)
    assert page.page.locator("#sliders").is_hidden()
    choose(page, 2)
    page.page.locator("#sliders input").first.wait_for()
    latent = np.array(latent_of(2, 9))
    names = page.page.locator("#sliders label").all_inner_texts()
    largest = [int(name.split()[1]) for name in names]
    assert len(largest) == 6
    assert set(np.abs(latent[largest])) == set(np.sort(np.abs(latent))[-6:])
    page.page.get_by_label("Dimension 0").fill("1.5")
    page.wait_for_colour("#latent-canvas", 0.5, 0.5, [128 + 60, *(128 + 40 * latent[1:3])])
    assert last(server, "/v1/decode") == {"latents": [[1.5, *latent[1:]]]}
    page.press("Reset")
    page.wait_for_colour("#latent-canvas", 0.5, 0.5, colour_of(2))
    assert (page.download("Download")[..., :] == colour_of(2)).all()


def test_the_way_between_two_chosen_images_is_a_strip(open_page: OpenPage) -> None:
    page, server = open_page(translates=False, latent_size=4, classes=3)
    page.page.locator("#images").get_by_text("Seed 11, class 2").wait_for()
    choose(page, 1)
    assert page.page.locator("#between-draw").is_disabled()
    choose(page, 4)
    page.press("Interpolate")
    page.page.locator("#strip canvas").nth(7).wait_for()
    assert last(server, "/v1/interpolate") == {"seeds": [1, 4], "steps": 8, "class": 1}
    ends = [page.pixels(f"#strip canvas:nth-child({place})")[0, 0, :3] for place in (1, 8)]
    assert [tuple(end) for end in ends] == [colour_of(1), colour_of(4)]
    choose(page, 7)  # the oldest choice gives way
    pressed = page.page.locator("#images [aria-pressed=true]").all_inner_texts()
    assert pressed == ["Seed 4, class 1", "Seed 7, class 1"]


def test_chosen_images_can_be_downloaded(open_page: OpenPage) -> None:
    page, _ = open_page(translates=False)
    wait_for_seed(page, 0)
    choose(page, 3)
    assert (page.download("Download chosen") == colour_of(3)).all()
    choose(page, 3)
    assert page.page.locator("#save-chosen").is_disabled()


def test_an_autoregressive_model_paints_row_by_row(open_page: OpenPage) -> None:
    page, server = open_page(translates=False, rows=True, image_size=20)
    assert server.requests == []  # a page of images takes such a model long
    page.page.locator("#rows-seed").fill("3")
    page.press("Paint")
    page.page.get_by_text("row 20 of 20").wait_for()
    assert last(server, "/v1/sample/rows") == {"seed": 3}
    red, green, blue = colour_of(3)
    painted = page.pixels("#rows-canvas")
    assert (painted[..., 0] == red).all()
    assert (painted[..., 1] == green).all()
    assert (painted[..., 2] == blue + np.arange(20)[:, None]).all()
    page.press("Paint the next seed")
    page.wait_for_colour("#rows-canvas", 0.5, 0.99, [colour_of(4)[0]])
    page.press("Next")
    wait_for_seed(page, COUNT)


def test_painting_can_be_stopped(open_page: OpenPage) -> None:
    page, server = open_page(translates=False, rows=True)
    server.row_delay_s = 0.2
    page.press("Paint")
    page.page.get_by_text("row 2 of 32").wait_for()
    page.press("Stop")
    page.page.locator("#rows-paint:enabled").wait_for()
    painted = page.pixels("#rows-canvas")[..., 3] > 0
    assert painted[0].all()
    assert not painted[-1].any()
    assert page.page.locator("#alert").is_hidden()


def test_the_likelihood_of_an_uploaded_image_is_told(open_page: OpenPage) -> None:
    page, _ = open_page(translates=False, likelihood="negative_elbo_nats", image_size=10)
    content = encode(np.full((10, 10, 3), 90, np.uint8))
    file = {"name": "x.png", "mimeType": "image/png", "buffer": content}
    page.page.locator("#likelihood-file").set_input_files(file)  # type: ignore[arg-type]
    page.page.get_by_text("90.00 nats").wait_for()
    page.page.get_by_text(f"{90 / np.log(2) / 100:.3f} bits").wait_for()
    page.page.get_by_text("Upper bound of the negative log likelihood (ELBO)").wait_for()
    file = {"name": "x.txt", "mimeType": "text/plain", "buffer": b"no picture"}
    page.page.locator("#likelihood-file").set_input_files(file)  # type: ignore[arg-type]
    assert page.error().startswith("x.txt is not a picture")


def test_a_likelihood_given_a_class_is_that_of_the_chosen_class(open_page: OpenPage) -> None:
    page, server = open_page(translates=False, likelihood="nll_nats", classes=4)
    page.page.locator("#class-each").uncheck()
    page.page.locator("#class-number").fill("2")
    content = encode(np.full((10, 10, 3), 90, np.uint8))
    file = {"name": "x.png", "mimeType": "image/png", "buffer": content}
    page.page.locator("#likelihood-file").set_input_files(file)  # type: ignore[arg-type]
    page.page.get_by_text("As an image of class").wait_for()
    assert [path for path, _ in server.requests if "likelihood" in path] == [
        "/v1/likelihood?class=2"
    ]

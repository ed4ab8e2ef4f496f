"""What the page tells: tokens, a busy server, errors, the card."""

from page.conftest import OpenPage
from support.page_in_chromium import PageInChromium

WHITE = (255, 255, 255)


def draw(page: PageInChromium) -> None:
    page.page.locator("#brush").fill("30")
    page.drag((0.2, 0.5), (0.8, 0.5))


def give_token(page: PageInChromium, token: str) -> None:
    page.page.locator("#token").fill(token)
    page.page.keyboard.press("Enter")


def test_the_token_is_asked_for_until_it_is_right_and_kept_for_the_tab(open_page: OpenPage) -> None:
    page, _ = open_page(wait=False, token="right")
    page.page.get_by_role("dialog", name="This server asks for a token").wait_for()
    page.page.keyboard.press("Escape")
    assert page.page.get_by_role("dialog").is_visible()
    give_token(page, "wrong")
    page.page.get_by_text("That token is not accepted. Check it and try again.").wait_for()
    give_token(page, "right")
    page.wait_until_ready()
    draw(page)
    page.wait_for_colour("#result", 0.5, 0.5, WHITE)
    page.page.reload()
    page.wait_until_ready()
    assert page.page.get_by_role("dialog").is_hidden()
    assert page.page.evaluate("localStorage.length") == 0
    assert page.page.evaluate("sessionStorage.length") == 1


def test_a_token_that_changes_is_asked_for_again_and_nothing_is_lost(open_page: OpenPage) -> None:
    page, server = open_page()
    server.token = "new"
    draw(page)
    page.page.get_by_role("dialog").wait_for()
    give_token(page, "new")
    page.wait_for_colour("#result", 0.5, 0.5, WHITE)


def test_a_busy_server_is_asked_again_when_it_says(open_page: OpenPage) -> None:
    page, server = open_page()
    server.busy = 2
    draw(page)
    page.page.get_by_text("The server is busy; trying again in 1 s.").wait_for()
    page.wait_for_colour("#result", 0.5, 0.5, WHITE)
    assert page.page.get_by_role("alert").is_hidden()
    assert page.page.locator("#status").inner_text() == ""


def test_an_error_of_the_server_is_one_line_until_it_works_again(open_page: OpenPage) -> None:
    page, server = open_page()
    server.failing = "the picture has <b>3</b> channels\nsecond line"
    draw(page)
    assert page.error() == "the picture has <b>3</b> channels"
    server.failing = ""
    page.press("New seed")
    page.page.get_by_role("alert").wait_for(state="hidden")


def test_a_server_that_is_gone_is_told(open_page: OpenPage) -> None:
    page, _ = open_page()
    page.page.route("**/v1/**", lambda route: route.abort())
    draw(page)
    assert page.error() == "The server does not answer; is it running?"


def test_an_answer_of_something_between_is_told_with_its_status(open_page: OpenPage) -> None:
    page, _ = open_page()
    page.page.route("**/v1/**", lambda route: route.fulfill(status=502, body="<h1>Bad</h1>"))
    draw(page)
    assert page.error() == "The server answers with status 502."


def test_a_server_that_does_not_say_what_it_serves_is_told(open_page: OpenPage) -> None:
    page, _ = open_page()
    page.page.route("**/v1/model", lambda route: route.fulfill(status=503, body='{"error": "no"}'))
    page.page.reload()
    assert page.error() == "no"
    assert page.page.locator("#translate").is_hidden()


def test_name_and_version_are_shown_and_follow_the_server(open_page: OpenPage) -> None:
    page, server = open_page()
    assert page.page.title() == "drawings"
    assert page.page.locator("h1").inner_text() == "drawings version 7"
    server.facts["version"] = 8
    draw(page)
    page.page.get_by_text("version 8").wait_for()
    assert page.page.locator("#summary").inner_text() == (
        "Turns a drawing or a picture into colour images of 32 × 32 pixels."  # noqa: RUF001
    )


def test_the_card_is_rendered_and_nothing_in_it_is_run(open_page: OpenPage) -> None:
    page, _ = open_page()
    card = page.page.locator("#card-text")
    assert card.locator("h3").all_inner_texts() == ["drawings"]
    assert card.locator("h4").all_inner_texts() == ["Use"]
    assert card.locator("td").all_inner_texts() == ["model", "pix2pix", "data", "drawings"]
    assert card.locator("pre").inner_text() == "$ orchestrator sample model"
    assert card.locator("li").count() == 2
    assert card.locator("strong, em, code").count() == 4
    text = card.locator("p").inner_text()
    assert text == "A paper: it draws. <script>alert(1)</script> bad"
    links = card.locator("a").evaluate_all("(all) => all.map((link) => link.href)")
    assert links == ["https://example.org/paper"]
    assert card.locator("script, img").count() == 0


def test_markup_of_any_kind_in_a_card_stays_text(open_page: OpenPage) -> None:
    hostile = (
        "# <img src=x onerror=alert(1)>\n"
        "| <svg onload=alert(1)> | b |\n|---|---|\n"
        "| [x](data:text/html,<b>) | [y](HTTPS://e.org/a(b)) |\n"
        "1. one <iframe src=//e.org>\n   more\n2. two\n\n"
        "[a](java\tscript:alert(1)) [b](//e.org) `<b>` **[c](javascript:1)**\n```\n<b>never closed"
    )
    page, _ = open_page(card=hostile)
    card = page.page.locator("#card-text")
    tags = card.locator("*").evaluate_all("(all) => all.map((each) => each.tagName)")
    known = ["H3", "DIV", "TABLE", "TBODY", "TR", "TH", "TD", "A", "OL", "LI", "P", "CODE"]
    assert set(tags) <= {*known, "STRONG", "PRE"}
    links = card.locator("a").evaluate_all("(all) => all.map((link) => link.href)")
    assert links == ["https://e.org/a(b)"]
    assert card.locator("li").all_inner_texts() == ["one <iframe src=//e.org> more", "two"]
    assert card.locator("pre").inner_text() == "<b>never closed"

"""Chromium, and pages that are open during a test."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from playwright.sync_api import Browser

from support.page_in_chromium import PageInChromium, start_chromium
from support.page_server import PageServer, page_server

OpenPage = Callable[..., tuple[PageInChromium, PageServer]]


@pytest.fixture(scope="module")  # its event loop would be in the way of other modules' tests
def chromium() -> Iterator[Browser]:
    with start_chromium() as browser:
        yield browser


@pytest.fixture
def open_page(chromium: Browser) -> Iterator[OpenPage]:
    """Open the page of a server whose model has the facts that are given.

    ``context`` are options of the browser's context. ``wait`` is whether the page must get ready.
    """
    with ExitStack() as stack:

        def open_(
            *,
            context: dict[str, Any] | None = None,
            wait: bool = True,
            token: str = "",
            **facts: Any,
        ) -> tuple[PageInChromium, PageServer]:
            server = stack.enter_context(page_server(**facts))
            server.token = token
            made = chromium.new_context(**(context or {}))
            stack.callback(made.close)
            page = PageInChromium(made, server.address)
            stack.callback(page.close)
            if wait:
                page.wait_until_ready()
            return page, server

        yield open_

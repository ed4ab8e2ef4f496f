"""The connection of the tests' own process to Ray."""

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import ray


@contextlib.contextmanager
def ray_in_this_process(address: str = "local", **options: Any) -> Iterator[None]:
    """Connect the process of the tests to Ray, to a cluster of its own by default.

    All tests must connect this way: Ray reads RAY_AUTH_MODE once per process, and after a
    connection with a token it loses the actors of the next cluster, which has another one.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        if address == "local":
            options["include_dashboard"] = False
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)
        try:
            yield
        finally:
            ray.shutdown()

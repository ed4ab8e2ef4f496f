"""Refuse a request: a status of HTTP and one line for the client."""

from collections.abc import Mapping


class Refused(Exception):
    """A request that is not served; the message says what was expected."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.headers = status, dict(headers or {})


class Busy(Refused):
    """Too many images are waiting; the client may try again after ``retry_s`` seconds."""

    def __init__(self, retry_s: float) -> None:
        seconds = max(1, round(retry_s))
        message = f"too many images are waiting; try again in {seconds} s"
        super().__init__(429, message, {"Retry-After": str(seconds)})

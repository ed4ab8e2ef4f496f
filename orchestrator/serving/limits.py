"""What a request may ask for."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Limits of a service; a request beyond one is refused before it costs anything."""

    bytes: int = 10_000_000
    """Of a request's body."""
    pixels: int = 20_000_000
    """Of an uploaded image: a small file can hold a huge one."""
    images: int = 64
    """That one request may draw."""
    waiting: int = 512
    """Images that may wait to be drawn; more are refused with 429."""
    timeout_s: float = 60.0
    """For a request to be drawn."""
    body_s: float = 15.0
    """For a client to send its request."""
    streams: int = 4
    """Images that may be streamed row by row at a time."""

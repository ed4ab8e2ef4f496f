"""Read the body of a request, within limits."""

import asyncio

from starlette.requests import ClientDisconnect, Request

from orchestrator.serving.image_bodies import FORMATS
from orchestrator.serving.limits import Limits
from orchestrator.serving.refused_request import Refused

ANY_TYPE = ("", "application/octet-stream")
"""Content types of clients that do not say."""


async def read_image(request: Request, limits: Limits) -> bytes:
    """Return the body of a request that has an image. Raises Refused; see ``read_body``."""
    kind = _content_type(request)
    if kind not in (*FORMATS.values(), *ANY_TYPE):
        expected = ", ".join(FORMATS.values())
        raise Refused(415, f"the body is {kind}; send the bytes of an image: {expected}")
    return await read_body(request, limits)


async def read_json(request: Request, limits: Limits) -> bytes:
    """Return the body of a request that has JSON. Raises Refused; see ``read_body``."""
    if (kind := _content_type(request)) != "application/json":
        raise Refused(415, f"the body is {kind or 'of no type'}; send application/json")
    return await read_body(request, limits)


async def read_body(request: Request, limits: Limits) -> bytes:
    """Return the body of a request.

    Raises Refused: 413 if it is too large, which its head may tell; 408 if it takes too long.
    """
    too_large = Refused(413, f"the body is too large; at most {limits.bytes:,} bytes")
    stated = request.headers.get("content-length", "")
    if stated.isdigit() and int(stated) > limits.bytes:
        raise too_large
    parts, size = [], 0
    try:
        async with asyncio.timeout(limits.body_s):
            async for part in request.stream():
                size += len(part)
                if size > limits.bytes:
                    raise too_large
                parts.append(part)
    except TimeoutError:
        raise Refused(408, f"the body has not come within {limits.body_s:g} s") from None
    except ClientDisconnect:
        raise Refused(400, "the client has left") from None
    return b"".join(parts)


def _content_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()

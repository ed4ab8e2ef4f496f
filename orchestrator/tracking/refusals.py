"""Errors of MLflow in words, and what its answers say."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.redaction import mask

RETRYABLE_STATUS = (408, 429)


@dataclass(frozen=True)
class Refusal:
    """An error of MLflow in words."""

    problem: str
    """Follows the address of MLflow."""
    advice: str
    may_pass: bool
    """Whether the same request may work later."""


def first_line(error: BaseException) -> str:
    """Return the first line of the error's message, without passwords."""
    lines = mask(str(error)).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".")


def status_of(error: BaseException, text: str) -> int:
    """HTTP status of an answer; 0 if there was none."""
    from mlflow.exceptions import MlflowException

    if (status := status_in(text)) or not isinstance(error, MlflowException):
        return status or http_status(getattr(error, "response", None))
    return int(error.get_http_status_code())


def status_in(text: str) -> int:
    """MLflow maps most statuses to 500, but its message has the one of the answer."""
    found = re.search(r"error code (\d{3}) != 200|too many (\d{3}) error responses", text)
    return int(found[1] or found[2]) if found else 0


def http_status(response: Any) -> int:
    """Get the status from a response of `requests` or boto3; 0 if there was none."""
    if isinstance(response, Mapping):
        return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    return int(getattr(response, "status_code", 0))


def detail(error: BaseException) -> str:
    """The server's own words, short and without a page's markup."""
    text = mask(getattr(error, "message", "") or str(error))
    body = text.partition("Response body: ")[2].strip("'") or text
    return (re.sub(r"<[^>]*>|\s+", " ", body).strip() or "no reason given")[:200].rstrip(". ")

"""Addresses of servers as users give them."""

import pytest

from orchestrator.addresses import split_address


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1:6379", ("gcs", "127.0.0.1", 6379)),
        ("[::1]:6379", ("gcs", "::1", 6379)),
        ("head", ("gcs", "head", None)),
        ("http://u:p@head:8265/x", ("http", "head", 8265)),
    ],
)
def test_an_address_is_split(address: str, expected: tuple[str, str, int | None]) -> None:
    parts = split_address(address, "gcs")
    assert (parts.scheme, parts.hostname, parts.port) == expected


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("http://[1", "Invalid IPv6 URL"),
        ("[1, 2]", "does not appear to be an IPv4 or IPv6 address"),
        ("head:99999", "Port out of range"),
        ("head:x", "Port could not be cast"),
        ("head:0", "its port is 0"),
        ("http://", "it has no host"),
        (":6379", "it has no host"),
    ],
)
def test_an_address_that_is_not_valid_says_why(address: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        split_address(address, "gcs")

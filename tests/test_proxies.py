"""Which proxy the requests to a server go through."""

from urllib.parse import urlsplit

import pytest

from orchestrator.proxies import describe_proxy

VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.parametrize(
    ("variable", "url", "named"),
    [
        ("HTTP_PROXY", "http://127.0.0.1:9000/b", "HTTP_PROXY=http://p:1"),
        ("http_proxy", "http://127.0.0.1:9000/b", "HTTP_PROXY=http://p:1"),
        ("https_proxy", "https://store.example", "HTTPS_PROXY=http://p:1"),
        ("ALL_PROXY", "https://store.example", "ALL_PROXY=http://p:1"),
        ("HTTPS_PROXY", "http://127.0.0.1:9000", ""),
        ("HTTP_PROXY", "https://store.example", ""),
    ],
)
def test_the_variable_of_the_proxy_and_the_cure_are_named(
    variable: str, url: str, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "http://p:1")
    found = describe_proxy(url)
    host = urlsplit(url).hostname
    assert bool(found) == bool(named)
    if named:
        assert named in found
        assert f"NO_PROXY={host}" in found


def test_hosts_in_no_proxy_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://p:1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,.cluster.local")
    assert describe_proxy("http://127.0.0.1:9000") == ""
    assert describe_proxy("http://s3.cluster.local") == ""
    assert describe_proxy("http://other.local")


def test_the_password_of_a_proxy_is_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://anna:s3cret@p:1")
    assert "s3cret" not in describe_proxy("http://host")

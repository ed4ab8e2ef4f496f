"""What is masked before text is printed, and what is left as it is.

URIs of job files are in config/test_job_files.py, and all commands in cli/test_canaries.py.
"""

import time

import pytest

from orchestrator.redaction import mask, mask_secrets
from support.canaries import FORMS


@pytest.mark.parametrize("around", ["{}", "error: '{}', use x", '{{"uri": "{}", "b": 1}}', "({})"])
def test_every_form_of_a_password_is_masked(around: str) -> None:
    for form in FORMS:
        shown = mask(around.format(form("hunter22")))
        assert "hunter22" not in shown
        assert "***" in shown
        assert mask(shown) == shown


@pytest.mark.parametrize(
    "text",
    [
        "models:/cats@candidate",
        "cats@candidate",
        "registry:5000/orchestrator@sha256:0123",
        "orchestrator:0.2.0@sha256:0123",
        "s3://bucket/prefix/a=b?version=3&part=tokens",
        "me@example.org wrote: see http://host:5000/#/experiments/1",
        "run `export HF_TOKEN=...` first; set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN",
        "${env:ME}:${env:PW}@proxy:3128",
        "http://host/x?password=${env:PW}; tokens=5 --max-tokens=5",
        "jobs/x.yaml:3:5: train.batch_size: 0 is out of range",
        "basic authentication, bearer tokens",
        "postgresql://db/x?passfile=/home/me/.pgpass",
    ],
)
def test_what_is_no_secret_is_kept(text: str) -> None:
    assert mask(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http_proxy=me:pw@proxy:3128", "http_proxy=***@proxy:3128"),
        ("http:/me:pw@host/x", "http:/***@host/x"),  # after pathlib
        ("Authorization: Basic bWU6cHcx, x", "Authorization: Basic ***, x"),
        ("a?sig=x;y&se=1 b", "a?sig=***&se=1 b"),
        ("x?a=1&b=PWD%3Dpw", "x?a=1&b=PWD%3D***"),
        ("${env:DB,postgresql://h/x?password=pw}", "${env:DB,postgresql://h/x?password=***}"),
        ("AWS_SECRET_ACCESS_KEY=pw python", "AWS_SECRET_ACCESS_KEY=*** python"),
    ],
)
def test_what_is_around_a_secret_is_kept(text: str, shown: str) -> None:
    assert mask(text) == shown


def test_secrets_of_the_environment_are_masked_wherever_they_stand() -> None:
    environ = {
        "AWS_SECRET_ACCESS_KEY": "first+key/1",
        "DB_PWD": "second-key",
        "PWD": "/home/me/project",
        "OLDPWD": "/home/me",
        "RAY_AUTH_TOKEN_PATH": "/home/me/token",
        "http_proxy": "http://me:third%2Fkey@proxy:3128",
        "AZURE_STORAGE_CONNECTION_STRING": "AccountName=a;AccountKey=fourth-key==;X=1",
        "GITHUB_TOKEN": "short",
    }
    text = "first+key/1 first%2Bkey%2F1 second-key third/key third%2Fkey fourth-key=="
    assert mask_secrets(text, environ) == "*** *** *** *** *** ***"
    kept = "/home/me/project /home/me/token short"
    assert mask_secrets(kept, environ) == kept


@pytest.mark.parametrize("piece", ["a:b,", "://", "{", "a=b&", "x", "a:", "%3a%2f%2f", "?token="])
def test_masking_takes_no_time_for_a_long_text(piece: str) -> None:
    text = piece * (100_000 // len(piece))
    start = time.process_time()
    mask(text)
    assert time.process_time() - start < 20, "0.1 s to 2 s"

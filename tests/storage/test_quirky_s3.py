"""Stores with other habits than AWS has, and buckets with rules."""

import logging
from collections.abc import Iterator

import pytest

from orchestrator.diagnostics.doctor import check_storage
from orchestrator.errors import EnvironmentProblem, OrchestratorError
from orchestrator.storage import s3_settings
from orchestrator.storage.base import Storage
from orchestrator.storage.open import open_storage
from services.quirky_s3 import Habit, QuirkyStore, quirky_s3

VARIABLES = (
    s3_settings.UNSIGNED, s3_settings.REQUEST_PAYER, s3_settings.ENCRYPTION,
    s3_settings.ENCRYPTION_KEY, "HTTP_PROXY", "http_proxy", "ALL_PROXY", "AWS_PROFILE",
    "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL",
)  # fmt: skip


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setattr(s3_settings, "_lacking", set())
    monkeypatch.setattr(s3_settings, "_honoring", set())
    return monkeypatch


@pytest.fixture
def store(request: pytest.FixtureRequest, environment: pytest.MonkeyPatch) -> Iterator[QuirkyStore]:
    with quirky_s3(request.param) as store:
        environment.setenv("AWS_ENDPOINT_URL_S3", store.url)
        yield store


def serve(*habits: Habit) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("store", habits, indirect=True)


def use(storage: Storage) -> None:
    """Use all operations, and check what they say against a dictionary."""
    storage.put("a/x", b"old")
    storage.put("a/x", b"new")
    assert storage.put_if_absent("a/y", b"first")
    assert not storage.put_if_absent("a/y", b"second")
    assert storage.get("a/x") == b"new"
    assert storage.get("a/y") == b"first"
    assert storage.size("a/y") == 5
    assert storage.list("a/") == ["a/x", "a/y"]
    storage.delete("a/x")
    assert storage.list() == ["a/y"]


@serve("none")
def test_a_plain_store_needs_nothing(store: QuirkyStore) -> None:
    use(open_storage("s3://bucket/prefix"))
    assert store.refusals == 0


@serve("no conditions", "no checksums")
def test_a_store_that_lacks_a_feature_is_used_without_it_and_that_is_said_once(
    store: QuirkyStore, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "orchestrator"):
        use(open_storage("s3://bucket/one"))
        use(open_storage("s3://bucket/two"))
    assert store.refusals == 1
    (message,) = [record.getMessage() for record in caplog.records]
    assert "does not support" in message
    assert store.url.partition("//")[2] in message


@serve("ignores conditions")
def test_a_store_that_ignores_conditions_never_overwrites_and_that_is_said_once(
    store: QuirkyStore, caplog: pytest.LogCaptureFixture
) -> None:
    storage = open_storage("s3://bucket/prefix")
    storage.put("manifest", b"of another writer")
    with caplog.at_level(logging.WARNING, "orchestrator"):
        assert not storage.put_if_absent("manifest", b"mine"), "the first use, before it is known"
        assert storage.get("manifest") == b"of another writer"
        storage.delete("manifest")
        use(storage)
    (message,) = [record.getMessage() for record in caplog.records]
    assert "does not support conditional writes: each is a look and a write" in message


@serve("none", "no conditions", "ignores conditions", "no checksums", "encrypted")
def test_doctor_tries_each_operation_and_reports_what_the_store_needs_and_lacks(
    store: QuirkyStore, environment: pytest.MonkeyPatch
) -> None:
    environment.setenv(s3_settings.ENCRYPTION, "AES256")
    check = check_storage("s3://bucket/prefix", "s3://bucket/prefix")
    found = ["s3://bucket/prefix is readable and writable", "ORCHESTRATOR_S3_SSE=AES256"]
    if "conditions" in store.habit:
        found[1] += ", without conditional writes"
    if store.habit == "no checksums":
        found[1] += ", without checksums"
    assert (check.found, check.status) == (
        "; ".join(found), "warn" if "conditions" in store.habit else "ok"
    )  # fmt: skip
    assert not store.objects


@serve("encrypted")
@pytest.mark.parametrize("key", [None, "key-7"])
def test_every_write_to_a_bucket_that_requires_encryption_names_it(
    store: QuirkyStore, environment: pytest.MonkeyPatch, key: str | None
) -> None:
    environment.setenv(s3_settings.ENCRYPTION, "aws:kms" if key else "AES256")
    if key:
        environment.setenv(s3_settings.ENCRYPTION_KEY, key)
    use(open_storage("s3://bucket/prefix"))
    assert {*store.encryption.values()} == {("aws:kms", key) if key else ("AES256", None)}


@serve("requester pays")
def test_every_request_to_a_requester_pays_bucket_accepts_the_cost(
    store: QuirkyStore, environment: pytest.MonkeyPatch
) -> None:
    environment.setenv(s3_settings.REQUEST_PAYER, "requester")
    use(open_storage("s3://bucket/prefix"))
    assert store.refusals == 0


@serve("public")
@pytest.mark.parametrize("unsigned", [True, False])
def test_a_public_bucket_is_read_without_credentials(
    store: QuirkyStore, environment: pytest.MonkeyPatch, unsigned: bool
) -> None:
    store.objects["bucket/a/x"] = b"data"
    if unsigned:  # although there are credentials, of another provider
        environment.setenv(s3_settings.UNSIGNED, "1")
    else:
        environment.delenv("AWS_ACCESS_KEY_ID")
        environment.delenv("AWS_SECRET_ACCESS_KEY")
    storage = open_storage("s3://bucket/a")
    assert storage.list() == ["x"]
    assert storage.get("x") == b"data"
    with pytest.raises(EnvironmentProblem, match="403 AccessDenied"):
        storage.put("y", b"data")


@serve("encrypted", "requester pays", "public")
def test_a_refusal_names_the_rules_that_a_bucket_may_have_and_their_variables(
    store: QuirkyStore,
) -> None:
    with pytest.raises(EnvironmentProblem, match="refused with 403") as refused:
        open_storage("s3://bucket/prefix").put("x", b"data")
    for name in (s3_settings.REQUEST_PAYER, s3_settings.ENCRYPTION, s3_settings.UNSIGNED):
        assert name in str(refused.value)


@serve("other region")
def test_the_region_of_the_bucket_is_named(store: QuirkyStore) -> None:
    with pytest.raises(EnvironmentProblem, match="set AWS_DEFAULT_REGION=eu-west-3"):
        open_storage("s3://bucket/prefix").put("x", b"data")


@serve("wrong clock")
def test_a_wrong_clock_is_named(store: QuirkyStore) -> None:
    with pytest.raises(EnvironmentProblem, match="clock is wrong"):
        open_storage("s3://bucket/prefix").put("x", b"data")


@serve("none")
def test_a_dead_proxy_is_named_with_the_exit_code_of_a_setting(
    store: QuirkyStore, environment: pytest.MonkeyPatch
) -> None:
    environment.setenv("HTTP_PROXY", "http://anna:s3cret@127.0.0.1:1")
    environment.delenv("NO_PROXY", raising=False)
    environment.delenv("no_proxy", raising=False)
    with pytest.raises(OrchestratorError) as refused:
        open_storage("s3://bucket/prefix").get("x")
    assert (refused.value.exit_code, refused.value.retry) == (3, True)
    assert "HTTP_PROXY" in str(refused.value)
    assert "NO_PROXY=127.0.0.1" in str(refused.value)
    assert "s3cret" not in str(refused.value)

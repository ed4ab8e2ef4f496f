"""Loading job files: values, syntax errors, overrides, and secrets that must stay hidden."""

import re
import string
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.config import load
from orchestrator.config.load import load_job
from orchestrator.config.paths import resolve_paths
from orchestrator.config.yaml_source import YamlSource, parse_yaml
from orchestrator.errors import JobFileError, UsageError
from orchestrator.redaction import mask
from services.fixtures_jobs import Load
from support.plain_jobs import VALID, edit_job, load_error

SYNTAX = {
    "": "1:1: the file is empty; a job has the keys name, model, data and train; see `jobs/`",
    "# nothing\n": "1:1: the file is empty; a job has the keys name, model, data and train; "
    "see `jobs/`",
    "- a\n": "1:1: the file is not a mapping; a job has the keys name, model, data and "
    "train; see `jobs/`",
    "a: [1\n": "1:4: a bracket is opened here but never closed; close it",
    "a: 'b\n": "1:4: a quote is opened here but never closed; close it",
    "a: b: c\n": "1:5: a second `: ` in one line; put quotes around the value",
    "a: b\n  c: d\n": "2:4: a key is not allowed here; indent it like the keys above, and end each "
    "with `: `",
    "a:\n    b: 1\n  c: 2\n": "3:3: inconsistent indentation in this section; "
    "use the same number of spaces",
    "a:\n\tb: 1\n": "2:1: YAML cannot be indented with tabs; use spaces",
    "a: 1\n---\nb: 2\n": "2:1: a second document starts here; a job file has only one; "
    "remove `---`",
    "a: *b\n": "1:4: found undefined alias 'b'; define it first with & and the same name",
    "a: {b: ${env:B}}\n": '1:9: a reference between { } or [ ] needs quotes; write "${env:NAME}"',
    "a: \0\n": "1:4: character '\\x00' is not allowed in YAML; remove it",
}


@pytest.mark.parametrize("text", SYNTAX)
def test_a_syntax_error_is_reported_in_one_short_line(load: Load, text: str) -> None:
    assert load_error(load, text) == f"x.yaml:{SYNTAX[text]}"


def test_all_mistakes_are_reported_in_the_order_of_the_file(load: Load) -> None:
    text = edit_job("16", "010").replace("cats/train", "3").replace("name: cats", "name: my cats")
    lines = load_error(load, text, "train.seed=-1").splitlines()
    places = [line.split(" ")[0] for line in lines]
    assert places == ["x.yaml:2:1:", "x.yaml:7:3:", "x.yaml:9:15:", "--set"]


def test_nested_aliases_do_not_exhaust_memory(load: Load) -> None:
    rows = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    text = "\n".join(["a0: &a0 x", *rows])
    expected = "values contain themselves or are nested too deeply; write them out"
    assert load_error(load, text) == f"x.yaml:1:1: {expected}"


def test_a_valid_job_is_loaded_with_shebang_and_defaults(load: Load) -> None:
    loaded = load(VALID)
    assert loaded.text == VALID
    assert loaded.job.train.batch_size == 16
    assert loaded.job.cluster.workers == 1
    assert loaded.job.model.model_dump()["filters"] == 64


def test_numbers_follow_yaml_1_2(load: Load) -> None:
    text = edit_job("image_size: 64", "image_size: 0x40\n  learning_rate: 1e-4")
    model = load(text).job.model.model_dump()
    assert (model["image_size"], model["learning_rate"]) == (64, 0.0001)


def test_anchors_aliases_and_merge_keys_work(load: Load) -> None:
    text = edit_job("image_size: 64", "<<: {image_size: &size 64, filters: 8}\n  filters: 16")
    text = text.replace("cats/train", "cats/train\n  augment: {crop: *size}")
    job = load(text).job
    assert (job.model.model_dump()["filters"], job.data.augment.crop) == (16, 64)


def test_overrides_take_precedence_over_the_file_and_later_ones_over_earlier_ones(
    load: Load,
) -> None:
    loaded = load(VALID, "train.batch_size=8", "cluster.workers=2", "train.batch_size=4")
    assert (loaded.job.train.batch_size, loaded.job.cluster.workers) == (4, 2)
    assert loaded.overrides == ("train.batch_size=8", "cluster.workers=2", "train.batch_size=4")


def test_an_override_can_unset_a_value_or_set_a_whole_section(load: Load) -> None:
    loaded = load(VALID, "train.epochs=null", "train.images=99", "data.augment={flip: true}")
    assert (loaded.job.train.epochs, loaded.job.train.images) == (None, 99)
    assert loaded.job.data.augment.flip is True


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (
            "train.batch_size='15'",
            "--set train.batch_size='15': train.batch_size: '15' is a string; expected "
            "an integer; remove the quotes",
        ),
        (
            "train.batchsize=15",
            "--set train.batchsize=15: train.batchsize: unknown key; did you mean batch_size?",
        ),
        (
            "train.batch_size=010",
            "--set train.batch_size=010: train.batch_size: YAML 1.1 reads 010 as 8, YAML 1.2 as "
            "10; write 10, or 0o10 for octal",
        ),
        (
            "name.first=x",
            "--set name.first=x: name.first: cannot be set because name is not a mapping; set name "
            "itself",
        ),
        (
            "data.augment={resize: 32}",
            "--set data.augment={resize: 32}: data.augment.resize: 32 is smaller than "
            "model.image_size, which is 64; use 64 or more",
        ),
        (
            "train.seed=[1",
            "--set train.seed=[1: train.seed: a bracket is opened here but never closed; close it",
        ),
    ],
)
def test_a_mistake_in_an_override_is_reported_with_its_option(
    load: Load, override: str, expected: str
) -> None:
    assert load_error(load, VALID, override) == expected


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.seed", "--set train.seed: has no `=`; write --set train.batch_size=32"),
        (
            "=3",
            "--set =...: has an empty key; write --set train.batch_size=32",
        ),
        (
            "train..seed=3",
            "--set train..seed=...: has an empty key; write --set train.batch_size=32",
        ),
    ],
)
def test_an_override_without_key_or_value_is_a_usage_error(
    load: Load, override: str, expected: str
) -> None:
    with pytest.raises(UsageError, match=re.escape(expected)):
        load(VALID, override)


def test_an_unquoted_reference_has_the_type_of_its_value_and_a_quoted_one_is_a_string(
    load: Load,
) -> None:
    assert load(edit_job("16", "${env:BS}"), BS="8").job.train.batch_size == 8
    assert load(edit_job("16", "${env:BS,4}")).job.train.batch_size == 4
    assert load(edit_job("16", "${env:BS,4}"), BS="").job.train.batch_size == 4
    message = load_error(load, edit_job("16", '"${env:BS}"'), BS="8")
    assert message == (
        "x.yaml:9:3: train.batch_size: ${env:BS} is a string; expected an integer; "
        "remove the quotes"
    )


def test_a_reference_can_be_part_of_a_string(load: Load) -> None:
    text = edit_job("cats/train", "s3://${env:BUCKET}/${env:SET,cats}/train")
    assert load(text, BUCKET="b").job.data.train == "s3://b/cats/train"


SECRETS = {
    "a wrong type": ("epochs: 10", "epochs: 10\n  ema_decay: ${env:S}"),
    "a cross-field mistake": ("cats/train", '"${env:S}"\n  source: {name: openmoji, size: 64}'),
    "a part of a string": ("cats/train", "x${env:S}y\n  source: {name: openmoji, size: 64}"),
    "a name": ("name: cats", "name: ${env:S}"),
    "a model": ("name: pix2pix", "name: ${env:S}"),
    "a choice": ("epochs: 10", "epochs: 10\n  precision: ${env:S}"),
}


@pytest.mark.parametrize("secret", ["hunter2 !", "a'b\"c", "007", "4711", "x: [", "päss/wörd"])
@pytest.mark.parametrize("case", SECRETS)
def test_values_from_the_environment_are_never_printed(load: Load, case: str, secret: str) -> None:
    old, new = SECRETS[case]
    message = load_error(load, edit_job(old, new), S=secret)
    assert secret not in message
    assert repr(secret)[1:-1] not in message
    assert "${env:S}" in message


def test_cross_field_mistakes_show_numbers_from_the_environment_as_references(
    load: Load,
) -> None:
    text = edit_job("16", "${env:BS}") + "cluster: {workers: '${env:W}'}\n"
    text = text.replace("cluster: {workers: '${env:W}'}", "cluster:\n  workers: ${env:W}")
    assert load_error(load, text, BS="31", W="2") == (
        "x.yaml:9:3: train.batch_size: ${env:BS} cannot be split over ${env:W} workers "
        "(cluster.workers); use a multiple of ${env:W}"
    )


def test_passwords_in_uris_and_values_of_secret_keys_are_masked(load: Load) -> None:
    text = VALID + "tracking: {uri: [https://me:pw@host], password: pw}\n"
    assert "pw" not in load_error(load, text)
    assert "pw" not in load_error(load, VALID, "tracking.password=pw", "name=http://me:pw@h")
    rendered = load(VALID + "tracking: {uri: 'https://me:pw@host'}\n").render()
    assert "uri: https://***@host" in rendered


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("https://me:pw@host/x", "https://***@host/x"),
        ("https://token@host", "https://***@host"),
        ("https://me:${env:PW}@host", "https://me:${env:PW}@host"),
        ("https://me:p/w@host", "https://***@host"),
        ("https://me:p@w@host", "https://***@host"),
        ("https://${env:ME}:${env:PW}@host", "https://${env:ME}:${env:PW}@host"),
        ("https://${env:TOKEN}@host", "https://${env:TOKEN}@host"),
        ("https://me:${env:PW,pw}@host", "https://***@host"),
        ("https://host/models@1", "https://host/models@1"),
        ("postgresql://h/x?user=me&password=p/w&a=1", "postgresql://h/x?user=me&password=***&a=1"),
        ("mysql://me:pw@h/x?ssl_password=pw", "mysql://***@h/x?ssl_password=***"),
        ("postgresql://h/x?password=${env:PW}&a=1", "postgresql://h/x?password=${env:PW}&a=1"),
        ("postgresql://h/x?password=${env:PW,pw}", "postgresql://h/x?password=***"),
        (
            "https://h/x?X-Amz-Signature=ab&X-Amz-Date=1",
            "https://h/x?X-Amz-Signature=***&X-Amz-Date=1",
        ),
        ("https://h/x?sv=1&sig=a%2Fb", "https://h/x?sv=1&sig=***"),
        ("'https://h/x?token=ab', 'next'", "'https://h/x?token=***', 'next'"),
        ("postgresql://h/x?passfile=/x", "postgresql://h/x?passfile=/x"),
        ("runs?token=1", "runs?token=***"),
        ("s3://bucket/key", "s3://bucket/key"),
        (
            "abfss://sets@account.dfs.core.windows.net/a",
            "abfss://sets@account.dfs.core.windows.net/a",
        ),
        ("abfss://me:pw@host", "abfss://***@host"),
        ("http://abfss@host", "http://***@host"),
    ],
)
def test_only_the_secrets_of_a_uri_are_masked(uri: str, shown: str) -> None:
    assert mask(uri) == shown


@pytest.mark.parametrize("place", ["/dev/null", "/proc/self/mem", "/sys/runs", "/dev/shm/../null"])
@pytest.mark.parametrize("key", ["data.train", "data.validation", "storage", "tracking.uri"])
def test_a_place_among_the_systems_own_files_is_a_mistake(load: Load, key: str, place: str) -> None:
    uri = f"{'sqlite:///' * (key == 'tracking.uri')}{place}"
    error = load_error(load, VALID, f"{key}={uri}")
    assert error.count("\n") == 0
    assert f"{key}: " in error
    assert "which holds the system's state and no files; use a folder" in error


@pytest.mark.parametrize("key", ["data.train", "data.validation", "storage", "tracking.uri"])
def test_a_path_in_the_home_of_an_unknown_user_is_a_usage_error(load: Load, key: str) -> None:
    uri = f"{'sqlite:///' * (key == 'tracking.uri')}~nobody-here/x"
    job = load(VALID, f"{key}={uri}").job
    with pytest.raises(UsageError, match=r"^~nobody-here/x: there is no user nobody-here on "):
        resolve_paths(job)


def test_a_rendered_job_has_defaults_and_references_and_can_be_loaded(load: Load) -> None:
    text = edit_job("16", "${env:BS}").replace("cats/train", '"${env:SET}/train"')
    text = text.replace("name: cats", "name: 'no'\nstorage: '0123'")
    loaded = load(text, BS="37", SET="secret")
    rendered = loaded.render()
    assert "  batch_size: ${env:BS}\n" in rendered
    assert '  train: "${env:SET}/train"\n' in rendered
    assert "  filters: 64\n" in rendered
    assert "secret" not in rendered
    assert "37" not in rendered
    assert "  prefetch_memory: 512MiB\n" in rendered
    assert load(rendered, BS="37", SET="secret").job == loaded.job


def test_the_default_of_a_reference_is_rendered_as_its_value(load: Load) -> None:
    text = edit_job("16", "${env:BS,12}").replace("cats/train", "'${env:SET,cats}/train'")
    loaded = load(text + "storage: '${env:STORE,0123}'\n")
    rendered = loaded.render()
    assert "${env" not in rendered
    assert "  batch_size: 12\n" in rendered
    assert "  train: cats/train\n" in rendered
    assert loaded.display("storage") == "0123"
    assert load(rendered).job == loaded.job


def test_a_reference_in_the_default_of_another_is_refused(load: Load) -> None:
    # Its text would become the value, and be expanded when the rendered job is loaded.
    message = load_error(load, edit_job("cats/train", "${env:A,${env:B}}"), B="b")
    assert "contains an incomplete reference" in message


def test_a_loaded_job_does_not_print_its_secrets(load: Load) -> None:
    loaded = load(edit_job("cats/train", "${env:SET}/train"), SET="hunter2")
    assert "hunter2" not in repr(loaded)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("pix2pux.yaml", "pix2pux.yaml: file not found; did you mean pix2pix.yaml?"),
        ("pix2pix", "pix2pix: file not found; did you mean pix2pix.yaml?"),
        ("folder", "folder: is a folder; give a job file in it; folder has: other.yaml"),
        ("nowhere/x.yaml", "nowhere/x.yaml: file not found; check the path"),
        ("latin.yaml", "latin.yaml:2:4: byte 0xe9 is not UTF-8; save the file as UTF-8"),
        ("large.yaml", "large.yaml: is larger than 1 MiB, so it is not a job file; check the path"),
        ("pix2pix.yaml/x", "pix2pix.yaml/x: cannot be read"),
    ],
)
def test_an_unreadable_file_is_reported_with_the_closest_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("folder/other.yaml").touch()
    Path("pix2pix.yaml").write_text(VALID)
    Path("latin.yaml").write_bytes(b"name: x\ncaf\xe9: y\n")
    Path("large.yaml").write_bytes(b"#" * 2_000_000)
    with pytest.raises(JobFileError, match=re.escape(expected)):
        load_job(name)


def load_or_refuse(path: Path, text: str, overrides: list[str]) -> None:
    """Load ``text``; any exception but a UsageError fails the test."""
    path.write_bytes(text.encode("utf-8", "replace"))
    with suppress(UsageError):
        load_job(path, overrides, {"SET": "x"})


PIECES = [*VALID.split(), *":-{}[]&*!|>'\"%@`#,?\n\t ", "${env:SET}", "<<: *a", "&a ", "---", "..."]
fuzz = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@fuzz
@given(st.text(st.sampled_from(string.printable + "é\x85\u2028\ufeff"), max_size=80))
def test_arbitrary_text_is_a_job_or_a_job_file_error(tmp_path: Path, text: str) -> None:
    load_or_refuse(tmp_path / "x.yaml", text, [])


@fuzz
@given(st.data())
def test_a_corrupted_job_is_a_job_or_a_job_file_error(tmp_path: Path, data: st.DataObject) -> None:
    text = VALID
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(text)))
        end = min(len(text), start + data.draw(st.integers(0, 12)))
        text = text[:start] + data.draw(st.sampled_from(PIECES)) + text[end:]
    load_or_refuse(tmp_path / "x.yaml", text, [])


@fuzz
@given(st.lists(st.sampled_from(PIECES), max_size=4).map("".join))
def test_an_arbitrary_override_is_a_job_or_a_usage_error(tmp_path: Path, value: str) -> None:
    load_or_refuse(tmp_path / "x.yaml", VALID, [f"train.batch_size={value}", value])


def test_a_file_is_parsed_once_for_all_values_of_a_sweep_which_do_not_change_each_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parsed: list[str] = []

    def counted(text: str, file: str) -> YamlSource:
        parsed.append(file)
        return parse_yaml(text, file)

    monkeypatch.setattr(load, "parse_yaml", counted)
    path = Path("parsed_once.yaml")
    changed = load.load_text(VALID, path, ["train.batch_size=3", "data.threads=2"])
    again = load.load_text(VALID, path)
    assert parsed == ["parsed_once.yaml"]
    assert (changed.job.train.batch_size, changed.job.data.threads) == (3, 2)
    assert again.job == load.load_text(VALID, Path("another.yaml")).job != changed.job

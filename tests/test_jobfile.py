"""Job files: what is read, what is refused in which words, and what is never printed."""

import re
import string
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.base import model_names
from orchestrator.errors import JobFileError, UsageError
from orchestrator.jobfile import LoadedJob, load_job
from orchestrator.redaction import mask

VALID = """\
#!/usr/bin/env -S orchestrator run
name: cats
model:
  name: pix2pix
  image_size: 64
data:
  train: cats/train
train:
  batch_size: 16
  epochs: 10
"""
MODELS = ", ".join(model_names())
FIELDS_OF_DATA = "train, validation, source, direction, augment, binarise, threads, lanes, "
FIELDS_OF_DATA += "window, memory, cache, patience_s, max_bad_fraction"

Load = Callable[..., LoadedJob]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Loads a job from its text, as the file x.yaml of the current folder."""
    monkeypatch.chdir(tmp_path)

    def from_text(text: str, *overrides: str, **environ: str) -> LoadedJob:
        Path("x.yaml").write_text(text)
        return load_job("x.yaml", overrides, environ)

    return from_text


def problems(load: Load, text: str, *overrides: str, **environ: str) -> str:
    """The message with which ``text`` is refused."""
    with pytest.raises(JobFileError) as caught:
        load(text, *overrides, **environ)
    assert caught.value.exit_code == 2
    return str(caught.value)


def edited(old: str, new: str) -> str:
    """The valid job with one piece exchanged."""
    assert VALID.count(old) == 1
    return VALID.replace(old, new)


MISTAKES = {
    "a batch that cannot be split": (
        "  batch_size: 16",
        "  batch_size: 15\n  microbatch_size: 4",
        "9:3: train.batch_size: 15 cannot be split over 2 workers (cluster.workers); "
        "use a multiple of 2",
    ),
    "a misspelt key": (
        "epochs: 10",
        "epochs: 10\n  checkpoint_evry: 3",
        "11:3: train.checkpoint_evry: unknown key; did you mean checkpoint_every?",
    ),
    "a misspelt key of the model": (
        "image_size: 64",
        "image_size: 64\n  filter: 8",
        "6:3: model.filter: unknown key; did you mean filters?",
    ),
    "a key in the wrong section": (
        "name: cats",
        "name: cats\nbatch_size: 3",
        "3:1: batch_size: unknown key here; did you mean train.batch_size?",
    ),
    "a key like no other": (
        "train: cats/train",
        "train: cats/train\n  zzz: 1",
        f"8:3: data.zzz: unknown key; data has: {FIELDS_OF_DATA}",
    ),
    "a missing key": (
        "  batch_size: 16\n",
        "",
        "8:1: train.batch_size: is missing; add `batch_size: <a whole number>` under `train:` "
        "(Images per optimizer step over all workers: the same on 1 or 64 of them)",
    ),
    "a missing section": (
        "data:\n  train: cats/train\n",
        "",
        "2:1: data: is missing; add a section `data:` to the file with train",
    ),
    "a quoted number": (
        "16",
        '"15"',
        "9:3: train.batch_size: '15' is a string; expected a whole number; remove the quotes",
    ),
    "a number with a separator": (
        "16",
        "1_000",
        "9:3: train.batch_size: '1_000' is a string; expected a whole number; write 1000",
    ),
    "a word for a number": (
        "epochs: 10",
        "epochs: ten",
        "10:3: train.epochs: 'ten' is a string; expected a number; write one, such as 0.5",
    ),
    "a fraction of a worker": (
        "name: cats",
        "name: cats\ncluster: {workers: 1.5}",
        "3:11: cluster.workers: 1.5 is a number with decimals; expected a whole number; use 1 or 2",
    ),
    "fewest workers above the most": (
        "name: cats",
        "name: cats\ncluster: {workers: {min: 4, max: 2}}",
        "3:21: cluster.workers.min: 4 is more than cluster.workers.max, which is 2",
    ),
    "more workers than images": (
        "name: cats",
        "name: cats\ncluster: {workers: {min: 1, max: 32}}",
        "10:3: train.batch_size: 16 leaves some of 32 workers (cluster.workers.max) without an "
        "image; use 32 or more",
    ),
    "a range of workers without its end": (
        "name: cats",
        "name: cats\ncluster: {workers: {min: 2}}",
        "3:11: cluster.workers.max: is missing; add `max: <a whole number>` under "
        "`cluster.workers:` (Most workers to train with)",
    ),
    "no worker": (
        "name: cats",
        "name: cats\ncluster: {workers: 0}",
        "3:11: cluster.workers: 0 is out of range; use a whole number above 0",
    ),
    "a float for a whole number": (
        "16",
        "1e2",
        "9:3: train.batch_size: 100.0 is a number with decimals; expected a whole number; "
        "write 100",
    ),
    "a boolean for a number": (
        "16",
        "true",
        "9:3: train.batch_size: true is not a number; expected a whole number; "
        "write one, such as 16",
    ),
    "yes in a boolean": (
        "train: cats/train",
        "train: cats/train\n  augment: {flip: yes}",
        "8:13: data.augment.flip: 'yes' is a string; expected true or false; write true",
    ),
    "off in a boolean": (
        "train: cats/train",
        "train: cats/train\n  augment: {flip: Off}",
        "8:13: data.augment.flip: 'Off' is a string; expected true or false; write false",
    ),
    "a number for text": (
        "cats/train",
        "3",
        "7:3: data.train: 3 is a whole number; expected text; put quotes around it",
    ),
    "nothing where a value belongs": (
        "cats/train",
        "",
        "7:3: data.train: null is empty; expected text; give a value or remove the key",
    ),
    "an empty section": (
        "data:\n  train: cats/train",
        "data:",
        "6:1: data: is empty; expected a section; indent its keys below it: "
        "train, validation, source, direction ...",
    ),
    "a scalar for a section": (
        "name: cats",
        "name: cats\ncluster: 3",
        "3:1: cluster: 3 is a whole number; expected a section; indent its keys below it: "
        "workers, gpus_per_worker, cpus_per_worker, max_failures ...",
    ),
    "a list for a section": (
        "name: cats",
        "name: cats\ncluster: [3]",
        "3:1: cluster: is a list; expected a section; indent its keys below it: "
        "workers, gpus_per_worker, cpus_per_worker, max_failures ...",
    ),
    "a number out of range": (
        "epochs: 10",
        "epochs: 10\n  ema_decay: 1.0",
        "11:3: train.ema_decay: 1.0 is out of range; use a number above 0 and below 1",
    ),
    "zero where more is needed": (
        "16",
        "0",
        "9:3: train.batch_size: 0 is out of range; use a whole number above 0",
    ),
    "a choice in capitals": (
        "epochs: 10",
        "epochs: 10\n  precision: FP32",
        "11:3: train.precision: 'FP32' is not a choice; expected fp32 or bf16; use fp32",
    ),
    "a number that is no choice": (
        "image_size: 64",
        "image_size: 64\n  receptive_field: 15",
        "6:3: model.receptive_field: 15 is not a choice; expected 1, 16, 34, 70, 142 or 286; "
        "use 16",
    ),
    "a choice like no other": (
        "image_size: 64",
        "image_size: 64\n  norm: group",
        "6:3: model.norm: 'group' is not a choice; expected batch or instance; use one of these",
    ),
    "a misspelt model": (
        "name: pix2pix",
        "name: pixpix\n  foo: 3",
        f"4:3: model.name: no model is called 'pixpix'; did you mean pix2pix? "
        f"models/ has: {MODELS}",
    ),
    "no model": (
        "  name: pix2pix\n",
        "",
        f"3:1: model.name: is missing; add `name: <model>` under `model:`; models/ has: {MODELS}",
    ),
    "a check of the model's own": (
        "64",
        "100",
        "5:3: model.image_size: 100 must be a power of two, at least 16; use 64 or 128",
    ),
    "a name with a space": (
        "name: cats",
        "name: my cats",
        "2:1: name: 'my cats' is not allowed here (Name of the job: letters, digits, dots, "
        "dashes); use my-cats",
    ),
    "a leading zero": (
        "16",
        "010",
        "9:15: train.batch_size: YAML 1.1 reads 010 as 8, YAML 1.2 as 10: write 10, "
        "or 0o10 for octal",
    ),
    "an infinite number": (
        "16",
        ".inf",
        "9:15: train.batch_size: .inf is not a finite number; write a number, or null for none",
    ),
    "no number at all": (
        "10",
        ".nan",
        "10:11: train.epochs: .nan is not a finite number; write a number, or null for none",
    ),
    "a number beyond all numbers": (
        "10",
        "1e999",
        "10:11: train.epochs: 1e999 is too large for a number; write a smaller one",
    ),
    "a duplicate key": (
        "epochs: 10",
        "epochs: 10\n  batch_size: 8",
        "11:3: train.batch_size: duplicate key: it is on line 9 already; keep one of the two",
    ),
    "a tag that would build an object": (
        "cats/train",
        "!!python/object/apply:os.system [ls]",
        "7:10: data.train: tag !!python/object/apply:os.system is not allowed; "
        "write a plain value without it",
    ),
    "a date": (
        "16",
        "2001-01-01",
        "9:3: train.batch_size: '2001-01-01' is a string; expected a whole number; "
        "write one, such as 16",
    ),
    "a key that is no string": (
        "name: cats",
        "name: cats\n3: 4",
        "3:1: key '3' is not a string; put quotes around it or correct it",
    ),
    "a section that contains itself": (
        "data:",
        "data: &d\n  source: *d",
        "6:7: data.source: the alias stands for the section it is in; write it out",
    ),
    "no length": (
        "  epochs: 10\n",
        "",
        "8:1: train: has neither epochs nor images; give one of them, such as `epochs: 10`",
    ),
    "two lengths": (
        "epochs: 10",
        "epochs: 10\n  images: 99",
        "10:3: train.epochs: 10 epochs and train.images 99 are both given; remove one, "
        "or set it to null",
    ),
    "a portion larger than the whole": (
        "epochs: 10",
        "epochs: 10\n  microbatch_size: 32",
        "11:3: train.microbatch_size: 32 is more than a worker's 16 images of a batch "
        "(train.batch_size 16 over cluster.workers 1); use at most 16",
    ),
    "a crop of another size": (
        "train: cats/train",
        "train: cats/train\n  augment: {crop: 32}",
        "8:13: data.augment.crop: 32 must be model.image_size, which is 64; use 64",
    ),
    "a place that a fetch does not write": (
        "train: cats/train",
        "train: cats\n  source: {name: openmoji, size: 64}",
        "7:3: data.train: 'cats' must end in /train, for data.source writes it there; "
        "use for instance data/openmoji/train",
    ),
    "validation without a set": (
        "epochs: 10",
        "epochs: 10\n  validate_every: 5",
        "11:3: train.validate_every: 5 needs a set to validate on; give data.validation",
    ),
    "a variable that is not set": (
        "cats/train",
        "${env:CATS}/train",
        "7:3: data.train: ${env:CATS} needs the environment variable CATS, which is not set; "
        "run `export CATS=...` first, or give a default: ${env:CATS,default}",
    ),
    "a reference cut short": (
        "cats/train",
        "${env:CATS",
        "7:3: data.train: '${env:CATS' holds a reference that is not whole; write ${env:NAME} "
        "or ${env:NAME,default}",
    ),
}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("400", "400 is a whole number; expected a list of whole numbers; write one, such as "
         "[400, 200]"),
        ("[400,0]", "0 is out of range; use a whole number above 0"),
        ("[400,x]", "'x' is a string; expected a whole number; write one, such as 16"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_list_is_told_for_the_list_or_its_item(
    value: str, expected: str, tmp_path: Path
) -> None:
    path = tmp_path / "x.yaml"
    path.write_text((Path(__file__).parent.parent / "jobs/vae.yaml").read_text())
    with pytest.raises(JobFileError) as error:
        load_job(path, [f"model.hidden={value}"])
    assert str(error.value).endswith(expected)


@pytest.mark.parametrize("case", MISTAKES)
def test_each_mistake_is_told_with_place_path_value_and_remedy(load: Load, case: str) -> None:
    old, new, expected = MISTAKES[case]
    overrides = ["cluster.workers=2"] if "split" in case else []
    assert problems(load, edited(old, new), *overrides) == f"x.yaml:{expected}"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (
            "data.memory=lots",
            "data.memory: 'lots' is no size; write a number with a unit, such as 512MiB or 2GiB",
        ),
        (
            "data.memory=1.5",
            "data.memory: 1.5 is no size; write a number with a unit, such as 512MiB or 2GiB",
        ),
        (
            "data.window=16MiB",
            "data.memory: 512MiB is too little for the 96 lanes of a worker (data.lanes 96) with "
            "windows of 16MiB (data.window); use 2048MiB or more, or a smaller window",
        ),
        (
            "data.cache={folder: /tmp/x}",
            "data.cache.limit: is missing; add `limit: <a size>` under `data.cache:` (Most bytes "
            "to keep)",
        ),
    ],
)
def test_a_mistake_in_a_size_says_what_to_write(load: Load, override: str, expected: str) -> None:
    assert problems(load, VALID, override).endswith(expected)


SYNTAX = {
    "": "1:1: the file is empty; a job has the sections name, model, data and train: see `jobs/`",
    "# nothing\n": "1:1: the file is empty; a job has the sections name, model, data and train: "
    "see `jobs/`",
    "- a\n": "1:1: the file is not a list of keys; a job has the sections name, model, data and "
    "train: see `jobs/`",
    "a: [1\n": "1:4: a bracket is opened here and never closed; close it",
    "a: 'b\n": "1:4: a quote is opened here and never closed; close it",
    "a: b: c\n": "1:5: a second `: ` in one line; put quotes around the value",
    "a: b\n  c: d\n": "2:4: a key cannot stand here; indent it like the keys above, and end each "
    "with `: `",
    "a:\n    b: 1\n  c: 2\n": "3:3: the lines of this section are not indented alike; "
    "use the same number of spaces",
    "a:\n\tb: 1\n": "2:1: a tab cannot indent YAML; use spaces",
    "a: 1\n---\nb: 2\n": "2:1: a second document begins here; a job file is one: remove `---`",
    "a: *b\n": "1:4: found undefined alias 'b'; define it first with & and the same name",
    "a: {b: ${env:B}}\n": '1:9: a reference between { } or [ ] needs quotes; write "${env:NAME}"',
    "a: \0\n": "1:4: character '\\x00' is not allowed in YAML; remove it",
}


@pytest.mark.parametrize("text", SYNTAX)
def test_what_is_no_yaml_is_told_in_one_short_line(load: Load, text: str) -> None:
    assert problems(load, text) == f"x.yaml:{SYNTAX[text]}"


def test_all_mistakes_are_told_at_once_in_the_order_of_the_file(load: Load) -> None:
    text = edited("16", "010").replace("cats/train", "3").replace("name: cats", "name: my cats")
    lines = problems(load, text, "train.seed=-1").splitlines()
    places = [line.split(" ")[0] for line in lines]
    assert places == ["x.yaml:2:1:", "x.yaml:7:3:", "x.yaml:9:15:", "--set"]


def test_aliases_of_aliases_do_not_fill_the_memory(load: Load) -> None:
    rows = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    text = "\n".join(["a0: &a0 x", *rows])
    expected = "values contain themselves or are nested too deeply; write them out once"
    assert problems(load, text) == f"x.yaml:1:1: {expected}"


def test_a_valid_job_is_read_with_its_shebang_and_its_defaults(load: Load) -> None:
    loaded = load(VALID)
    assert loaded.text == VALID
    assert loaded.job.train.batch_size == 16
    assert loaded.job.cluster.workers == 1
    assert loaded.job.model.model_dump()["filters"] == 64


def test_numbers_follow_yaml_1_2(load: Load) -> None:
    text = edited("image_size: 64", "image_size: 0x40\n  learning_rate: 1e-4")
    model = load(text).job.model.model_dump()
    assert (model["image_size"], model["learning_rate"]) == (64, 0.0001)


def test_anchors_aliases_and_merge_keys_work(load: Load) -> None:
    text = edited("image_size: 64", "<<: {image_size: &size 64, filters: 8}\n  filters: 16")
    text = text.replace("cats/train", "cats/train\n  augment: {crop: *size}")
    job = load(text).job
    assert (job.model.model_dump()["filters"], job.data.augment.crop) == (16, 64)


def test_an_override_wins_over_the_file_and_the_last_over_the_first(load: Load) -> None:
    loaded = load(VALID, "train.batch_size=8", "cluster.workers=2", "train.batch_size=4")
    assert (loaded.job.train.batch_size, loaded.job.cluster.workers) == (4, 2)
    assert loaded.overrides == ("train.batch_size=8", "cluster.workers=2", "train.batch_size=4")


def test_an_override_can_take_a_value_back_or_give_a_whole_section(load: Load) -> None:
    loaded = load(VALID, "train.epochs=null", "train.images=99", "data.augment={flip: true}")
    assert (loaded.job.train.epochs, loaded.job.train.images) == (None, 99)
    assert loaded.job.data.augment.flip is True


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (
            "train.batch_size='15'",
            "--set train.batch_size='15': train.batch_size: '15' is a string; expected a whole "
            "number; remove the quotes",
        ),
        (
            "train.batchsize=15",
            "--set train.batchsize=15: train.batchsize: unknown key; did you mean batch_size?",
        ),
        (
            "train.batch_size=010",
            "--set train.batch_size=010: train.batch_size: YAML 1.1 reads 010 as 8, YAML 1.2 as "
            "10: write 10, or 0o10 for octal",
        ),
        (
            "name.first=x",
            "--set name.first=x: name.first: cannot be set, for name is no section; set name "
            "itself",
        ),
        (
            "data.augment={resize: 32}",
            "--set data.augment={resize: 32}: data.augment.resize: 32 is smaller than "
            "model.image_size, which is 64; use 64 or more",
        ),
        (
            "train.seed=[1",
            "--set train.seed=[1: train.seed: a bracket is opened here and never closed; close it",
        ),
    ],
)
def test_a_wrong_override_is_told_by_its_option(load: Load, override: str, expected: str) -> None:
    assert problems(load, VALID, override) == expected


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.seed", "--set train.seed: has no `=`; write --set train.batch_size=32"),
        (
            "=3",
            "--set =...: has no key before `=` or around a dot; write --set train.batch_size=32",
        ),
        (
            "train..seed=3",
            "--set train..seed=...: has no key before `=` or around a dot; "
            "write --set train.batch_size=32",
        ),
    ],
)
def test_an_override_without_key_or_value_is_a_usage_error(
    load: Load, override: str, expected: str
) -> None:
    with pytest.raises(UsageError, match=re.escape(expected)):
        load(VALID, override)


def test_an_unquoted_reference_has_the_type_of_its_value_and_a_quoted_one_is_text(
    load: Load,
) -> None:
    assert load(edited("16", "${env:BS}"), BS="8").job.train.batch_size == 8
    assert load(edited("16", "${env:BS,4}")).job.train.batch_size == 4
    assert load(edited("16", "${env:BS,4}"), BS="").job.train.batch_size == 4
    message = problems(load, edited("16", '"${env:BS}"'), BS="8")
    assert message == (
        "x.yaml:9:3: train.batch_size: ${env:BS} is a string; expected a whole number; "
        "remove the quotes"
    )


def test_references_stand_inside_longer_text(load: Load) -> None:
    text = edited("cats/train", "s3://${env:BUCKET}/${env:SET,cats}/train")
    assert load(text, BUCKET="b").job.data.train == "s3://b/cats/train"


SECRETS = {
    "a wrong type": ("epochs: 10", "epochs: 10\n  ema_decay: ${env:S}"),
    "a cross-field mistake": ("cats/train", '"${env:S}"\n  source: {name: openmoji, size: 64}'),
    "a part of a text": ("cats/train", "x${env:S}y\n  source: {name: openmoji, size: 64}"),
    "a name": ("name: cats", "name: ${env:S}"),
    "a model": ("name: pix2pix", "name: ${env:S}"),
    "a choice": ("epochs: 10", "epochs: 10\n  precision: ${env:S}"),
}


@pytest.mark.parametrize("secret", ["hunter2 !", "a'b\"c", "007", "4711", "x: [", "päss/wörd"])
@pytest.mark.parametrize("case", SECRETS)
def test_what_the_environment_holds_is_never_printed(load: Load, case: str, secret: str) -> None:
    old, new = SECRETS[case]
    message = problems(load, edited(old, new), S=secret)
    assert secret not in message
    assert repr(secret)[1:-1] not in message
    assert "${env:S}" in message


def test_numbers_from_the_environment_are_shown_as_references_in_cross_field_mistakes(
    load: Load,
) -> None:
    text = edited("16", "${env:BS}") + "cluster: {workers: '${env:W}'}\n"
    text = text.replace("cluster: {workers: '${env:W}'}", "cluster:\n  workers: ${env:W}")
    assert problems(load, text, BS="31", W="2") == (
        "x.yaml:9:3: train.batch_size: ${env:BS} cannot be split over ${env:W} workers "
        "(cluster.workers); use a multiple of ${env:W}"
    )


def test_passwords_in_uris_and_values_of_secret_keys_are_masked(load: Load) -> None:
    text = VALID + "tracking: {uri: [https://me:pw@host], password: pw}\n"
    assert "pw" not in problems(load, text)
    assert "pw" not in problems(load, VALID, "tracking.password=pw", "name=http://me:pw@h")
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
        ("s3://bucket/key", "s3://bucket/key"),
    ],
)
def test_only_the_user_and_password_of_a_uri_are_masked(uri: str, shown: str) -> None:
    assert mask(uri) == shown


def test_the_rendered_job_has_defaults_and_references_and_loads_again(load: Load) -> None:
    text = edited("16", "${env:BS}").replace("cats/train", '"${env:SET}/train"')
    text = text.replace("name: cats", "name: 'no'\nstorage: '0123'")
    loaded = load(text, BS="37", SET="secret")
    rendered = loaded.render()
    assert "  batch_size: ${env:BS}\n" in rendered
    assert '  train: "${env:SET}/train"\n' in rendered
    assert "  filters: 64\n" in rendered
    assert "secret" not in rendered
    assert "37" not in rendered
    assert "  memory: 512MiB\n" in rendered
    assert load(rendered, BS="37", SET="secret").job == loaded.job


def test_a_default_that_was_used_is_rendered_as_its_value(load: Load) -> None:
    text = edited("16", "${env:BS,12}").replace("cats/train", "'${env:SET,cats}/train'")
    loaded = load(text + "storage: '${env:STORE,0123}'\n")
    rendered = loaded.render()
    assert "${env" not in rendered
    assert "  batch_size: 12\n" in rendered
    assert "  train: cats/train\n" in rendered
    assert loaded.shown("storage") == "0123"
    assert load(rendered).job == loaded.job


def test_a_reference_in_the_default_of_another_is_refused(load: Load) -> None:
    # Its text would be the value, and mean something else once it is rendered.
    message = problems(load, edited("cats/train", "${env:A,${env:B}}"), B="b")
    assert "holds a reference that is not whole" in message


def test_a_loaded_job_does_not_print_its_secrets(load: Load) -> None:
    loaded = load(edited("cats/train", "${env:SET}/train"), SET="hunter2")
    assert "hunter2" not in repr(loaded)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("pix2pux.yaml", "pix2pux.yaml: there is no such file; did you mean pix2pix.yaml?"),
        ("pix2pix", "pix2pix: there is no such file; did you mean pix2pix.yaml?"),
        ("folder", "folder: is a folder; name a job file in it; folder has: other.yaml"),
        ("nowhere/x.yaml", "nowhere/x.yaml: there is no such file; check the path"),
        ("latin.yaml", "latin.yaml:2:4: byte 0xe9 is not UTF-8; save the file as UTF-8"),
        ("large.yaml", "large.yaml: is larger than 1 MiB, so it is no job file; check the path"),
        ("pix2pix.yaml/x", "pix2pix.yaml/x: cannot be read"),
    ],
)
def test_a_file_that_cannot_be_read_is_told_with_the_nearest_one(
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


def outcome(path: Path, text: str, overrides: list[str]) -> None:
    """Loads ``text``: whatever is raised but a UsageError fails the test."""
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
    outcome(tmp_path / "x.yaml", text, [])


@fuzz
@given(st.data())
def test_a_damaged_job_is_a_job_or_a_job_file_error(tmp_path: Path, data: st.DataObject) -> None:
    text = VALID
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(text)))
        end = min(len(text), start + data.draw(st.integers(0, 12)))
        text = text[:start] + data.draw(st.sampled_from(PIECES)) + text[end:]
    outcome(tmp_path / "x.yaml", text, [])


@fuzz
@given(st.lists(st.sampled_from(PIECES), max_size=4).map("".join))
def test_an_arbitrary_override_is_a_job_or_a_usage_error(tmp_path: Path, value: str) -> None:
    outcome(tmp_path / "x.yaml", VALID, [f"train.batch_size={value}", value])

"""Several training sets in a job file: what is accepted, and one line for each mistake."""

from pathlib import Path

import pytest

from orchestrator.config.load import LoadedJob, load_text
from orchestrator.config.paths import resolve_paths
from orchestrator.errors import JobFileError

JOB = """\
name: mixed
model: {name: autoencoder, image_size: 8}
data:
  train:
    - {path: s3://photos/train, weight: 3}
    - path: ${env:DRAWINGS}
      weight: 0.5
train: {epochs: 2, batch_size: 8}
"""
SETS = "[{path: a, weight: 3}, {path: b/, weight: 1}]"


def load(*overrides: str, text: str = JOB) -> LoadedJob:
    return load_text(text, Path("x.yaml"), overrides, {"DRAWINGS": "/secret/drawings"})


def test_a_list_of_sets_has_paths_and_weights_and_is_rendered_without_the_environment() -> None:
    loaded = load()
    found = [(each.path, each.weight) for each in loaded.job.data.training_sets]
    assert found == [("s3://photos/train", 3), ("/secret/drawings", 0.5)]
    assert "secret" not in loaded.render()
    assert load(text=loaded.render()).job == loaded.job
    assert loaded.display("data", "train", 1, "path") == "${env:DRAWINGS}"


def test_a_single_set_stays_a_string() -> None:
    job = load("data.train=photos/train").job
    assert job.data.train == "photos/train"
    assert [(each.path, each.weight) for each in job.data.training_sets] == [("photos/train", 1)]


def test_set_replaces_the_sets_and_relative_paths_become_absolute() -> None:
    job = resolve_paths(load(f"data.train={SETS}").job)
    paths = [each.path for each in job.data.training_sets]
    assert paths == [str(Path.cwd() / "a"), str(Path.cwd() / "b")]


@pytest.mark.parametrize(
    ("value", "mistake"),
    [
        ("[]", "data.train: has 0 values; give at least 2"),
        ("[{path: a, weight: 1}]", "data.train: has 1 value; give at least 2"),
        (
            "[" + ", ".join(f"{{path: s{n}, weight: 1}}" for n in range(33)) + "]",
            "data.train: has 33 values; give at most 32",
        ),
        ("5", "data.train: 5 is an integer; expected a string or a list of mappings; put quotes"),
        ("{path: a, weight: 1}", "data.train: is a mapping; expected a string or a list of"),
        ("[a, b]", "data.train.0: 'a' is a string; expected a mapping"),
        (
            "[{path: a, weight: 0}, {path: b, weight: 1}]",
            "data.train.0.weight: 0 is out of range; use a number of at least 1e-06",
        ),
        (
            "[{path: a, weight: 1}, {path: b, weight: -1}]",
            "data.train.1.weight: -1 is out of range",
        ),
        (
            "[{path: a, weight: .inf}, {path: b, weight: 1}]",
            "data.train.0.weight: .inf is not a finite number",
        ),
        (
            "[{path: a, weight: 1}, {path: b}]",
            "data.train.1.weight: is missing; add `weight: <number>` under `data.train.1:`",
        ),
        (
            "[{path: a, weigth: 1, weight: 1}, {path: b, weight: 1}]",
            "data.train.0.weigth: unknown key; did you mean weight?",
        ),
        (
            "[{path: a, weight: 1}, {path: a/, weight: 2}]",
            "data.train.1.path: 'a/' is data.train.0.path too, so that its samples would come "
            "twice in a pass; list it once, with a greater weight",
        ),
        ("[{path: a, weight: 1}, {path: 's3:/b', weight: 2}]", "data.train.1.path: 's3:/b'"),
    ],
)
def test_a_mistake_in_the_sets_gives_one_line(value: str, mistake: str) -> None:
    text = "\n".join((*JOB.splitlines()[:3], f"  train: {value}", JOB.splitlines()[-1], ""))
    with pytest.raises(JobFileError) as raised:
        load(text=text)
    first = str(raised.value).splitlines()[0]
    assert first.startswith("x.yaml:4:")
    assert mistake in first


def test_a_source_is_refused_with_several_sets() -> None:
    with pytest.raises(JobFileError, match=r"data\.source: fetches one set, and data\.train"):
        load("data.source={name: digits, size: 8}")


def test_a_sweep_over_weights_is_refused() -> None:
    sweep = "{metric: autoencoder/loss, mode: min, trials: 2, space: {data.train.0.weight: "
    with pytest.raises(JobFileError, match=r"data\.train is not a mapping; set data\.train itself"):
        load(f"sweep={sweep}{{uniform: [1, 2]}}}}}}")

"""A table of mistakes in job files, each with its error message."""

from pathlib import Path
from socket import gethostname

import pytest

from orchestrator.config.fields import find_field
from orchestrator.config.load import load_job
from orchestrator.config.messages import RENAMED_KEYS
from orchestrator.errors import JobFileError
from orchestrator.models.base import model_names
from services.fixtures_jobs import Load
from support.plain_jobs import VALID, edit_job, load_error

MODELS = ", ".join(model_names())
FIELDS_OF_DATA = "train, validation, source, direction, augment, binarize, threads, "
FIELDS_OF_DATA += (
    "shuffle_streams, read_size, prefetch_memory, cache, retry_timeout_s, max_corrupt_fraction"
)

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
    "an unknown key without a similar one": (
        "train: cats/train",
        "train: cats/train\n  zzz: 1",
        f"8:3: data.zzz: unknown key; data has: {FIELDS_OF_DATA}",
    ),
    "a missing key": (
        "  batch_size: 16\n",
        "",
        "8:1: train.batch_size: is missing; add `batch_size: <integer>` under `train:` "
        "(Global batch size, over all workers: results do not depend on the number of workers)",
    ),
    "a missing section": (
        "data:\n  train: cats/train\n",
        "",
        "2:1: data: is missing; add a section `data:` to the file (required keys: train)",
    ),
    "a path with NUL": (
        "cats/train",
        '"cats\\0train"',
        "7:3: data.train: 'cats\\x00train' has a NUL character, which no path or name may have; "
        "remove it",
    ),
    "a table of prices in a missing home": (
        "name: cats",
        "name: cats\ncost: {prices: ~nobody-here/p.yaml, kind: a}",
        f"3:8: cost.prices: ~nobody-here/p.yaml: there is no user nobody-here on {gethostname()}; "
        "write the path without ~nobody-here",
    ),
    "a quoted number": (
        "16",
        '"15"',
        "9:3: train.batch_size: '15' is a string; expected an integer; remove the quotes",
    ),
    "a number with a separator": (
        "16",
        "1_000",
        "9:3: train.batch_size: '1_000' is a string; expected an integer; write 1000",
    ),
    "a word as a number": (
        "epochs: 10",
        "epochs: ten",
        "10:3: train.epochs: 'ten' is a string; expected a number; write one, such as 0.5",
    ),
    "a float for the number of workers": (
        "name: cats",
        "name: cats\ncluster: {workers: 1.5}",
        "3:11: cluster.workers: 1.5 is a float; expected an integer; use 1 or 2",
    ),
    "a minimum of workers above the maximum": (
        "name: cats",
        "name: cats\ncluster: {workers: {min: 4, max: 2}}",
        "3:21: cluster.workers.min: 4 is more than cluster.workers.max, which is 2",
    ),
    "more workers than images in a batch": (
        "name: cats",
        "name: cats\ncluster: {workers: {min: 1, max: 32}}",
        "10:3: train.batch_size: 16 leaves some of 32 workers (cluster.workers.max) without an "
        "image; use 32 or more",
    ),
    "a range of workers without a maximum": (
        "name: cats",
        "name: cats\ncluster: {workers: {min: 2}}",
        "3:11: cluster.workers.max: is missing; add `max: <integer>` under "
        "`cluster.workers:` (Maximum number of workers)",
    ),
    "zero workers": (
        "name: cats",
        "name: cats\ncluster: {workers: 0}",
        "3:11: cluster.workers: 0 is out of range; use an integer above 0 and at most 1,000,000",
    ),
    "a float for an integer": (
        "16",
        "1e2",
        "9:3: train.batch_size: 100.0 is a float; expected an integer; write 100",
    ),
    "a boolean for a number": (
        "16",
        "true",
        "9:3: train.batch_size: true is not a number; expected an integer; write one, such as 16",
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
    "a number for a string": (
        "cats/train",
        "3",
        "7:3: data.train: 3 is an integer; expected a string or a list of mappings; "
        "put quotes around it",
    ),
    "a key without a value": (
        "cats/train",
        "",
        "7:3: data.train: is empty; expected a string or a list of mappings; "
        "give a value or remove the key",
    ),
    "an empty section": (
        "data:\n  train: cats/train",
        "data:",
        "6:1: data: is empty; expected a mapping; indent its keys under it: "
        "train, validation, source, direction ...",
    ),
    "a scalar for a section": (
        "name: cats",
        "name: cats\ncluster: 3",
        "3:1: cluster: 3 is an integer; expected a mapping; indent its keys under it: "
        "workers, gpus_per_worker, cpus_per_worker, max_failures ...",
    ),
    "a list for a section": (
        "name: cats",
        "name: cats\ncluster: [3]",
        "3:1: cluster: is a list; expected a mapping; indent its keys under it: "
        "workers, gpus_per_worker, cpus_per_worker, max_failures ...",
    ),
    "a number out of range": (
        "epochs: 10",
        "epochs: 10\n  ema_decay: 1.0",
        "11:3: train.ema_decay: 1.0 is out of range; use a number above 0 and below 1",
    ),
    "zero for a positive integer": (
        "16",
        "0",
        "9:3: train.batch_size: 0 is out of range; use an integer above 0 and at most 1,048,576",
    ),
    "a choice in capitals": (
        "epochs: 10",
        "epochs: 10\n  precision: FP32",
        "11:3: train.precision: 'FP32' is not a valid choice; expected fp32 or bf16; use fp32",
    ),
    "an invalid choice between numbers": (
        "image_size: 64",
        "image_size: 64\n  receptive_field: 15",
        "6:3: model.receptive_field: 15 is not a valid choice; expected 1, 16, 34, 70, 142 or 286; "
        "use 16",
    ),
    "an unknown choice without a similar one": (
        "image_size: 64",
        "image_size: 64\n  norm: group",
        "6:3: model.norm: 'group' is not a valid choice; expected batch or instance; use "
        "one of these",
    ),
    "a misspelt model": (
        "name: pix2pix",
        "name: pixpix\n  foo: 3",
        f"4:3: model.name: there is no model 'pixpix'; did you mean pix2pix? models/ has: {MODELS}",
    ),
    "no model": (
        "  name: pix2pix\n",
        "",
        f"3:1: model.name: is missing; add `name: <model>` under `model:`; models/ has: {MODELS}",
    ),
    "a failed check of the model": (
        "64",
        "100",
        "5:3: model.image_size: 100 must be a power of two, at least 16; use 64 or 128",
    ),
    "a name with a space": (
        "name: cats",
        "name: my cats",
        "2:1: name: 'my cats' is not allowed here (Name of the job: letters, digits, dots "
        "and dashes); use my-cats",
    ),
    "a leading zero": (
        "16",
        "010",
        "9:15: train.batch_size: YAML 1.1 reads 010 as 8, YAML 1.2 as 10; write 10, "
        "or 0o10 for octal",
    ),
    "an infinite number": (
        "16",
        ".inf",
        "9:15: train.batch_size: .inf is not a finite number; write a number, or null for none",
    ),
    "not a number": (
        "10",
        ".nan",
        "10:11: train.epochs: .nan is not a finite number; write a number, or null for none",
    ),
    "a number that overflows": (
        "10",
        "1e999",
        "10:11: train.epochs: 1e999 is too large for a number; write a smaller one",
    ),
    "a duplicate key": (
        "epochs: 10",
        "epochs: 10\n  batch_size: 8",
        "11:3: train.batch_size: duplicate key: already defined on line 9; keep one of the two",
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
        "9:3: train.batch_size: '2001-01-01' is a string; expected an integer; "
        "write one, such as 16",
    ),
    "a key that is not a string": (
        "name: cats",
        "name: cats\n3: 4",
        "3:1: key '3' is not a string; put quotes around it or correct it",
    ),
    "a section that contains itself": (
        "data:",
        "data: &d\n  source: *d",
        "6:7: data.source: the alias refers to a section that contains it; write it out",
    ),
    "neither epochs nor images": (
        "  epochs: 10\n",
        "",
        "8:1: train: has neither epochs nor images; give one of them, such as `epochs: 10`",
    ),
    "both epochs and images": (
        "epochs: 10",
        "epochs: 10\n  images: 99",
        "10:3: train.epochs: 10 epochs and train.images 99 are both given; remove one, "
        "or set it to null",
    ),
    "a microbatch larger than the batch": (
        "epochs: 10",
        "epochs: 10\n  microbatch_size: 32",
        "11:3: train.microbatch_size: 32 is more than a worker's 16 images of a batch "
        "(train.batch_size 16 over cluster.workers 1); use at most 16",
    ),
    "a crop of another size": (
        "train: cats/train",
        "train: cats/train\n  augment: {crop: 32}",
        "8:13: data.augment.crop: 32 must equal model.image_size, which is 64; use 64",
    ),
    "a training set that the source does not write": (
        "train: cats/train",
        "train: cats\n  source: {name: openmoji, size: 64}",
        "7:3: data.train: 'cats' must end in /train, where data.source writes the training set; "
        "use for example data/openmoji/train",
    ),
    "validation without a validation set": (
        "epochs: 10",
        "epochs: 10\n  validate_every: 5",
        "11:3: train.validate_every: 5 needs a validation set; set data.validation",
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
        "7:3: data.train: '${env:CATS' contains an incomplete reference; write ${env:NAME} "
        "or ${env:NAME,default}",
    ),
}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("400", "400 is an integer; expected a list of integers; write one, such as "
         "[400, 200]"),
        ("[400,0]", "0 is out of range; use an integer above 0 and at most 65,536"),
        ("[400,x]", "'x' is a string; expected an integer; write one, such as 16"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_list_has_the_path_of_the_list_or_its_item(
    value: str, expected: str, tmp_path: Path
) -> None:
    path = tmp_path / "x.yaml"
    path.write_text((Path(__file__).parents[2] / "jobs/vae.yaml").read_text())
    with pytest.raises(JobFileError) as error:
        load_job(path, [f"model.hidden={value}"])
    assert str(error.value).endswith(expected)


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_reported_with_position_path_value_and_fix(load: Load, case: str) -> None:
    old, new, expected = MISTAKES[case]
    overrides = ["cluster.workers=2"] if "split" in case else []
    assert load_error(load, edit_job(old, new), *overrides) == f"x.yaml:{expected}"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (
            "data.prefetch_memory=lots",
            "data.prefetch_memory: 'lots' is not a valid size; use a number with a unit, such as "
            "512MiB or 2GiB",
        ),
        (
            "data.prefetch_memory=1.5",
            "data.prefetch_memory: 1.5 is not a valid size; use a number with a unit, such as "
            "512MiB or 2GiB",
        ),
        (
            "data.read_size=16MiB",
            "data.prefetch_memory: 512MiB is too small for a worker's 96 shuffle streams "
            "(data.shuffle_streams 96) with windows of 16MiB (data.read_size); use 2048MiB or "
            "more, or a smaller read_size",
        ),
        (
            "data.cache={folder: /tmp/x}",
            "data.cache.limit: is missing; add `limit: <size>` under `data.cache:` (Maximum "
            "size of the cache)",
        ),
    ],
)
def test_an_invalid_size_is_reported_with_valid_examples(
    load: Load, override: str, expected: str
) -> None:
    assert load_error(load, VALID, override).endswith(expected)


@pytest.mark.parametrize("old", sorted(RENAMED_KEYS))
def test_an_old_key_is_refused_with_its_new_name(load: Load, old: str) -> None:
    lines = load_error(load, VALID, f"{old}=1").splitlines()
    assert f"--set {old}=1: {old}: unknown key; it is now {RENAMED_KEYS[old]}" in lines


def test_every_renamed_key_leads_to_a_field() -> None:
    for old, new in RENAMED_KEYS.items():
        assert find_field(tuple(new.split(".")), {}) is not None
        assert find_field(tuple(old.split(".")), {}) is None

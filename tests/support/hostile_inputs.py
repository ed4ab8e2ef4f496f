"""Files, folders and values as they go wrong, for the fuzzer of the command line."""

import json
import random
import shutil
from pathlib import Path

from PIL import Image

from orchestrator.models.pix2pix import Config
from orchestrator.storage.local import FolderStorage
from support.checkpoints import make_checkpoints, make_state
from support.packed_sets import write_set

JOB = """\
name: cats
model: {name: pix2pix, image_size: 16, filters: 4, discriminator_filters: 4, receptive_field: 16}
data: {train: nowhere/train, validation: nowhere/validation}
train: {batch_size: 4, epochs: 3}
cluster: {workers: 2}
tracking: {uri: "sqlite:///nowhere/mlflow.db", experiment: tiny}
storage: nowhere-runs
"""
SWEEP = (
    JOB
    + """\
sweep:
  search: {train.batch_size: [2, 4]}
  metric: validation/l1
  trials: 3
"""
)
VALUES = (
    "",
    "null",
    "~",
    "[]",
    "{}",
    "-1",
    "0",
    "1e999",
    ".nan",
    "9" * 40,
    "true",
    "'4'",
    "[1, 2]",
    "{a: 1}",
    "2026-11-29",
    "\\ufffd",
    "ü" * 300,
    "!!python/object/apply:os.system [true]",
    "&a [*a]",
    "*b",
    "${env:NO_SUCH_VARIABLE}",
    "${env:",
    "s3://",
    "s3://b/x",
    "../..",
    "x" * 5000,
    "<<: 1",
    "0x10",
    '"\\\\0"',
    "|-",
    ">",
    "? x",
    "- a",
    "%TAG",
    "@x",
    "`",
)
TEXTS = (
    "",
    " ",
    "-",
    "--",
    "nosuch",
    "ü€𝄞",
    "\udcff.yaml",
    "a" * 300,
    "a" * 5000,
    "a\nb",
    "a/b/../c",
    "~nouser/x",
    "s3://",
    "s3://b",
    "s3://b/x",
    "s3://b/../x",
    "S3://B/x",
    "gs://b/x",
    "file://",
    "file:///dev/null/x",
    "http://127.0.0.1:1/x",
    "${env:NO_SUCH_VARIABLE}",
    "%s{}",
    "/dev/null",
    "/dev/null/x",
    "/proc/x",
    "*",
    "?",
    "x@y",
    "x@",
    "@y",
    "a:b",
    "[1, 2]",
    "{",
    "'",
    '"',
    "\t",
    "\x1b[31m",
    "CON",
    ".",
    "..",
    "./",
    "models:/x/1",
    "runs:/x",
)
ADDRESSES = (
    "http://[1", "[1, 2]", "[::1]:1", "x:99999", "127.0.0.1:0", "http://127.0.0.1:x", "http://",
    "http://a:b@127.0.0.1:1", "https://127.0.0.1:1/", "ray://127.0.0.1:1", "s3://[1", "local",
    "auto", "sqlite:///x.db", "sqlite:////dev/null/x", "postgresql://u:p@[1/x", "mysql://",
    "databricks", "file:///tmp", "http://\udcff:1", "http://127.0.0.1:1?x#y",
)  # fmt: skip
NUMBERS = (
    "0",
    "1",
    "2",
    "-1",
    "0.5",
    "1.5",
    "nan",
    "inf",
    "-inf",
    "1e309",
    "9" * 25,
    "abc",
    "",
    " 1",
    "1_0",
    "0x10",
    "1,2",
    "1,,2",
    "0-3",
    "٣",
    "1e3",
    "2147483648",
    "9223372036854775808",
    "16",
    "64",
)
OVERRIDES = (
    "name=",
    "=x",
    "x",
    "",
    "train.batch_size=0",
    "train.batch_size=-4",
    "model.name=nosuch",
    "a.b.c=1",
    "train={",
    "train=[1",
    "train.epochs=1e999",
    "train.epochs=99999999999999999999",
    "model.image_size=9999999999",
    "model=pix2pix",
    "model=",
    "data.train=",
    "data=null",
    "tracking.uri=nosuch://x",
    "tracking.uri=",
    "storage=s3://b/x",
    "storage=",
    "sweep={}",
    "sweep=null",
    "sweep.trials=0",
    "cluster.workers=[1,2]",
    "cluster.workers=[2,1]",
    "cluster.workers=99999999999",
    "cluster.gpus_per_worker=-1",
    "seed=-1",
    "seed=1e400",
    "model.filters=0",
    "train.images=1",
    "name=ü",
    "name=" + "x" * 5000,
    "model.image_size=17",
    "..=1",
    ".=1",
    "train..x=1",
    "train[0]=1",
    "register={name: x}",
    "guard=1",
    "evaluate=1",
    "model.image_size=16.5",
    "train.batch_size=true",
    "\udcff=1",
)
INDEXES = (
    "",
    "{}",
    "[]",
    "null",
    "1",
    '"x"',
    "{",
    "\xff",
    '{"format": 99}',
    '{"shards": {}}',
    '{"shards": [1]}',
    '{"fields": 1}',
    "[" * 3000,
    "9" * 5000,
    '{"format": 1, "shards": null}',
    '{"format": "1"}',
)


NUM_RUNS = 16


def mutate_text(text: str, rng: random.Random) -> str:
    """Change a text in one to three places: lines, values, characters."""
    for _ in range(rng.randint(1, 3)):
        lines = text.split("\n")
        at = rng.randrange(len(lines))
        kind = rng.randrange(6)
        if kind == 0:
            del lines[at]
        elif kind == 1:
            lines.insert(at, lines[rng.randrange(len(lines))] if lines else "")
        elif kind == 2:
            lines[at] = lines[at].partition(":")[0] + ": " + rng.choice(VALUES)
        elif kind == 3:
            lines[at] = rng.choice(("\t", " ", "  ", "- ", "# ", "\x00", "\ufeff")) + lines[at]
        elif kind == 4:
            words = lines[at].split(" ")
            words[rng.randrange(len(words))] = rng.choice(VALUES)
            lines[at] = " ".join(words)
        else:
            place = rng.randrange(len(lines[at]) + 1)
            lines[at] = (
                lines[at][:place] + rng.choice("{}[]:,'\"#&*!|>%@\x7f\ud800") + lines[at][place:]
            )
        text = "\n".join(lines)
    return text


def mutate_json(value: object, rng: random.Random) -> object:
    """Replace a part of a JSON value."""
    wrong: tuple[object, ...] = (
        None,
        -1,
        0,
        10**30,
        1.5,
        True,
        "",
        "x",
        [],
        {},
        [None],
        "../x",
        "/x",
    )
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(sorted(value))
        rest = {name: part for name, part in value.items() if name != key}
        return rest if rng.random() < 0.2 else {**rest, key: mutate_json(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.7:
        at = rng.randrange(len(value))
        return [*value[:at], mutate_json(value[at], rng), *value[at + 1 :]]
    return rng.choice(wrong)


def make_hostile_files(folder: Path, rng: random.Random, num_jobs: int) -> list[str]:
    """Make files and folders in ``folder``; return their names, from there."""
    (folder / "empty.yaml").touch()
    (folder / "binary.yaml").write_bytes(rng.randbytes(2000))
    (folder / "nul.yaml").write_bytes(b"name: x\x00y\n")
    (folder / "latin1.yaml").write_bytes("name: größe\n".encode("latin-1"))
    (folder / "utf16.yaml").write_bytes(JOB.encode("utf-16"))
    (folder / "deep.yaml").write_text("a: " + "[" * 3000)
    (folder / "closed.yaml").write_text("a: " + "[" * 2000 + "]" * 2000)
    (folder / "bomb.yaml").write_text(
        "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))
    )
    (folder / "list.yaml").write_text("- 1\n- 2\n")
    (folder / "two.yaml").write_text(f"{JOB}---\n{JOB}")
    (folder / "job.json").write_text("{}")
    (folder / "ok.yaml").write_text(JOB)
    (folder / "sweep.yaml").write_text(SWEEP)
    for number in range(num_jobs):
        text = mutate_text(rng.choice((JOB, SWEEP)), rng)
        (folder / f"job{number}.yaml").write_bytes(text.encode(errors="surrogatepass"))
    (folder / "loop.yaml").symlink_to("loop.yaml")
    (folder / "gone.yaml").symlink_to("nowhere")
    (folder / "unreadable.yaml").touch(mode=0)
    (folder / "folder").mkdir()
    _make_images(folder / "images", rng)
    _make_sets(folder, rng)
    _make_runs(folder, rng)
    for name in ("run.json", "000001.json", "sweep.json", "manifest.json", "state.json"):
        place = folder / f"stores/{name.partition('.')[0]}/x/checkpoints/0000"
        place.mkdir(parents=True)
        for parent in (place, *list(place.parents)[:3]):
            (parent / name).write_bytes(rng.choice(INDEXES).encode("latin-1"))
    stores = [f"stores/{path.name}" for path in (folder / "stores").iterdir()]
    runs = [f"run{number}/run" for number in range(NUM_RUNS)]
    names = [path.name for path in folder.iterdir()]
    return sorted([*names, *stores, *(f"{store}/x" for store in stores), "run/run", *runs])


def _make_runs(folder: Path, rng: random.Random) -> None:
    """Runs with checkpoints: one that is good, others with a changed manifest or a cut file."""
    storage = FolderStorage(folder / "run")
    make_checkpoints(storage).save(make_state(512))
    for number in range(NUM_RUNS):
        broken = folder / f"run{number}"
        shutil.copytree(folder / "run", broken)
        path = rng.choice(sorted(path for path in broken.rglob("*") if path.is_file()))
        if path.suffix == ".json":
            path.write_text(json.dumps(mutate_json(json.loads(path.read_text()), rng)))
        else:
            path.write_bytes(path.read_bytes()[: rng.randrange(500)])


def _make_images(images: Path, rng: random.Random) -> None:
    for part in ("A", "B"):
        (images / part).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (20, 16), (40 * number, 0, 0)).save(images / part / f"{number}.png")
    (images / "A/0.png").write_bytes((images / "A/1.png").read_bytes()[:60])
    (images / "A/x.jpg").write_bytes(rng.randbytes(300))
    (images / "A/empty.png").touch()


def _make_sets(folder: Path, rng: random.Random) -> None:
    config = Config(
        name="pix2pix", image_size=16, filters=4, discriminator_filters=4, receptive_field=16
    )
    write_set(folder / "set", config, 4)
    index = json.loads((folder / "set/index.json").read_text())
    for number in range(24):
        broken = folder / f"set{number}"
        shutil.copytree(folder / "set", broken)
        shard = next(broken.glob("*.tar"))
        if number < 4:
            shard.write_bytes(shard.read_bytes()[: rng.randrange(2000)])
        elif number == 4:
            shard.unlink()
        elif number < 8:
            (broken / "index.json").write_bytes(rng.choice(INDEXES).encode("latin-1"))
        else:
            (broken / "index.json").write_text(json.dumps(mutate_json(index, rng)))
    (folder / "set-folder-as-index/index.json").mkdir(parents=True)

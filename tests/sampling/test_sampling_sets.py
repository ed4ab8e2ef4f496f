"""`orchestrator sample` at the size of a data set: the same bytes however it is drawn."""

import hashlib
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from orchestrator.config.data_section import DataSection
from orchestrator.config.job import Job, TrainSection
from orchestrator.data.format.images import to_png
from orchestrator.data.format.index_entries import Origin
from orchestrator.data.format.preparation import Preparation
from orchestrator.data.format.shard_index import INDEX, Index, ShardSet, open_set
from orchestrator.data.format.writer import ShardWriter
from orchestrator.data.loading.compatibility import open_training_set
from orchestrator.data.loading.stream import ShardStream
from orchestrator.data.prepare.check import check_set
from orchestrator.data.prepare.export import export_images
from orchestrator.errors import DataError, EnvironmentProblem
from orchestrator.file_sums import sum_file
from orchestrator.image_grid import to_pixels
from orchestrator.models.base import build_model
from orchestrator.registry.bundle import (
    WEIGHTS,
    Source,
    load_bundle,
    write_bundle,
    write_source,
)
from orchestrator.sampling import image_blocks
from orchestrator.sampling.image_outputs import write_files, write_set
from orchestrator.sampling.sampling_call import SamplingCall
from orchestrator.sampling.sampling_record import RECORD
from orchestrator.storage.open import open_storage
from services.disks import fill
from support.packed_sets import write_set as write_random_set
from support.small import small_config

BLOCK = image_blocks.CPU_BLOCK
SHARD_BYTES = 40_000
"""19 samples of 8 x 8 pixels with a class."""


def write_model(
    folder: Path, name: str, seed: int = 0, version: int = 7, notes: dict[str, Any] | None = None
) -> Path:
    """Write a small model with random weights, as if it had been pulled."""
    config = small_config(name)
    torch.manual_seed(seed)
    weights = build_model(config).inference_module().state_dict()
    write_bundle(folder, config, weights, notes or {})
    write_source(folder, Source(f"small_{name}", version))
    return folder


@pytest.fixture(scope="module")
def conditional(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A class-conditional model of 3 classes: a Gated PixelCNN, slow enough to be interrupted."""
    return write_model(tmp_path_factory.mktemp("conditional"), "gated_pixelcnn")


@pytest.fixture(scope="module")
def translator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pix2pix of 16 pixels."""
    return write_model(tmp_path_factory.mktemp("translator"), "pix2pix")


def call(model: Path, *, seed: int = 5, packed: bool = True) -> SamplingCall:
    return SamplingCall(model, seed, "cpu", SHARD_BYTES if packed else None)


def sample_set(model: Path, out: Path | str, counts: str = "0:20,2:50", **options: Any) -> Index:
    seed = options.pop("seed", 5)
    return write_set(call(model, seed=seed).of_samples(None, (), counts, None), str(out), **options)


def files(place: Path | str) -> dict[str, str]:
    storage = open_storage(str(place))
    return {key: hashlib.sha256(storage.get(key)).hexdigest() for key in storage.list()}


def samples(packed: ShardSet) -> list[tuple[bytes, int | None, str | None]]:
    """The encoded image, the class and the caption of each sample, in order."""
    found = []
    for shard, size in enumerate(packed.shard_sizes):
        for index in range(size):
            members = packed.read(shard, index)
            decoded = packed.decode(members, "")
            found.append((bytes(members["image"]), decoded.label, decoded.caption))
    return found


def test_a_set_holds_what_the_model_draws_block_by_block(conditional: Path, tmp_path: Path) -> None:
    index = sample_set(conditional, tmp_path / "set")
    model, classes = load_bundle(conditional), [0] * 20 + [2] * 50
    expected, threads = [], torch.get_num_threads()
    torch.set_num_threads(1)
    for start in range(0, 70, BLOCK):
        labels = torch.tensor(classes[start : start + BLOCK])
        expected += list(model.sample(5 + start + torch.arange(len(labels)), labels))
    torch.set_num_threads(threads)
    found = samples(open_set(str(tmp_path / "set")))
    assert [image for image, _, _ in found] == [
        to_png(Image.fromarray(to_pixels(image))) for image in expected
    ]
    assert [label for _, label, _ in found] == classes
    assert index.classes == ("0", "1", "2")
    assert index.origin == Origin(
        model="small_gated_pixelcnn",
        version=7,
        weights_sha256=sum_file(conditional / WEIGHTS).sha256,
        seed=5,
    )
    assert check_set(str(tmp_path / "set")).ok
    assert len(index.shards) > 2


def test_any_number_of_processes_draws_the_same_bytes(
    conditional: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_blocks, "WORTH_STARTING_S", 0.0)
    seen: list[tuple[int, int]] = []
    sample_set(conditional, tmp_path / "one", workers=1)
    sample_set(conditional, tmp_path / "two", workers=2, progress=lambda *n: seen.append(n))
    assert files(tmp_path / "one") == files(tmp_path / "two")
    assert seen == [(16, 70), (32, 70), (48, 70), (64, 70), (70, 70)]


class Interrupted(BaseException):
    """Stands for a kill."""


def interrupt_at(count: int) -> Callable[[int, int], None]:
    def progress(done: int, _: int) -> None:
        if done >= count:
            raise Interrupted

    return progress


@pytest.mark.parametrize("after", [1, 33, 70])
def test_a_resumed_set_has_the_bytes_of_an_uninterrupted_one(
    conditional: Path, tmp_path: Path, after: int
) -> None:
    sample_set(conditional, tmp_path / "whole")
    with pytest.raises(Interrupted):
        sample_set(conditional, tmp_path / "out", progress=interrupt_at(after))
    assert INDEX not in files(tmp_path / "out")
    sample_set(conditional, tmp_path / "out")
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_resumed_files_are_those_of_an_uninterrupted_call_and_only_the_rest_is_drawn(
    conditional: Path, tmp_path: Path
) -> None:
    record = call(conditional, packed=False).of_samples(60, (1, 2), None, None)
    write_files(record, str(tmp_path / "whole"))
    with pytest.raises(Interrupted):
        write_files(record, str(tmp_path / "out"), progress=interrupt_at(33))
    (tmp_path / "out/0003.png").unlink()
    seen: list[tuple[int, int]] = []
    write_files(record, str(tmp_path / "out"), progress=lambda *n: seen.append(n))
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    assert seen == [(48, 60), (60, 60)], "the block of the missing image, and the last"


def test_a_command_that_is_killed_twice_ends_with_the_bytes_of_one_that_is_not(
    conditional: Path, tmp_path: Path
) -> None:
    counts, out, kills = "0:200,1:100,2:100", tmp_path / "out", 0
    sample_set(conditional, tmp_path / "whole", counts)
    command = [sys.executable, "-m", "orchestrator", "sample", str(conditional), "--labels", counts]
    command += ["--output", str(out), "--pack", "--seed", "5", "--shard-bytes", str(SHARD_BYTES)]
    chance = random.Random(1)
    for least in (chance.randint(1, 8), chance.randint(9, 18)):
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
            while process.poll() is None and len(list(out.glob("*.tar"))) < least:
                time.sleep(0.01)
            process.kill()
        kills += process.returncode == -signal.SIGKILL
    assert kills == 2
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "400 samples in" in done.stderr
    assert files(out) == files(tmp_path / "whole")


def test_a_training_step_takes_its_batch_from_a_drawn_set(
    conditional: Path, tmp_path: Path
) -> None:
    sample_set(conditional, tmp_path / "set")
    config = small_config("gated_pixelcnn")
    data = DataSection.model_validate({"train": str(tmp_path / "set")})
    job = Job(name="x", model=config, data=data, train=TrainSection(epochs=1, batch_size=8))
    assert open_training_set(job).num_samples == 70
    batch = next(ShardStream(job, 0, 1).training(0))
    assert batch.labels is not None
    assert set(batch.labels.tolist()) <= {0, 2}
    (phase,) = build_model(config).phases()
    loss = phase.loss(batch, {}).value
    loss.backward()
    phase.optimizer.step()
    assert torch.isfinite(loss)


def write_labelled(uri: Path) -> None:
    """A set of 20 pictures of 16 pixels with classes and captions."""
    writer = ShardWriter(
        str(uri), ("image",), image_size=16, channels=3, classes=("cat", "dog"), captions=True
    )
    for n in range(20):
        pixels = np.random.default_rng(n).integers(0, 256, (16, 16, 3), np.uint8)
        writer.add(f"s{n}", {"image": to_png(Image.fromarray(pixels))}, n % 2, f"picture {n}")
    writer.finish()


def test_a_packed_set_is_translated_as_its_images_are_and_keeps_classes_and_captions(
    translator: Path, tmp_path: Path
) -> None:
    write_labelled(tmp_path / "set")
    export_images(open_set(str(tmp_path / "set")), tmp_path / "images", "image")
    for source in ("set", "images"):
        record = call(translator).of_translations(str(tmp_path / source), None, None, None)
        write_set(record, str(tmp_path / f"of {source}"))
    one, two = (open_set(str(tmp_path / f"of {source}")) for source in ("set", "images"))
    assert [image for image, _, _ in samples(one)] == [image for image, _, _ in samples(two)]
    assert [rest for _, *rest in samples(one)] == [[n % 2, f"picture {n}"] for n in range(20)]
    assert one.index.classes == ("cat", "dog")
    record = call(translator, packed=False).of_translations(str(tmp_path / "set"), None, None, None)
    written = write_files(record, str(tmp_path / "files"))
    assert written[7] == "000007.png"
    assert (tmp_path / "files/000007.png").read_bytes() == samples(one)[7][0]


def test_the_second_image_of_pairs_is_translated_if_asked(translator: Path, tmp_path: Path) -> None:
    write_random_set(tmp_path / "pairs", small_config("pix2pix"), 5)
    outputs = []
    for field in (None, "a", "b"):
        record = call(translator).of_translations(str(tmp_path / "pairs"), None, None, field)
        write_set(record, str(tmp_path / f"{field}"))
        outputs.append(samples(open_set(str(tmp_path / f"{field}"))))
    assert outputs[0] == outputs[1] != outputs[2]


def test_a_model_that_was_trained_from_b_to_a_translates_the_second_image_of_pairs(
    translator: Path, tmp_path: Path
) -> None:
    write_random_set(tmp_path / "pairs", small_config("pix2pix"), 5)
    backwards = write_model(tmp_path / "model", "pix2pix", notes={"direction": "BtoA"})
    outputs: list[list[bytes]] = []
    for model, field in ((backwards, None), (backwards, "a"), (translator, "b")):
        record = call(model).of_translations(str(tmp_path / "pairs"), None, None, field)
        place = tmp_path / f"out{len(outputs)}"
        write_set(record, str(place))
        outputs.append([image for image, _, _ in samples(open_set(str(place)))])
    assert outputs[0] == outputs[2] != outputs[1]


@pytest.mark.server
def test_a_bucket_gets_and_gives_the_images_that_a_folder_does(
    conditional: Path, translator: Path, tmp_path: Path, s3: str
) -> None:
    for place in (f"{s3}/drawn", str(tmp_path / "drawn")):
        sample_set(conditional, f"{place}/set")
        record = call(conditional, packed=False).of_samples(20, (), None, None)
        write_files(record, f"{place}/files")
        source = f"{place}/set"
        record = call(translator, packed=False).of_translations(source, None, None, None)
        write_files(record, f"{place}/translated")
        storage = open_storage(f"{place}/inputs")
        for key in ("0.png", "1.png", "below/2.png"):
            storage.put(key, to_png(Image.new("RGB", (20, 16))))
        source = f"{place}/inputs"
        record = call(translator, packed=False).of_translations(source, None, None, None)
        assert write_files(record, f"{place}/from files") == ["0.png", "1.png"]
    assert files(f"{s3}/drawn") == files(tmp_path / "drawn")


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"seed": 6}, r"\(seed 5, not 6\)"),
        ({"counts": "0:20,2:51"}, r"\(classes \[\[0, 20\], \[2, 50\]\], not .*num_images 70, not"),
        ({"model": "other"}, r"weights_sha256 .*, not "),
    ],
)
def test_images_of_two_calls_are_not_mixed(
    conditional: Path, tmp_path: Path, change: dict[str, Any], difference: str
) -> None:
    sample_set(conditional, tmp_path / "out")
    before = files(tmp_path / "out")
    other = write_model(tmp_path / "other", "gated_pixelcnn", seed=1)
    model = other if change.pop("model", None) else conditional
    with pytest.raises(DataError, match=rf"images of another call .*{difference}.*; remove"):
        sample_set(model, tmp_path / "out", **change)
    assert files(tmp_path / "out") == before


def test_images_of_unknown_origin_are_not_added_to(conditional: Path, tmp_path: Path) -> None:
    record = call(conditional, packed=False).of_samples(3, (), None, None)
    write_files(record, str(tmp_path))
    (tmp_path / RECORD).unlink()
    with pytest.raises(DataError, match=rf"0000\.png exists, and no {RECORD} tells what drew it"):
        write_files(record, str(tmp_path))
    for path in tmp_path.glob("*.png"):
        path.unlink()
    (tmp_path / "notes.txt").touch()
    write_files(record, str(tmp_path))
    (tmp_path / RECORD).write_text("[")
    with pytest.raises(DataError, match=rf"{RECORD} is damaged: .*; remove"):
        write_files(record, str(tmp_path))


def test_a_changed_input_is_not_mixed_with_translations_of_the_old_one(
    translator: Path, tmp_path: Path
) -> None:
    """Also if both files have the same size in bytes, as a bitmap has for any content."""
    (tmp_path / "in").mkdir()
    Image.new("RGB", (16, 16)).save(tmp_path / "in/x.bmp")

    def translate() -> None:
        record = call(translator, packed=False).of_translations(
            str(tmp_path / "in"), None, None, None
        )
        write_files(record, str(tmp_path / "out"))

    translate()
    translate()
    before = (tmp_path / "in/x.bmp").stat().st_size
    Image.new("RGB", (16, 16), "red").save(tmp_path / "in/x.bmp")
    assert (tmp_path / "in/x.bmp").stat().st_size == before
    with pytest.raises(DataError, match="images of another call"):
        translate()


def test_a_call_that_draws_nothing_leaves_no_record(translator: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/x.png").write_bytes(b"no image")
    record = call(translator, packed=False).of_translations(str(tmp_path / "in"), None, None, None)
    with pytest.raises(DataError, match=r"x\.png cannot be decoded as an image"):
        write_files(record, str(tmp_path / "out"))
    assert files(tmp_path / "out") == {}


def test_a_model_that_draws_nan_writes_no_images(tmp_path: Path) -> None:
    config = small_config("dcgan")
    weights = build_model(config).inference_module().state_dict()
    for tensor in weights.values():
        if tensor.is_floating_point():
            tensor.fill_(float("nan"))
    write_bundle(tmp_path / "model", config, weights, {})
    record = call(tmp_path / "model", packed=False).of_samples(3, (), None, None)
    with pytest.raises(DataError, match="model dcgan draws values that are not finite"):
        write_files(record, str(tmp_path / "out"))
    assert files(tmp_path / "out") == {}


def test_a_full_disk_is_one_line_and_the_call_goes_on_once_there_is_space(
    conditional: Path,
    small_disk: Path,
) -> None:
    (small_disk / "out").mkdir()
    ballast = fill(small_disk)
    with pytest.raises(EnvironmentProblem, match=r"No space left on device; check .* free space"):
        sample_set(conditional, small_disk / "out")
    ballast.unlink()
    sample_set(conditional, small_disk / "out")
    assert check_set(str(small_disk / "out")).ok


def test_the_set_of_padded_images_notes_how_they_became_square(
    translator: Path, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    Image.new("RGB", (64, 32)).save(tmp_path / "in/wide.png")
    record = call(translator).of_translations(str(tmp_path / "in"), "crop", None, None)
    index = write_set(record, str(tmp_path / "out"))
    assert index.preparation == Preparation("crop")
    assert json.loads((tmp_path / "out" / RECORD).read_text())["preparation"]["fit"] == "crop"

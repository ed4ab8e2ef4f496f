"""``orchestrator sample``: draw images with a trained model, a few or as many as a set has."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from orchestrator.cli.models import DEFAULT_URI, TrackingUri
from orchestrator.cli.output import print_next_steps, progress_counter, quote
from orchestrator.cli.pack import ShardBytesOption, parse_bytes
from orchestrator.console import log_info
from orchestrator.errors import EnvironmentProblem, UsageError
from orchestrator.temporary_folder import temporary_folder

if TYPE_CHECKING:
    from orchestrator.data.format.pixel_values import ValueRange
    from orchestrator.data.prepare.parallel import ParallelMap
    from orchestrator.sampling.sampling_record import SamplingRecord

LARGEST_SEED = 2**53 - 1_000_000
"""With the seeds of all samples after it, below what JavaScript can count to."""
_Device = Literal["auto", "cpu", "cuda"]
_Output = Annotated[
    str, typer.Option(help="Where the images go: a folder, or s3://, gs:// or az://bucket/prefix.")
]
_Input = Annotated[
    str | None,
    typer.Option(
        "--input",
        help="Images to translate, for models that translate: a folder, a prefix or a packed set.",
    ),
]
_Field = Annotated[
    str | None,
    typer.Option(
        help="Image to translate of a packed set of pairs, a or b; by default the "
        "one that the model was trained to translate."
    ),
]
_NumImages = Annotated[
    int | None,
    typer.Option(min=1, max=1_000_000, help="Number of images to sample, for models that sample."),
]
_Label = Annotated[
    list[int] | None,
    typer.Option(
        help="Class number, also several times; by default all classes. Each row of the grid has "
        "the next one."
    ),
]
_Labels = Annotated[
    str | None,
    typer.Option(
        metavar="CLASS:COUNT,...",
        help="Number of images of each class, such as 0:500,3:2000, instead of --num-images.",
    ),
]
_FitInput = Annotated[
    Literal["crop", "pad", "stretch"] | None,
    typer.Option(
        "--fit", help="How input images that are not square become so; by default as in training."
    ),
]
_RangeOfInput = Annotated[
    str | None,
    typer.Option(
        "--range",
        metavar="LOW,HIGH",
        help="Values of black and white of input images such as floats; by default as in training.",
    ),
]
_Seed = Annotated[
    int,
    typer.Option(
        min=0,
        max=LARGEST_SEED,
        help="Seed of every translation, or of the first sample; the next have SEED + 1, ...",
    ),
]
_Workers = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Processes, by default one per core, or one on a GPU; with --cluster, CPUs of the "
        "cluster, by default all.",
    ),
]


def sample(  # noqa: PLR0913, PLR0917 - the options of one command
    model: Annotated[
        str,
        typer.Argument(
            help="NAME (its newest version), NAME@ALIAS, NAME/VERSION, or a pulled folder."
        ),
    ],
    output: _Output,
    input_uri: _Input = None,
    num_images: _NumImages = None,
    label: _Label = None,
    labels: _Labels = None,
    caption: Annotated[
        str | None, typer.Option(help="Caption, for models that follow a text.")
    ] = None,
    field: _Field = None,
    fit: _FitInput = None,
    value_range: _RangeOfInput = None,
    pack: Annotated[
        bool, typer.Option("--pack", help="Write a packed set, ready for data.train.")
    ] = False,
    shard_bytes: ShardBytesOption = "64MiB",
    seed: _Seed = 0,
    device: Annotated[
        _Device, typer.Option(help="Where to draw; auto: on the GPU if there is one.")
    ] = "auto",
    workers: _Workers = None,
    cluster: Annotated[
        bool, typer.Option("--cluster", help="Draw on the CPUs of the Ray cluster of RAY_ADDRESS.")
    ] = False,
    tracking_uri: TrackingUri = DEFAULT_URI,
) -> None:
    """Sample images from a trained model, or translate images.

    Run the command again to resume where it was interrupted.
    """
    is_sampled = num_images is not None or labels is not None
    if (input_uri is not None) == is_sampled:
        raise UsageError("give either --input FOLDER to translate or --num-images N to sample")
    if input_uri is not None and (label or caption is not None):
        raise UsageError("--label and --caption go with --num-images, not with --input")
    if labels is not None and (label or num_images is not None):
        raise UsageError("--labels has classes and numbers: leave --label and --num-images out")
    if is_sampled and (fit or value_range):
        raise UsageError("--fit and --range go with --input, not with --num-images")
    if is_sampled and field:
        raise UsageError("--field goes with --input, not with --num-images")
    asked, max_bytes = _parse_range(value_range), parse_bytes(shard_bytes)
    chosen = choose_device(device, cluster=cluster)
    parallel_map = _parallel_map(cluster=cluster)
    from orchestrator.sampling.sampling_call import SamplingCall

    with temporary_folder(f"the files of {model}") as temporary:
        folder = Path(model)
        if not folder.is_dir():
            from orchestrator.registry import registry  # a pulled folder needs no MLflow

            folder = registry.pull(model, temporary / "model", tracking_uri)
        call = SamplingCall(folder, seed, chosen, max_bytes if pack else None)
        if input_uri is None:
            record = call.of_samples(num_images, label or (), labels, caption)
        else:
            record = call.of_translations(input_uri, fit, asked, field)
        _write(record, output, workers, parallel_map)


def _write(
    record: "SamplingRecord", output: str, workers: int | None, parallel_map: "ParallelMap"
) -> None:
    from orchestrator.sampling.image_outputs import write_files, write_set

    with progress_counter("drawing") as progress:
        write = write_files if record.shard_bytes is None else write_set
        written = write(
            record, output, workers=workers, parallel_map=parallel_map, progress=progress
        )
    place = output.rstrip("/")
    if isinstance(written, list):
        log_info(f"{len(written)} images in {place}; the first of them: {place}/grid.png")
        return
    log_info(f"{written.num_samples:,} samples in {place}, digest {written.digest[:12]}...")
    print_next_steps(
        f"orchestrator data check {quote(place)}", f"data.train: {place} in a job file"
    )


def choose_device(device: _Device, *, cluster: bool) -> Literal["cpu", "cuda"]:
    """Return where to draw. Raises EnvironmentProblem if a GPU is asked for and there is none."""
    import torch

    if cluster and device == "cuda":
        raise UsageError("--cluster draws on the CPUs of the cluster; leave --device cuda out")
    if device == "cpu" or cluster:
        return "cpu"
    if torch.cuda.is_available():
        return "cuda"
    if device == "cuda":
        raise EnvironmentProblem(
            "--device cuda: PyTorch finds no GPU on this machine; use --device cpu, or see what "
            "`nvidia-smi` says"
        )
    return "cpu"


def _parallel_map(*, cluster: bool) -> "ParallelMap":
    if not cluster:
        from orchestrator.data.prepare.parallel import map_in_processes

        return map_in_processes
    if not os.environ.get("RAY_ADDRESS"):
        raise UsageError("--cluster needs RAY_ADDRESS, the address of a Ray cluster")
    from orchestrator.cluster.ray_map import map_on_ray

    return map_on_ray


def _parse_range(value_range: str | None) -> "ValueRange | None":
    from orchestrator.data.prepare.value_range import parse_range

    asked = parse_range(value_range)
    if asked == "auto":
        raise UsageError("--range: give LOW,HIGH; the range depends on the training set")
    return asked

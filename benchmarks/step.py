"""Measure a training step of each model at its paper's size: speed, memory and FLOPs.

    python benchmarks/step.py --models vae dcgan --seconds 5 --rounds 3
    python benchmarks/step.py --reference ../reference_step       # compare with plain loops
    python benchmarks/step.py --device cuda --precision bf16 --channels-last --compile

Needs only torch and pydantic. The batch is already on the device. Every round times each loop for
some seconds, in turn; figures are medians over the rounds, and the ratio is the median of the
rounds' ratios. On a busy machine images per CPU second are more reliable than images per second.
FLOPs are counted by torch over one step: convolutions and matrix products, 2 per multiplication
and addition, including masked taps.

``--reference`` is a folder with ``refs.py``: a dict REFS of hand-written training loops, classes
with ``data``, ``step(x)`` and an ``autoregressive`` flag.
"""

import argparse
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from orchestrator.config.job import TrainSection
from orchestrator.models.base import Batch, ModelConfig, build_model
from orchestrator.models.parts.text import caption_bytes
from orchestrator.training.step import TrainingStep

GREY = {"image_size": 28, "channels": 1}
MODELS: dict[str, tuple[dict[str, Any], int, str | None]] = {
    # model: options, batch size, name of the hand-written loop
    "autoencoder": (GREY, 128, None),
    "vae": (GREY, 128, "vae"),
    "gan": (GREY, 100, None),
    "dcgan": ({"image_size": 64}, 128, "dcgan"),
    "began": ({"image_size": 64}, 16, "began"),
    "pix2pix": ({}, 1, "pix2pix"),
    "cyclegan": ({}, 1, None),
    "inpainting": ({}, 64, None),
    "pixelcnn": ({**GREY, "levels": 2, "hidden": 64, "head_width": 32}, 64, "pixelcnn"),
    "gated_pixelcnn": ({**GREY, "levels": 2}, 100, "gated"),
    "pixelrnn": ({**GREY, "levels": 2, "layers": 7, "hidden": 16, "head_width": 32}, 16, "diag"),
    "pixelcnn_pp": ({"image_size": 32}, 16, None),
    "age_cgan": ({"classes": 4}, 100, None),
    "text2image": ({}, 64, None),
}
Step = Callable[[], object]


def random_batch(config: ModelConfig, size: int, device: str) -> Batch:
    """Make noise images and the other inputs of the model."""
    shape = (size, config.channels, config.image_size, config.image_size)
    levels = getattr(config, "levels", 256)
    images, inputs = (torch.randint(levels, shape) * (2 / (levels - 1)) - 1 for _ in range(2))
    positions = torch.arange(size)
    takes = config.takes
    return Batch(
        images=images,
        positions=positions,
        condition=inputs if takes & {"pairs", "unpaired"} else None,
        labels=positions % config.num_classes if "labels" in takes else None,
        captions=caption_bytes("a benchmark").repeat(size, 1) if "captions" in takes else None,
    ).to(torch.device(device))


def ours(name: str, batch_size: int, options: argparse.Namespace) -> Step:
    """Build our training step, called as in the training loop."""
    torch.manual_seed(0)
    config = ModelConfig.model_validate({"name": name, **MODELS[name][0]})
    model = build_model(config).to(options.device)
    batch = random_batch(config, batch_size, options.device)
    model.prepare(batch)
    settings = TrainSection(
        images=1,
        batch_size=batch_size,
        precision=options.precision,
        channels_last=options.channels_last,
        compile=options.compile,
    )
    step = TrainingStep(model, model.phases(), settings)
    return lambda: step(batch, 0, 0.0)


def by_hand(name: str, batch_size: int, options: argparse.Namespace) -> Step | None:
    """The plain loop of the reference folder: fp32, eager, losses read at each step."""
    reference = MODELS[name][2]
    if options.reference is None or reference is None:
        return None
    sys.path.insert(0, str(options.reference))
    from refs import REFS

    ref = REFS[reference](torch.device(options.device))
    size = ref.data.get("crop", ref.data["size"])
    images = torch.rand(batch_size, ref.data["channels"], size, size, device=options.device)
    if ref.data["mode"] == "sym":
        images = images * 2 - 1
    if ref.data["mode"] == "binary":
        images = images.round()
    return lambda: ref.step(images)


def flops_per_image(step: Step, batch_size: int) -> float:
    """Count the floating-point operations of one step per image."""
    with FlopCounterMode(display=False) as counter:
        step()
    flops: int = counter.get_total_flops()
    return flops / batch_size


def time_steps(step: Step, batch_size: int, seconds: float, device: str) -> dict[str, Any]:
    """Run steps for ``seconds``; return throughput and step times."""
    cpu, start, times = time.process_time(), time.perf_counter(), []
    while time.perf_counter() - start < seconds:
        before = time.perf_counter()
        step()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - before)
    images = len(times) * batch_size
    return {
        "images_per_s": images / (time.perf_counter() - start),
        "images_per_cpu_s": images / (time.process_time() - cpu),
        "times": times,
    }


def peak_mib(device: str) -> float:
    """Return the peak memory of torch on the GPU, or of this process."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measure our step and the hand-written loop of one model, in turn."""
    batch_size = options.batch or MODELS[name][1]
    loops = {"ours": ours(name, batch_size, options), "by hand": by_hand(name, batch_size, options)}
    steps = {which: step for which, step in loops.items() if step is not None}
    flops = {which: flops_per_image(step, batch_size) for which, step in steps.items()}
    for step in steps.values():  # allocators, caches, compilation
        step()
        step()
    rounds = [
        {
            which: time_steps(step, batch_size, options.seconds, options.device)
            for which, step in steps.items()
        }
        for _ in range(options.rounds)
    ]
    result: dict[str, Any] = {"model": name, "batch": batch_size}
    for which in steps:
        speed = statistics.median(one[which]["images_per_s"] for one in rounds)
        times = sorted(each for one in rounds for each in one[which]["times"])
        result[which] = {
            "images_per_s": speed,
            "images_per_cpu_s": statistics.median(one[which]["images_per_cpu_s"] for one in rounds),
            "step_ms_p50": 1e3 * statistics.median(times),
            "step_ms_p95": 1e3 * times[min(len(times) - 1, int(0.95 * len(times)))],
            "gflop_per_image": flops[which] / 1e9,
            "gflop_per_s": speed * flops[which] / 1e9,
        }
    if "by hand" in steps:
        for unit in ("images_per_s", "images_per_cpu_s"):
            ratios = [one["ours"][unit] / one["by hand"][unit] for one in rounds]
            result[f"ratio_{unit}"] = statistics.median(ratios)
    result["peak_mib"] = peak_mib(options.device)
    return result


def print_result(result: dict[str, Any]) -> None:
    """Print one line for our step, and one for the hand-written loop with the ratio."""
    for which in ("ours", "by hand"):
        if which not in result:
            continue
        one = result[which]
        print(
            f"{result['model']:15} {result['batch']:4} {which:8} {one['images_per_s']:9.2f} "
            f"{one['images_per_cpu_s']:9.2f} {one['step_ms_p50']:9.1f} {one['step_ms_p95']:9.1f} "
            f"{one['gflop_per_image']:9.4g} {one['gflop_per_s']:8.1f}"
            + (f" {result['peak_mib']:8.0f}" if which == "ours" else "")
        )
    if "by hand" in result:
        wall, cpu = result["ratio_images_per_s"], result["ratio_images_per_cpu_s"]
        print(f"{'':20} ours / by hand: {wall:.2f} wall, {cpu:.2f} per CPU second")


def main() -> None:
    """Measure and print; see the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--batch", type=int, help="batch size; default: the paper's")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--reference", type=Path, help="folder with refs.py")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    how = f"{options.device}, {options.precision}, {options.threads} threads"
    print(f"torch {torch.__version__}, {how}")
    print(
        f"{'model':15} {'size':>4} {'':8} {'images/s':>9} {'/CPU s':>9} {'p50 ms':>9} "
        f"{'p95 ms':>9} {'GFLOP/im':>9} {'GFLOP/s':>8} {'MiB':>8}"
    )
    results = []
    for name in options.models:
        results.append(measure(name, options))
        print_result(results[-1])
    if options.json:
        options.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()

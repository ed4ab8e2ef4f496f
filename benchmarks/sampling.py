"""Compare cached and naive sampling of a batch, in turn in one run.

    python benchmarks/sampling.py
    python benchmarks/sampling.py --model gated_pixelcnn --shape 28x1 --set hidden=64 --rounds 5

Needs only torch and pydantic. Naive sampling is a forward pass over the whole batch for each turn
of each pixel: HEIGHT * WIDTH * turns equal passes. Without --whole, only a few passes over noise
images are timed and their mean is multiplied; cached sampling is always timed completely. Each
round times both, and the ratio is the median of the rounds' ratios.

Some networks are smaller than in the papers, so that a run takes minutes on a CPU (see GREY and
COLOUR below); --paper uses the models' defaults.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable

import torch

from orchestrator.models.base import ModelConfig, build_model, model_module, model_names
from orchestrator.models.parts.autoregressive import Autoregressive
from orchestrator.models.parts.sampler import evaluating

GREY: dict[str, dict[str, object]] = {
    "pixelcnn": {"hidden": 64, "head_width": 32},
    "pixelrnn": {"layers": 7, "hidden": 16, "head_width": 32},
    "pixelcnn_pp": {"filters": 32, "resnets": 2},
}
"""For binary images, as in the jobs; PixelCNN++ is smaller than in the paper."""
COLOUR: dict[str, dict[str, object]] = {
    "pixelcnn": {"hidden": 64, "head_width": 256},
    "gated_pixelcnn": {"head_width": 256},
    "pixelrnn": {"layers": 4, "hidden": 32, "head_width": 256},
    "pixelcnn_pp": {"filters": 32, "resnets": 2},
}
"""For colour images; all but the gated one are smaller than in the papers."""


def time_s(call: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def naive_time_s(model: Autoregressive, batch: int, passes: int, device: torch.device) -> float:
    """Extrapolate the time of naive sampling from a few passes."""
    config = model.config
    shape = (batch, config.channels, config.image_size, config.image_size)
    images = torch.rand(shape, device=device) * 2 - 1
    labels = torch.zeros(batch, dtype=torch.int64, device=device) if config.num_classes else None
    with evaluating(model):
        elapsed_s = time_s(lambda: [model.outputs(images, labels) for _ in range(passes)], device)
    return elapsed_s / passes * config.image_size**2 * model.turns


def measure(config: ModelConfig, options: argparse.Namespace) -> str:
    """Measure one model; return a row of the table."""
    device = torch.device(options.device)
    torch.manual_seed(0)
    model = build_model(config).to(device)
    assert isinstance(model, Autoregressive)

    def draw(sampler: Callable[..., object]) -> Callable[[], object]:
        return lambda: sampler(torch.arange(options.batch, device=device))

    naive_time_s(model, options.batch, 1, device)
    rounds = []
    for _ in range(options.rounds):
        cached = time_s(draw(model.sample), device)
        if options.whole:
            naive = time_s(draw(model.sample_naively), device)
        else:
            naive = naive_time_s(model, options.batch, options.passes, device)
        rounds.append((naive, cached))
    naives, caches = zip(*rounds, strict=True)
    ratio = statistics.median(naive / cached for naive, cached in rounds)
    parameters = sum(p.numel() for p in model.parameters())
    total = config.image_size**2 * model.turns
    shape = f"{config.image_size}x{config.image_size}x{config.channels}"
    return (
        f"{config.name:15} {shape:9} {parameters:>11,} {total:>6}"
        f" {statistics.median(naives):>9.1f} s {statistics.median(caches):>8.2f} s {ratio:>7.1f}x"
        f"  [{min(caches):.2f}, {max(caches):.2f}]"
    )


def make_config(name: str, shape: str, options: argparse.Namespace) -> ModelConfig:
    size, channels = (int(number) for number in shape.split("x"))
    settings: dict[str, object] = {"name": name, "image_size": size, "channels": channels}
    if channels == 1:
        settings["levels"] = 2
    if not options.paper:
        settings |= (GREY if channels == 1 else COLOUR).get(name, {})
    for pair in options.set:
        key, _, value = pair.partition("=")
        settings[key] = json.loads(value)
    return ModelConfig.model_validate(settings)


def main() -> None:
    known = [n for n in model_names() if issubclass(model_module(n).Model, Autoregressive)]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", action="append", choices=known, help="default: all")
    parser.add_argument("--shape", action="append", help="SIZExCHANNELS; default: 28x1 and 32x3")
    parser.add_argument(
        "--set", action="append", default=[], help="NAME=JSON, an option of the model"
    )
    parser.add_argument("--paper", action="store_true", help="use the models' defaults")
    parser.add_argument("--whole", action="store_true", help="time naive sampling completely")
    parser.add_argument("--passes", type=int, default=3, help="number of timed naive passes")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="more wait for each other if busy")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    load = f", load {os.getloadavg()[0]:.1f} at the start" if hasattr(os, "getloadavg") else ""
    print(f"batch {options.batch}, {options.rounds} rounds, medians; {options.device}{load},")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    if not options.whole:
        print(f"naive: {options.passes} passes over the whole batch, times all passes / timed ones")
    print(f"\n{'model':15} {'images':9} {'parameters':>11} {'passes':>6} {'naive':>11}", end="")
    print(f" {'cached':>10} {'ratio':>8}  cached [min, max]")
    for shape in options.shape or ["28x1", "32x3"]:
        for name in options.model or known:
            print(measure(make_config(name, shape, options), options), flush=True)


if __name__ == "__main__":
    main()

"""Compare images/s of our training step and of the same step written by hand, in turn.

    python benchmarks/training_step.py --image-size 64 --filters 16 --batch 8 --rounds 5
    python benchmarks/training_step.py --device cuda --image-size 256 --batch 16 --precision bf16

Needs only torch and pydantic. Both train the same networks on the same images, which are already
on the device. Each round times both, and the ratio is the median of the rounds' ratios. On CUDA,
PyTorch uses TF32 for convolutions with --precision fp32.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from orchestrator.config.job import TrainSection
from orchestrator.models.base import Batch, ModelConfig, build_model
from orchestrator.models.pix2pix import Model
from orchestrator.training.step import TrainingStep


def by_hand(config: ModelConfig, batch: Batch, precision: str) -> Callable[[], None]:
    """Build the step of the paper's PyTorch port, written without a framework."""
    model = build_model(config).to(batch.images.device)
    assert isinstance(model, Model)
    bce = nn.BCEWithLogitsLoss()
    adam_d, adam_g = (
        torch.optim.Adam(net.parameters(), 2e-4, (0.5, 0.999), fused=True)
        for net in (model.discriminator, model.generator)
    )
    autocast = torch.autocast(batch.images.device.type, torch.bfloat16, enabled=precision == "bf16")
    a, y = batch.condition, batch.images
    assert a is not None

    def judge(image: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = model.discriminator(torch.cat([a, image], 1))
        return logits.float()

    def step() -> None:
        with autocast:
            fake = model.generator(a)
            real_logits, fake_logits = judge(y), judge(fake.detach())
        model.discriminator.requires_grad_(True)
        loss = bce(real_logits, torch.ones_like(real_logits))
        loss = (loss + bce(fake_logits, torch.zeros_like(fake_logits))) / 2
        loss.backward()
        adam_d.step()
        adam_d.zero_grad(set_to_none=True)
        model.discriminator.requires_grad_(False)
        with autocast:
            logits = judge(fake)
        loss = bce(logits, torch.ones_like(logits)) + 100 * (fake.float() - y).abs().mean()
        loss.backward()
        adam_g.step()
        adam_g.zero_grad(set_to_none=True)
        model.discriminator.requires_grad_(True)

    return step


def ours(config: ModelConfig, batch: Batch, precision: str) -> Callable[[], None]:
    model = build_model(config).to(batch.images.device)
    settings = TrainSection.model_validate(
        {"images": 1, "batch_size": len(batch), "precision": precision}
    )
    training_step = TrainingStep(model, model.phases(), settings)

    def step() -> None:
        training_step(batch, 0, 0.0)

    return step


def images_per_s(step: Callable[[], None], batch: int, seconds: float, device: str) -> float:
    steps, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        step()
        steps += 1
        if device == "cuda":
            torch.cuda.synchronize()
    return steps * batch / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--filters", type=int, default=64)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5)
    options = parser.parse_args()
    config = ModelConfig.model_validate(
        {
            "name": "pix2pix",
            "image_size": options.image_size,
            "filters": options.filters,
            "discriminator_filters": options.filters,
            "receptive_field": 70 if options.image_size >= 128 else 34,
            "norm": "instance",
        }
    )
    shape = (options.batch, 3, options.image_size, options.image_size)
    images, condition = (torch.rand(shape, device=options.device) * 2 - 1 for _ in range(2))
    batch = Batch(images, torch.arange(options.batch), condition)
    steps = {"by hand": by_hand, "ours": ours}
    ready = {name: make(config, batch, options.precision) for name, make in steps.items()}
    for step in ready.values():
        step()
    rounds = [
        {
            name: images_per_s(step, options.batch, options.seconds, options.device)
            for name, step in ready.items()
        }
        for _ in range(options.rounds)
    ]
    for name in steps:
        values = sorted(one[name] for one in rounds)
        median = statistics.median(values)
        print(f"{name:8} {median:8.2f} images/s  [{values[0]:.2f}, {values[-1]:.2f}]")
    ratio = statistics.median(one["ours"] / one["by hand"] for one in rounds)
    print(f"ours / by hand: {ratio:.3f}  ({options.precision}, torch {torch.__version__})")


if __name__ == "__main__":
    main()

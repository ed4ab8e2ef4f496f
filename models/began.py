"""BEGAN: a GAN with an autoencoder as discriminator and a control loop for their balance.

Berthelot, Schumm and Metz, "BEGAN: Boundary Equilibrium Generative Adversarial Networks", 2017,
https://arxiv.org/abs/1703.10717. As in the paper: the autoencoder's loss L(v) = |v - D(v)|^eta,
the objective with proportional control

    L_D = L(x) - k_t L(G(z))      L_G = L(G(z))
    k_(t+1) = clip(k_t + lambda_k (gamma L(x) - L(G(z))), 0, 1)      k_0 = 0

the convergence measure M_global = L(x) + |gamma L(x) - L(G(z))|, the architecture with its two
options (skip connections, vanishing residuals), and the learning rate, halved when M_global stalls.

k_t, M_global and the learning rate use means over all workers and are saved with the weights.

Departures and choices:
- One z for both phases, as in carpedm20's BEGAN-tensorflow; the paper draws z_D and z_G. The
  discriminator is updated first, and k_t and M_global use the updated one, as in keras_BEGAN.
- M_global stalls if its mean over ``patience_steps`` is not below that of the window before. The
  learning rate has a minimum, as in BEGAN-tensorflow.
- Public implementations read the figure of the encoder differently; ``encoder`` offers three.
- Glorot's uniform initialisation with biases 0, as in the TensorFlow and Keras code.
- Outputs are linear; ``sample`` clamps them to [-1, 1].

Dimensions: see models/base.py. N: filters.
"""

import math
from collections.abc import Callable, Mapping
from typing import Annotated, Literal, final

import torch
from pydantic import field_validator
from pydantic_core.core_schema import ValidationInfo
from torch import Tensor, nn
from torch.nn import functional as F

from orchestrator.bounds import NOT_BOOLEAN, Filters, ImageSide, LearningRate, Steps, Units, Weight
from orchestrator.models.base import (
    Batch,
    Clock,
    GenerativeModel,
    Loss,
    ModelConfig,
    Phase,
    Rows,
    Shared,
    Sign,
)
from orchestrator.models.parts import noise
from orchestrator.models.parts.adversarial import glorot_weights, power_of_two

BASE_SIZE = 8
"""Height and width of the innermost maps."""
PICTURE_COLUMNS = 8

METRICS = {
    "discriminator/real": "L(x), the reconstruction error of real images; falls, lower is better.",
    "discriminator/fake": "L(G(z)) in the discriminator's phase; controlled towards gamma L(x).",
    "generator/fake": "L(G(z)) with the updated autoencoder; controlled towards gamma L(x).",
    "began/m_global": "L(x) + |gamma L(x) - L(G(z))|, mean over workers; falls on convergence.",
    "began/real": "L(x), mean over all workers: one of the paper's curves.",
    "began/gamma_real": "gamma L(x), mean over all workers: the set point of fake.",
    "began/fake": "L(G(z)), mean over all workers; near gamma_real in equilibrium.",
    "began/k_t": "Weight of generated images in [0, 1]; 0 at first, then settles; 1 is its limit.",
    "began/learning_rate_factor": "Fraction of learning_rate in use; halved when m_global stalls.",
    "began/stalled": "1 once m_global stalls at the minimum learning rate, else 0: stop the run.",
}


class Config(ModelConfig):
    """Hyperparameters of BEGAN; defaults as in the paper."""

    image_size: ImageSide = 64
    """Height and width of the images in pixels: a power of two, at least 16."""
    filters: Filters = 128
    """Channels of the decoders, and of the encoder's first level (the paper's n)."""
    latent: Units = 64
    """Dimensions of z and of the autoencoder's code (the paper's N_z and N_h)."""
    encoder: Literal["conv_stride", "input_conv_stride", "input_conv_conv_stride"] = "conv_stride"
    """Convolutions per level, the last of stride 2; input: one before the first level."""
    skip_connections: bool = False
    """Concatenate the upsampled innermost map at each level of the decoders."""
    vanishing_residuals: Steps | None = None
    """Steps over which the carry of vanishing residuals falls to 0 (paper: 16000); null: off."""
    eta: Annotated[Literal[1, 2], NOT_BOOLEAN] = 1
    """Exponent of the reconstruction error: 1 for absolute, 2 for squared."""
    gamma: Weight = 0.5
    """Set point of L(G(z)) / L(x), in (0, 1]: lower gives sharper, less diverse images."""
    lambda_k: LearningRate = 0.001
    """Gain of the proportional control of k_t."""
    learning_rate: LearningRate = 1e-4
    """Initial learning rate of Adam, for both networks."""
    min_learning_rate: LearningRate = 2e-5
    """Lower bound of the learning rate; equal to learning_rate it keeps the rate constant."""
    patience_steps: Steps = 10_000
    """Window over which M_global is averaged; the rate is halved if the mean does not fall."""

    @field_validator("image_size")
    @classmethod
    def _halves_down_to_the_base(cls, size: int) -> int:
        return power_of_two(size)

    @field_validator("gamma")
    @classmethod
    def _can_be_reached(cls, gamma: float) -> float:
        if not 0 < gamma <= 1:
            raise ValueError(
                "must be above 0 and at most 1: it is L(G(z)) / L(x) at equilibrium; "
                "use 0.3 for sharper images, 0.7 for more diverse ones"
            )
        return gamma

    @field_validator("min_learning_rate")
    @classmethod
    def _is_below_the_first(cls, rate: float, info: ValidationInfo) -> float:
        first = info.data.get("learning_rate")
        if first is not None and rate > first:
            raise ValueError(f"must not be above learning_rate; use {first:g} for a constant rate")
        return rate


class _Network(nn.Module):
    """3x3 convolutions with ELU and, if configured, vanishing residuals."""

    carry: Tensor | None

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.steps = config.vanishing_residuals
        self.register_buffer("carry", None if self.steps is None else torch.ones(()))

    def let_vanish(self, step: int) -> None:
        """Set the carry for ``step``; it falls linearly from 1 to 0."""
        if self.carry is not None and self.steps is not None:
            self.carry.fill_(max(0.0, 1 - step / self.steps))

    def layer(self, convolution: nn.Module, x_BCHW: Tensor) -> Tensor:
        """carry x + (1 - carry) f(x) where f keeps the shape, else f(x)."""
        y_BCHW = F.elu(convolution(x_BCHW))
        if self.carry is None or y_BCHW.shape != x_BCHW.shape:
            return y_BCHW
        return self.carry * x_BCHW + (1 - self.carry) * y_BCHW


class _Encoder(_Network):
    """images_BCHW -> codes_BZ; N, 2N, 3N, ... channels by level, no stride at the innermost."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        levels = _num_levels(config)
        cin, self.convolutions = config.channels, nn.ModuleList()
        if config.encoder.startswith("input"):
            self.convolutions.append(nn.Conv2d(cin, config.filters, 3, 1, 1))
            cin = config.filters
        for level in range(1, levels + 1):
            cout, innermost = level * config.filters, level == levels
            count = 3 if config.encoder == "input_conv_conv_stride" and not innermost else 2
            for index in range(count):
                stride = 2 if index == count - 1 and not innermost else 1
                self.convolutions.append(nn.Conv2d(cin, cout, 3, stride, 1))
                cin = cout
        self.code = nn.Linear(cin * BASE_SIZE**2, config.latent)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        for convolution in self.convolutions:
            x_BCHW = self.layer(convolution, x_BCHW)
        codes_BZ: Tensor = self.code(x_BCHW.flatten(1))
        return codes_BZ


class _Decoder(_Network):
    """codes_BZ -> unbounded images_BCHW; N channels at every level."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        width = config.filters
        self.skips = config.skip_connections
        self.base = nn.Linear(config.latent, width * BASE_SIZE**2)
        self.convolutions = nn.ModuleList()
        for level in range(_num_levels(config)):
            cin = 2 * width if self.skips and level else width
            self.convolutions.append(nn.Conv2d(cin, width, 3, 1, 1))
            self.convolutions.append(nn.Conv2d(width, width, 3, 1, 1))
        self.image = nn.Conv2d(width, config.channels, 3, 1, 1)

    def forward(self, z_BZ: Tensor) -> Tensor:
        base_BNHW = self.base(z_BZ).unflatten(1, (-1, BASE_SIZE, BASE_SIZE))
        x_BNHW = base_BNHW
        for index, convolution in enumerate(self.convolutions):
            if index and index % 2 == 0:  # a level has two
                x_BNHW = F.interpolate(x_BNHW, scale_factor=2, mode="nearest")
                if self.skips:
                    skip_BNHW = F.interpolate(base_BNHW, x_BNHW.shape[2:], mode="nearest")
                    x_BNHW = torch.cat([x_BNHW, skip_BNHW], 1)
            x_BNHW = self.layer(convolution, x_BNHW)
        image_BCHW: Tensor = self.image(x_BNHW)
        return image_BCHW


def _num_levels(config: Config) -> int:
    return int(math.log2(config.image_size // BASE_SIZE)) + 1


@final
class Model(GenerativeModel):
    """A generator, and an autoencoder that reconstructs real images better than generated ones."""

    config: Config
    averaged = ("discriminator/real", "generator/fake")
    signs_of_collapse = (
        Sign("k_t_at_limit", ("began/k_t",), 1.0, "k_t is at its limit, so lower gamma"),
        Sign("stalled", ("began/stalled",), 1.0, "m_global has stopped improving"),
    )
    k_t: Tensor
    """Weight of the generated images in L_D, in [0, 1]."""
    m_mean: Tensor
    """Mean of M_global over the current window so far."""
    m_previous: Tensor
    """Mean of M_global over the previous window; 0 in the first."""
    learning_rate_factor: Tensor
    stalled: Tensor
    """1 if M_global did not fall in the last window at the minimum learning rate, else 0."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.generator = _Decoder(config)
        self.discriminator = nn.Sequential(_Encoder(config), _Decoder(config))
        self.apply(glorot_weights)
        for name in ("k_t", "m_mean", "m_previous", "stalled"):
            self.register_buffer(name, torch.zeros(()))
        self.register_buffer("learning_rate_factor", torch.ones(()))
        self._factor: float | None = None
        nn.Module.register_load_state_dict_pre_hook(self, _before_loading)

    def phases(self) -> tuple[Phase, ...]:
        """The autoencoder, then the generator."""

        def phase(name: str, module: nn.Module, loss: Callable[[Batch, Shared], Loss]) -> Phase:
            adam = torch.optim.Adam(module.parameters(), self.config.learning_rate, fused=True)
            return Phase(name, module, adam, loss, learning_rate_factor=self._learning_rate_factor)

        return (
            phase("discriminator", self.discriminator, self.discriminator_loss),
            phase("generator", self.generator, self.generator_loss),
        )

    def shared(self, batch: Batch) -> Shared:
        """Return G(z) with z uniform in [-1, 1]."""
        z_BZ = 2 * batch.uniform("z", self.config.latent) - 1
        return {"fake": self.generator(z_BZ.to(batch.images.dtype))}

    def discriminator_loss(self, batch: Batch, shared: Shared) -> Loss:
        """L_D = L(x) - k_t L(G(z)), in one forward pass, since no layer mixes images."""
        both_BCHW = torch.cat([batch.images, shared["fake"].detach()])
        real, fake = (errors_B.mean() for errors_B in self._errors(both_BCHW).chunk(2))
        return Loss(real - self.k_t * fake, {"real": real.detach(), "fake": fake.detach()})

    def generator_loss(self, batch: Batch, shared: Shared) -> Loss:
        """L_G = L(G(z))."""
        fake = self._errors(shared["fake"]).mean()
        return Loss(fake, {"fake": fake.detach()})

    def after_step(self, means: Mapping[str, Tensor], clock: Clock) -> Mapping[str, Tensor]:
        """Update k_t, the learning rate and the carry; return the paper's curves."""
        for network in self.modules():
            if isinstance(network, _Network):
                network.let_vanish(clock.step + 1)
        if not all(name in means for name in self.averaged):
            return {}  # only one phase ran
        real, fake = (means[name] for name in self.averaged)
        balance = self.config.gamma * real - fake
        self.k_t.copy_((self.k_t + self.config.lambda_k * balance).clamp(0, 1))
        m_global = real + balance.abs()
        self._follow(m_global, clock)
        names = ("k_t", "learning_rate_factor", "stalled")
        metrics = {
            "m_global": m_global,
            "real": real,
            "gamma_real": self.config.gamma * real,
            "fake": fake,
            **{name: getattr(self, name).clone() for name in names},
        }
        return {f"began/{name}": value for name, value in metrics.items()}

    def draw(self, seeds: Tensor, condition: Tensor | None) -> Tensor:
        """Return G(z) for z uniform in [-1, 1]."""
        return self.decode(self.latents(seeds), None)

    def inference_module(self) -> nn.Module:
        """The generator."""
        return self.generator

    @torch.no_grad()
    def pictures(self, examples: Batch) -> Mapping[str, Rows]:
        """autoencoded: images and reconstructions, real then generated; interpolation between z."""
        z_BZ = self.latents(torch.arange(len(examples), device=examples.images.device))
        shown: list[list[Tensor]] = []
        for images_BCHW in (examples.images, self.decode(z_BZ, None)):
            copies_BCHW = self.discriminator(images_BCHW).float().clamp(-1, 1)
            shown += [list(images_BCHW), list(copies_BCHW)]
        weights_W1 = torch.linspace(0, 1, PICTURE_COLUMNS, device=z_BZ.device)[:, None]
        lines_BWZ = torch.lerp(z_BZ[:, None], z_BZ.roll(-1, 0)[:, None], weights_W1)
        ways = [list(self.decode(line_WZ, None)) for line_WZ in lines_BWZ]
        return {"autoencoded": shown, "interpolation": ways}

    def _errors(self, images_BCHW: Tensor) -> Tensor:
        """Return L(v) of each image, float32 (B,)."""
        distance_BCHW = (images_BCHW.float() - self.discriminator(images_BCHW).float()).abs()
        errors_BCHW: Tensor = distance_BCHW**self.config.eta
        return errors_BCHW.flatten(1).mean(1)

    def latents(self, seeds: Tensor) -> Tensor:
        """Return z uniform in [-1, 1], (B, Z)."""
        return 2 * noise.uniform(seeds, "latent", (self.config.latent,)) - 1

    def decode(self, latents: Tensor, condition: Tensor | None) -> Tensor:
        """Return G(z) for z, (B, Z)."""
        images_BCHW: Tensor = self.generator(latents)
        return images_BCHW.float().clamp(-1, 1)

    def _follow(self, m_global: Tensor, clock: Clock) -> None:
        """Average M_global; at the end of a stalled window halve the learning rate."""
        windows, place = divmod(clock.step, self.config.patience_steps)
        self.m_mean.lerp_(m_global.to(self.m_mean.dtype), 1 / (place + 1))
        if place + 1 < self.config.patience_steps:
            return
        if windows:
            factor = self.learning_rate_factor
            lowest = self.config.min_learning_rate / self.config.learning_rate
            halved = (factor / 2).clamp(min=lowest)
            stalls = self.m_mean >= self.m_previous
            self.stalled.copy_(stalls & (halved == factor))
            factor.copy_(torch.where(stalls, halved, factor))
            self._factor = None
        self.m_previous.copy_(self.m_mean)

    def _learning_rate_factor(self, clock: Clock) -> float:
        """Return the buffer's value, copied from the device only after it may have changed."""
        if self._factor is None:
            self._factor = self.learning_rate_factor.item()
        return self._factor


def _before_loading(model: nn.Module, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Drop the cached factor; accept old checkpoints, which lack ``stalled``."""
    assert isinstance(model, Model)
    model._factor = None
    state.setdefault(f"{prefix}stalled", torch.zeros(()))

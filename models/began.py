"""BEGAN: a GAN whose discriminator is an autoencoder, held in balance by a control loop.

Berthelot, Schumm and Metz, "BEGAN: Boundary Equilibrium Generative Adversarial Networks", 2017,
https://arxiv.org/abs/1703.10717. Followed: the autoencoder's loss L(v) = |v - D(v)|^eta, the
objective with proportional control

    L_D = L(x) - k_t L(G(z))      L_G = L(G(z))
    k_(t+1) = clip(k_t + lambda_k (gamma L(x) - L(G(z))), 0, 1)      k_0 = 0

the measure of convergence M_global = L(x) + |gamma L(x) - L(G(z))|, the architecture with its two
extras, skip connections and vanishing residuals, and the learning rate that is halved when
M_global stalls.

k_t, M_global and the learning rate follow the means over all workers and are saved with the
weights. The host reads the learning rate once in ``patience_steps``, and k_t not at all.

Departures and choices where the paper leaves one:
- One z for both phases (as in carpedm20's BEGAN-tensorflow), where the paper draws z_D and z_G.
  The discriminator goes first: L(G(z)) in k_t and M_global is the updated one's, as in keras_BEGAN.
- M_global stalls when its mean over ``patience_steps`` steps is not lower than that over as many
  steps before; there is a lowest learning rate, as in BEGAN-tensorflow.
- Public readings of the encoder's figure differ; ``encoder`` has three of them.
- Glorot's uniform initialisation with biases 0, as in the TensorFlow and Keras codes.
- Outputs are linear; ``sample`` clamps them to [-1, 1].

Dimensions: see models/base.py. N: filters.
"""

import math
from collections.abc import Callable, Mapping
from typing import Literal, final

import torch
from pydantic import Field, PositiveFloat, PositiveInt, field_validator
from pydantic_core.core_schema import ValidationInfo
from torch import Generator, Tensor, nn
from torch.nn import functional as F

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
from orchestrator.models.parts.adversarial import glorot_weights, power_of_two

BASE_SIZE = 8
"""Height and width of the innermost maps."""
PICTURE_COLUMNS = 8

METRICS = {
    "discriminator/real": "L(x), the autoencoder's error on real images; falls, lower is better.",
    "discriminator/fake": "L(G(z)) in the discriminator's phase; steered to gamma L(x).",
    "generator/fake": "L(G(z)) for the updated autoencoder; steered to gamma L(x).",
    "began/m_global": "L(x) + |gamma L(x) - L(G(z))|, means over all workers; falls as it "
    "converges.",
    "began/real": "L(x), mean over all workers: one of the paper's curves.",
    "began/gamma_real": "gamma L(x), mean over all workers: where fake is steered to.",
    "began/fake": "L(G(z)), mean over all workers; near gamma_real in equilibrium.",
    "began/k_t": "Weight of generated images in [0, 1]; 0 at first, then settles; 1 is its limit.",
    "began/learning_rate_factor": "Fraction of learning_rate in use; halved when m_global stalls.",
    "began/stalled": "1 after m_global has stalled at the lowest learning rate, else 0: train no "
    "longer.",
}


class Config(ModelConfig):
    """Hyperparameters of BEGAN; the defaults are the paper's."""

    image_size: PositiveInt = 64
    """Height and width of the images in pixels: a power of two, at least 16."""
    filters: PositiveInt = 128
    """Channels of the decoders, and of the encoder's first level (the paper's n)."""
    latent: PositiveInt = 64
    """Numbers in z and in the autoencoder's code (the paper's N_z and N_h)."""
    encoder: Literal["conv_stride", "input_conv_stride", "input_conv_conv_stride"] = "conv_stride"
    """Convolutions of each level of the encoder, the last one of stride 2; input: with one more
    before the first level. The innermost level has two, neither with a stride."""
    skip_connections: bool = False
    """Give each level of the decoders the innermost map, upsampled."""
    vanishing_residuals: PositiveInt | None = None
    """Steps in which each layer turns from the identity into itself (paper: 16000); null: off."""
    eta: Literal[1, 2] = 1
    """Power of the autoencoder's error: 1 for absolute, 2 for squared."""
    gamma: float = 0.5
    """L(G(z)) / L(x) that k_t steers to, in (0, 1]: lower gives sharper and less varied images."""
    lambda_k: PositiveFloat = 0.001
    """Gain of the control of k_t."""
    learning_rate: PositiveFloat = 1e-4
    """Adam's learning rate at the start, for both networks."""
    min_learning_rate: PositiveFloat = Field(default=2e-5, validate_default=True)
    """The learning rate is not halved below this; as high as learning_rate it stays constant."""
    patience_steps: PositiveInt = 10_000
    """Steps over which M_global is averaged; halved when a mean is not lower than the last."""

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
                "use 0.3 for sharper images, 0.7 for more varied ones"
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
    """Layers of 3x3 convolution and ELU; ``carry`` of a layer's input goes past it."""

    carry: Tensor | None

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.steps = config.vanishing_residuals
        self.register_buffer("carry", None if self.steps is None else torch.ones(()))

    def let_vanish(self, step: int) -> None:
        """Set the carry for ``step``: from 1 down to 0, in a straight line."""
        if self.carry is not None and self.steps is not None:
            self.carry.fill_(max(0.0, 1 - step / self.steps))

    def layer(self, convolution: nn.Module, x_BCHW: Tensor) -> Tensor:
        """carry x + (1 - carry) f(x) where f keeps the shape, else f(x)."""
        y_BCHW = F.elu(convolution(x_BCHW))
        if self.carry is None or y_BCHW.shape != x_BCHW.shape:
            return y_BCHW
        return self.carry * x_BCHW + (1 - self.carry) * y_BCHW


class _Encoder(_Network):
    """images_BCHW -> codes_BZ; level by level N, 2N, 3N, ... channels."""

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
    """codes_BZ -> images_BCHW, not bounded; N channels on every level."""

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
    """A generator, and an autoencoder that learns to code real images better than generated ones.

    Watch ``began/m_global``: it falls as the training converges. ``began/k_t`` rises from 0 and
    settles; ``began/fake`` then stays near ``began/gamma_real``.
    """

    config: Config
    averaged = ("discriminator/real", "generator/fake")
    signs_of_collapse = (
        Sign(
            "k_t_at_limit",
            ("began/k_t",),
            1.0,
            "k_t can rise no more: balance is lost; lower gamma",
        ),
        Sign(
            "stalled",
            ("began/stalled",),
            1.0,
            "m_global falls no more: nothing is learned any longer",
        ),
    )
    k_t: Tensor
    """Weight of the generated images in L_D, in [0, 1]."""
    m_mean: Tensor
    """Mean of M_global over the steps of the present window so far."""
    m_previous: Tensor
    """Mean of M_global over the window before; 0 in the first window."""
    learning_rate_factor: Tensor
    stalled: Tensor
    """1 if the mean of the last whole window was no lower, at the lowest learning rate; else 0."""

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
        """The autoencoder's step, then the generator's."""

        def phase(name: str, module: nn.Module, loss: Callable[[Batch, Shared], Loss]) -> Phase:
            adam = torch.optim.Adam(module.parameters(), self.config.learning_rate, fused=True)
            return Phase(name, module, adam, loss, learning_rate_factor=self._learning_rate_factor)

        return (
            phase("discriminator", self.discriminator, self.discriminator_loss),
            phase("generator", self.generator, self.generator_loss),
        )

    def shared(self, batch: Batch) -> Shared:
        """G(z) with z uniform in [-1, 1], which both phases judge."""
        z_BZ = 2 * batch.uniform("z", self.config.latent) - 1
        return {"fake": self.generator(z_BZ.to(batch.images.dtype))}

    def discriminator_loss(self, batch: Batch, shared: Shared) -> Loss:
        """L_D = L(x) - k_t L(G(z)); both in one pass, as no layer mixes images."""
        both_BCHW = torch.cat([batch.images, shared["fake"].detach()])
        real, fake = (errors_B.mean() for errors_B in self._errors(both_BCHW).chunk(2))
        return Loss(real - self.k_t * fake, {"real": real.detach(), "fake": fake.detach()})

    def generator_loss(self, batch: Batch, shared: Shared) -> Loss:
        """L_G = L(G(z)), through both G(z) and the autoencoder's copy of it."""
        fake = self._errors(shared["fake"]).mean()
        return Loss(fake, {"fake": fake.detach()})

    def after_step(self, means: Mapping[str, Tensor], clock: Clock) -> Mapping[str, Tensor]:
        """k_(t+1), the learning rate and the carry; gives the paper's curves."""
        for network in self.modules():
            if isinstance(network, _Network):
                network.let_vanish(clock.step + 1)
        if not all(name in means for name in self.averaged):
            return {}  # one phase ran alone
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

    def sample(
        self, num_images: int, generator: Generator, condition: Tensor | None = None
    ) -> Tensor:
        """G(z) for z uniform in [-1, 1]; ``condition`` is not used."""
        return self._generate(self._latents(num_images, generator))

    def inference_module(self) -> nn.Module:
        """The generator."""
        return self.generator

    @torch.no_grad()
    def pictures(self, examples: Batch, generator: Generator) -> Mapping[str, Rows]:
        """What the autoencoder makes of images, and the way from one z to another.

        ``autoencoded``: real images, their copies, generated images, their copies.
        ``interpolation``: in each row G(z) along the line between two z.
        """
        z_BZ = self._latents(len(examples), generator)
        shown: list[list[Tensor]] = []
        for images_BCHW in (examples.images, self._generate(z_BZ)):
            copies_BCHW = self.discriminator(images_BCHW).float().clamp(-1, 1)
            shown += [list(images_BCHW), list(copies_BCHW)]
        weights_W1 = torch.linspace(0, 1, PICTURE_COLUMNS, device=z_BZ.device)[:, None]
        lines_BWZ = torch.lerp(z_BZ[:, None], z_BZ.roll(-1, 0)[:, None], weights_W1)
        ways = [list(self._generate(line_WZ)) for line_WZ in lines_BWZ]
        return {"autoencoded": shown, "interpolation": ways}

    def _errors(self, images_BCHW: Tensor) -> Tensor:
        """L(v) of each image: float32 (B,)."""
        distance_BCHW = (images_BCHW.float() - self.discriminator(images_BCHW).float()).abs()
        errors_BCHW: Tensor = distance_BCHW**self.config.eta
        return errors_BCHW.flatten(1).mean(1)

    def _latents(self, count: int, generator: Generator) -> Tensor:
        shape = (count, self.config.latent)
        return 2 * torch.rand(shape, generator=generator, device=generator.device) - 1

    @torch.no_grad()
    def _generate(self, z_BZ: Tensor) -> Tensor:
        images_BCHW: Tensor = self.generator(z_BZ)
        return images_BCHW.float().clamp(-1, 1)

    def _follow(self, m_global: Tensor, clock: Clock) -> None:
        """Take the step's M_global into the mean; halve the learning rate if a window stalled."""
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
        """The buffer's value, fetched from the device only after it may have changed."""
        if self._factor is None:
            self._factor = self.learning_rate_factor.item()
        return self._factor


def _before_loading(model: nn.Module, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Forget the factor; checkpoints of before there was ``stalled`` may be loaded."""
    assert isinstance(model, Model)
    model._factor = None
    state.setdefault(f"{prefix}stalled", torch.zeros(()))

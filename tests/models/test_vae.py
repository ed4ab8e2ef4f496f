"""The VAE against published numbers, torch.distributions, and log p(x) integrated on a grid."""

import math
from statistics import NormalDist
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributions import Bernoulli, Independent, Normal, kl_divergence

from orchestrator.config.job import TrainSection
from orchestrator.models import vae
from orchestrator.models.base import Batch
from orchestrator.models.vae import Config, Model, manifold_codes
from orchestrator.training.step import TrainingStep


def config(**options: object) -> Config:
    return Config.model_validate({"name": "vae", **options})


def tiny(**options: object) -> Model:
    """Build a model of 4x4 images with weights large enough for the code to matter."""
    torch.manual_seed(0)
    model = Model(config(**{"image_size": 4, "hidden": (6,), "latent": 1, **options}))
    for p in model.decoder.parameters():
        nn.init.normal_(p, 0, 0.7)
    return model


def binary(size: int, images: int = 4, dtype: torch.dtype = torch.float32) -> Batch:
    noise = torch.Generator().manual_seed(1)
    drawn = torch.randint(2, (images, 1, size, size), generator=noise) * 2 - 1
    return Batch(drawn.to(dtype), torch.arange(images))


@pytest.mark.parametrize(
    ("options", "parameters"),
    [
        ({}, 652_824),
        ({"hidden": (500,), "activation": "tanh"}, 815_824),
        ({"likelihood": "gaussian"}, 652_825),
    ],
    ids=["PyTorch's example", "the paper's", "with a learned variance"],
)
def test_networks_have_the_published_number_of_parameters(
    options: dict[str, object], parameters: int
) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in Model(config(**options)).parameters()) == parameters


def test_an_untrained_decoder_costs_ln_2_per_pixel() -> None:
    """784 ln 2 = 543.4 nats; a mean instead of a sum over the image would give 0.69."""
    torch.manual_seed(0)
    model = Model(config())
    metrics = model.loss(binary(28, 16), {}).metrics
    assert metrics["reconstruction"].item() == pytest.approx(543.4, rel=0.03)
    assert metrics["elbo"].item() == -(metrics["reconstruction"] + metrics["kl"]).item()


def test_the_kl_divergence_is_the_one_of_torch_distributions() -> None:
    torch.manual_seed(0)
    mu, logvar = torch.randn(2, 5, 7) * 2
    posterior = Normal(mu, (logvar / 2).exp())
    expected = kl_divergence(posterior, Normal(torch.zeros(7), torch.ones(7))).sum(1)
    torch.testing.assert_close(vae.kl_divergence(mu, logvar), expected)


@pytest.mark.parametrize("kl_weight", [1.0, 0.25])
def test_the_loss_equals_the_formula_in_float64(kl_weight: float) -> None:
    model = tiny(latent=3, kl_weight=kl_weight).double()
    batch = binary(4, dtype=torch.float64)
    noise = batch.normal("posterior", 3).double()
    losses = []
    for image, eps in zip(batch.images, noise, strict=True):
        numbers = model.encoder(image[None])[0]
        mu, logvar = numbers[:3], numbers[3:]
        logits = model.decoder((mu + (logvar.exp() ** 0.5) * eps)[None])[0]
        loss = 0.0
        for value, logit in zip(image.flatten().tolist(), logits.flatten().tolist(), strict=True):
            p = 1 / (1 + math.exp(-logit))
            loss -= math.log(p) if value == 1 else math.log(1 - p)
        for m, v in zip(mu.tolist(), logvar.tolist(), strict=True):
            loss -= kl_weight * 0.5 * (1 + v - m**2 - math.exp(v))
        losses.append(loss)
    assert model.loss(batch, {}).value.item() == pytest.approx(sum(losses) / 4, rel=1e-9)


def test_the_loss_of_a_batch_is_the_mean_over_its_images() -> None:
    model, batch = tiny(), binary(4)
    alone = [model.loss(part, {}).value.item() for part in batch.split(1)]
    assert model.loss(batch, {}).value.item() == pytest.approx(sum(alone) / 4, rel=1e-5)


def test_a_wrong_confident_logit_costs_its_magnitude() -> None:
    """A sigmoid would round to 0 and its logarithm would be clamped at -100."""
    model = tiny(image_size=1)
    logits = torch.full((1, 1, 1, 1), -110.0)
    assert model.log_likelihood(logits, torch.ones(1, 1, 1, 1)).item() == -110.0


def test_likelihoods_are_summed_in_float32_under_bf16() -> None:
    model = tiny()
    image, outputs = torch.ones(1, 1, 64, 64), torch.full((1, 1, 64, 64), -3.0)
    exact = Bernoulli(logits=outputs).log_prob(torch.ones(())).sum().item()
    with torch.autocast("cpu", torch.bfloat16):
        nats = model.log_likelihood(outputs.bfloat16(), image)
        mu, logvar = model.posterior(binary(4).images)
    assert nats.item() == pytest.approx(exact, rel=1e-5)
    assert {nats.dtype, mu.dtype, logvar.dtype} == {torch.float32}


def test_the_gaussian_likelihood_is_the_density_of_torch_distributions() -> None:
    model = tiny(likelihood="gaussian")
    nn.init.constant_(model.log_variance, -1.5)
    outputs, images = torch.randn(2, 3, 1, 4, 4)
    expected = Independent(Normal(torch.tanh(outputs / 2), math.exp(-0.75)), 3).log_prob(images)
    torch.testing.assert_close(model.log_likelihood(outputs, images), expected)


def log_px(model: Model, images: torch.Tensor) -> torch.Tensor:
    """Integrate p(x|z) p(z) over a fine grid of one-dimensional codes: log p(x), (B,)."""
    z = torch.linspace(-8, 8, 4001, dtype=torch.float64)[:, None]
    outputs = model.double().decoder(z)
    px_z: Independent[Any]
    if model.config.likelihood == "bernoulli":
        px_z = Independent(Bernoulli(logits=outputs), 3)
        values = (images.double() + 1) / 2
    else:
        px_z = Independent(Normal(torch.tanh(outputs / 2), (model.log_variance / 2).exp()), 3)
        values = images.double()
    weights = Normal(0, 1).log_prob(z[:, 0]) + math.log(16 / 4000)
    sums = [torch.logsumexp(px_z.log_prob(value) + weights, 0) for value in values]
    model.float()
    return torch.stack(sums).float().detach()


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_many_importance_samples_give_log_px_integrated_on_a_grid(likelihood: str) -> None:
    batch = binary(4)
    model = tiny(likelihood=likelihood, importance_samples=2000)
    bounds = model.negative_log_likelihood(batch)
    exact = -log_px(model, batch.images)
    torch.testing.assert_close(bounds["importance_weighted_nats"], exact, rtol=0, atol=0.1)
    assert (bounds["negative_elbo_nats"] > exact + 0.2).all()


def test_bounds_tighten_with_more_importance_samples_and_never_exceed_log_px() -> None:
    same = binary(4, images=1)
    many = Batch(same.images.expand(4000, -1, -1, -1), torch.arange(4000))
    exact = -log_px(tiny(), same.images).item()
    means = []
    for samples in (1, 5, 25):
        bounds = tiny(importance_samples=samples).negative_log_likelihood(many)
        means.append(bounds["importance_weighted_nats"].mean().item())
        elbo = bounds["negative_elbo_nats"].mean().item()
    assert means[0] == pytest.approx(elbo, rel=0.02)
    assert means[0] > means[1] + 0.1 > means[2] + 0.1
    assert means[2] > exact - 0.02


def test_one_importance_sample_is_the_elbo_for_the_same_noise() -> None:
    """Compare with log p(x|z) + log p(z) - log q(z|x)."""
    model, batch = tiny(latent=3, importance_samples=1), binary(4)
    mu, logvar = model.posterior(batch.images)
    posterior = Normal(mu, (logvar / 2).exp())
    z = mu + posterior.stddev * batch.normal("importance 0", 3)
    likelihood = Independent(Bernoulli(logits=model.decoder(z)), 3)
    elbo = likelihood.log_prob((batch.images + 1) / 2)
    elbo = elbo + (Normal(0, 1).log_prob(z) - posterior.log_prob(z)).sum(1)
    found = model.negative_log_likelihood(batch)["importance_weighted_nats"]
    torch.testing.assert_close(found, -elbo.detach())


def test_a_posterior_like_the_prior_makes_one_sample_and_the_elbo_equal() -> None:
    model, batch = tiny(importance_samples=1), binary(4)
    for p in model.encoder.parameters():
        nn.init.zeros_(p)
    bounds = model.negative_log_likelihood(batch)
    torch.testing.assert_close(bounds["importance_weighted_nats"], bounds["negative_elbo_nats"])


def test_the_bound_of_an_image_does_not_depend_on_its_batch() -> None:
    model, batch = tiny(importance_samples=4), binary(4)
    whole = model.negative_log_likelihood(batch)
    alone = [model.negative_log_likelihood(part) for part in batch.split(1)]
    for name, values in whole.items():
        torch.testing.assert_close(values, torch.cat([bounds[name] for bounds in alone]))


@pytest.mark.parametrize(("size", "smallest"), [(28, 7), (32, 4), (48, 6)])
def test_convolutional_networks_end_in_a_small_map(size: int, smallest: int) -> None:
    model = Model(config(image_size=size, architecture="convolutional", filters=2, channels=3))
    assert model.reconstruct(torch.zeros(2, 3, size, size)).shape == (2, 3, size, size)
    last = [m for m in model.encoder if isinstance(m, nn.Linear)][-1]
    width = 2 * 2 ** (int(math.log2(size // smallest)) - 1)
    assert (last.in_features, last.out_features) == (width * smallest**2, 40)


def test_interpolations_run_from_one_reconstruction_to_the_other() -> None:
    model, batch = tiny(latent=3), binary(4, images=5)
    rows = model.pictures(batch)["interpolation"]
    real = model.reconstruct(batch.images)
    assert [len(row) for row in rows] == [8, 8]
    for number, row in enumerate(rows):
        torch.testing.assert_close(row[0], real[2 * number])
        torch.testing.assert_close(row[-1], real[2 * number + 1])
        mu = model.posterior(batch.images[2 * number : 2 * number + 2])[0]
        third = model.decoder((mu[0] * 5 / 7 + mu[1] * 2 / 7)[None])[0].sigmoid() * 2 - 1
        torch.testing.assert_close(row[2], third.detach())


def test_the_manifold_of_2d_codes_is_drawn_at_quantiles_of_the_prior() -> None:
    batch = binary(4)
    assert "manifold" not in tiny(latent=3).pictures(batch)
    model = tiny(latent=2)
    rows = model.pictures(batch)["manifold"]
    assert [len(row) for row in rows] == [20] * 20
    codes = manifold_codes(20)
    quantiles = [NormalDist().inv_cdf((i + 0.5) / 20) for i in range(20)]
    torch.testing.assert_close(codes[3, :, 0], torch.tensor(quantiles))
    torch.testing.assert_close(codes[:, 3, 1], torch.tensor(quantiles[::-1]))
    icdf = Normal(0.0, 1.0).icdf(torch.tensor([0.975, 0.025]))
    code = torch.stack([icdf[0], icdf[1]])
    expected = model.decoder(code[None])[0].sigmoid() * 2 - 1
    torch.testing.assert_close(rows[-1][-1], expected.detach())


def test_training_approaches_log_px_of_two_equally_likely_images() -> None:
    """The entropy is ln 2 nats, and a working VAE comes close."""
    torch.manual_seed(0)
    model = Model(config(image_size=4, hidden=(32,), latent=2, learning_rate=1e-2))
    image = binary(4, images=1).images
    step = TrainingStep(model, model.phases(), TrainSection(images=32, batch_size=32))
    for number in range(400):
        positions = torch.arange(32) + 32 * number
        images = torch.where((positions % 2 == 0).view(-1, 1, 1, 1), image, -image)
        nats = step(Batch(images, positions), number, 0.0)["vae/loss"].item()
    assert math.log(2) - 0.05 < nats < math.log(2) + 0.5

"""Every model is served: what a client gets is what the model draws."""

import base64
import json
import math
import re
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from orchestrator.data.format.images import Fit
from orchestrator.models.base import GenerativeModel, model_names
from orchestrator.models.parts.abilities import DrawsRows, HasLatents, HasLikelihood
from orchestrator.models.parts.sampler import evaluating
from orchestrator.models.parts.text import caption_bytes
from orchestrator.sampling.image_outputs import write_files
from orchestrator.sampling.sampling_call import SamplingCall
from support.served import Client, serving, to_levels, to_png
from support.small import condition_for, scattered_model, small_batch

pytestmark = pytest.mark.server
SEEDS = [3, 0, 2**53 - 1]


def levels_of(images: torch.Tensor) -> NDArray[np.float64]:
    """Images in [-1, 1] as levels, not rounded."""
    return ((images.double() + 1) * 127.5).clamp(0, 255).numpy()


def is_close(levels: NDArray[Any], images: torch.Tensor) -> bool:
    return bool(np.abs(levels - levels_of(images)).max() < 0.51)


def uint8_inputs(model: GenerativeModel, count: int) -> NDArray[np.uint8]:
    images = condition_for(model.config, small_batch(model.config, count))
    assert images is not None
    return levels_of(images).round().astype(np.uint8)


def drawn_images(client: Client, model: GenerativeModel) -> None:
    """Compare what /v1/sample answers with ``sample``."""
    config = model.config
    asked: dict[str, Any] = {"seeds": SEEDS}
    condition = None
    if config.num_classes:
        asked["classes"] = [2, 0, 1]
        condition = torch.tensor([2, 0, 1])
    if "captions" in config.takes:
        asked["caption"] = "a yellow flower"
        condition = caption_bytes("a yellow flower").repeat(3, 1)
    answer = client.post("/v1/sample", asked)
    assert answer.status == 200, answer.body
    assert answer.json["name"] == config.name
    assert answer.json["version"] == 1
    assert [each["seed"] for each in answer.json["images"]] == SEEDS
    assert is_close(answer.images, model.sample(torch.tensor(SEEDS), condition))


@pytest.mark.parametrize("name", model_names())
def test_a_client_gets_what_the_model_draws(name: str, tmp_path: Path) -> None:
    model = scattered_model(name).eval()
    with serving(tmp_path / "model", model) as client:
        facts = client.get("/v1/model").json
        assert facts["translates"] == model.config.translates
        assert facts["card"] == "# A card\n"
        paths = set(json.loads(client.get("/openapi.json").body)["paths"])
        if model.config.translates:
            assert "/v1/sample" not in paths
            images = uint8_inputs(model, 3)
            for seed, image in zip(SEEDS, images, strict=True):
                answer = client.post_image(f"/v1/translate?seed={seed}", to_png(image))
                assert answer.headers["x-model-version"] == "1"
                given = torch.from_numpy(image).float()[None] / 127.5 - 1
                assert is_close(answer.pixels[None], model.sample(torch.tensor([seed]), given))
        else:
            assert "/v1/translate" not in paths
            drawn_images(client, model)
        assert ("/v1/decode" in paths) == isinstance(model, HasLatents)
        assert ("/v1/sample/rows" in paths) == isinstance(model, DrawsRows)
        assert ("/v1/likelihood" in paths) == isinstance(model, HasLikelihood)


def test_requests_of_many_clients_at_once_get_their_own_images(tmp_path: Path) -> None:
    model = scattered_model("pix2pix").eval()
    images = uint8_inputs(model, 60)
    given = torch.from_numpy(images).float() / 127.5 - 1
    expected = model.sample(torch.arange(60), given)
    with serving(tmp_path / "model", model) as client, ThreadPoolExecutor(16) as pool:

        def ask(number: int) -> bool:
            answer = client.post_image(f"/v1/translate?seed={number}", to_png(images[number]))
            return is_close(answer.pixels, expected[number])

        assert all(pool.map(ask, range(60)))
        metrics = client.get("/metrics").body.decode()
    assert 'orchestrator_serve_images_total{version="pix2pix/1"} 60.0' in metrics


@pytest.mark.parametrize("name", ["vae", "dcgan", "age_cgan"])
def test_latents_of_a_seed_decode_to_its_image_and_lead_to_the_next(
    name: str, tmp_path: Path
) -> None:
    model = scattered_model(name).eval()
    assert isinstance(model, HasLatents)
    kind = {"class": 1} if model.config.num_classes else {}
    with serving(tmp_path / "model", model) as client:
        drawn = client.post("/v1/sample", {"seeds": SEEDS, **kind}).images
        latents = client.post("/v1/latents", {"seeds": SEEDS}).json["latents"]
        decoded = client.post("/v1/decode", {"latents": latents, **kind}).images
        between = client.post("/v1/interpolate", {"seeds": SEEDS, "steps": 5, **kind}).images
    assert np.abs(decoded.astype(int) - drawn).max() <= 1
    assert len(between) == 9
    for place, image in zip((0, 4, 8), drawn, strict=True):
        assert np.abs(between[place].astype(int) - image).max() <= 1
    # Half way on the great circle, with Z dimensions: the normalised sum.
    first, last = (torch.tensor(row, dtype=torch.float64) for row in latents[:2])
    angle = torch.acos(first @ last / (first.norm() * last.norm()))
    middle = (first + last) * torch.sin(angle / 2) / torch.sin(angle)
    condition = torch.tensor([1]) if kind else None
    with evaluating(model.inference_module()):
        expected = model.decode(middle.float()[None], condition)
    assert np.abs(between[2] - levels_of(expected)[0]).max() < 0.6


@pytest.mark.parametrize("name", ["pixelcnn", "gated_pixelcnn"])
def test_rows_arrive_while_the_image_is_drawn_and_are_those_of_the_image(
    name: str, tmp_path: Path
) -> None:
    model = scattered_model(name).eval()
    kind = {"class": 2} if model.config.num_classes else {}
    with serving(tmp_path / "model", model) as client:
        whole = client.post("/v1/sample", {"seeds": [7], **kind}).images[0]
        connection = HTTPConnection("127.0.0.1", client.port, timeout=60)
        body = json.dumps({"seed": 7, **kind})
        connection.request("POST", "/v1/sample/rows", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        assert answer.getheader("content-length") is None
        lines = [json.loads(line) for line in answer]
        connection.close()
    assert [line["row"] for line in lines] == list(range(model.config.image_size))
    rows = [to_levels(base64.b64decode(line["png"])) for line in lines]
    assert np.array_equal(np.concatenate(rows, 1), whole)


def test_a_likelihood_is_that_of_the_model(tmp_path: Path) -> None:
    model = scattered_model("gated_pixelcnn").eval()
    assert isinstance(model, HasLikelihood)
    batch = small_batch(model.config, 1)
    levels = levels_of(batch.images).round().astype(np.uint8)[0]
    with serving(tmp_path / "model", model) as client:
        found = client.post_image("/v1/likelihood?class=0", to_png(levels)).json
        missing = client.post_image("/v1/likelihood", to_png(levels))
    expected = float(model.negative_log_likelihood(batch)["nll_nats"][0])
    assert found["name"] == "nll_nats"
    assert found["nats"] == pytest.approx(expected, rel=1e-5)
    assert found["bits_per_dim"] == pytest.approx(expected / levels.size / math.log(2), rel=1e-5)
    assert missing.status == 422


def test_a_class_that_is_not_given_is_drawn_by_the_seed(tmp_path: Path) -> None:
    model = scattered_model("gated_pixelcnn").eval()
    with serving(tmp_path / "model", model) as client:
        answer = client.post("/v1/sample", {"seeds": SEEDS})
    assert is_close(answer.images, model.sample(torch.tensor(SEEDS)))


def test_the_page_and_its_files_are_served_with_a_strict_policy(tmp_path: Path) -> None:
    with serving(tmp_path / "model", scattered_model("pix2pix").eval()) as client:
        page = client.get("/")
        assert (page.status, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
        assert "'unsafe-inline'" not in page.headers["content-security-policy"]
        linked = set(re.findall(r'(?:src|href)="(page/[^"]+)"', page.body.decode()))
        assert linked
        for name in linked:
            assert client.get(f"/{name}").status == 200
        for name in ("page/../page_files.py", "page/nothing.js", "page/%2e%2e%2fpage_files.py"):
            assert client.get(f"/{name}").status == 404


def test_a_translation_has_the_proportions_that_sample_gives_it(tmp_path: Path) -> None:
    model = scattered_model("pix2pix").eval()
    folder, drawings = tmp_path / "model", tmp_path / "drawings"
    drawings.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (3, 20, 50), np.uint8)
    (drawings / "wide.png").write_bytes(to_png(pixels))
    with serving(folder, model) as client:
        answer = client.post_image("/v1/translate?seed=5", to_png(pixels))
        shown = client.post_image("/v1/translate?seed=5&fit=crop", to_png(pixels))
        webp = client.post_image("/v1/translate?seed=5", to_png(pixels), accept="image/webp")
    cases: list[tuple[Fit | None, NDArray[np.uint8]]]
    cases = [(None, answer.pixels), ("crop", shown.pixels)]
    for fit, drawn in cases:
        call = SamplingCall(folder, 5, "cpu", None)
        output = tmp_path / str(fit)
        write_files(call.of_translations(str(drawings), fit, None, None), str(output))
        expected = to_levels((output / "wide.png").read_bytes())
        assert drawn.shape == expected.shape
        assert np.abs(drawn.astype(int) - expected).max() <= 1
    assert answer.pixels.shape == (3, 6, 16)
    assert webp.headers["content-type"] == "image/webp"
    assert np.array_equal(webp.pixels, answer.pixels)

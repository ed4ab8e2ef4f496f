"""Inception of FID against torch-fidelity, with random weights: the real file is the user's."""

import hashlib
import os
import pickle
from pathlib import Path

import pytest
import torch
from torch import Generator, Tensor

from orchestrator.errors import DataError, UsageError
from orchestrator.evaluation.extractors import inception
from orchestrator.evaluation.extractors.inception import Inception
from orchestrator.evaluation.extractors.inception_network import inception_network


def random_weights() -> dict[str, Tensor]:
    """Weights by which features vary: He's scale, and statistics that are not 0 and 1."""
    from torchvision.models.inception import Inception3

    network = Inception3(num_classes=1008, aux_logits=False, init_weights=False)
    noise = Generator().manual_seed(1)
    for name, value in network.state_dict().items():
        if name.endswith("conv.weight"):
            fan_in = value[0].numel()
            value.copy_(torch.randn(value.shape, generator=noise) * (2 / fan_in) ** 0.5)
        elif name.endswith(("running_mean", "bn.bias")):
            value.copy_(0.1 * torch.randn(value.shape, generator=noise))
        elif name.endswith(("running_var", "bn.weight")):
            value.copy_(1 + 0.1 * torch.rand(value.shape, generator=noise))
    weights: dict[str, Tensor] = network.state_dict()
    return weights


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inception") / inception.FILE
    torch.save(random_weights(), path)
    return path


@pytest.fixture
def accepted(weights_file: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file, accepted as if it were the published one."""
    monkeypatch.setattr(inception, "SHA256", hashlib.sha256(weights_file.read_bytes()).hexdigest())
    return weights_file


@pytest.mark.slow
@pytest.mark.parametrize("size", [32, 299, 400])
def test_features_are_those_of_torch_fidelity(accepted: Path, size: int) -> None:
    """At any size, since both resize as TensorFlow 1 did."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    other = FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(accepted)
    )
    noise = Generator().manual_seed(2)
    images = torch.randint(256, (2, 3, size, size - 5), generator=noise, dtype=torch.uint8)
    (expected,) = other(images)
    found = Inception(accepted)(images)
    assert found.shape == (2, 2048)
    assert expected.std() > 0.01
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_it_is_called_fid_and_pools_as_tensorflow(accepted: Path) -> None:
    from torchvision.models.inception import Inception3

    extractor = Inception(accepted)
    assert (extractor.name, extractor.frechet_name) == ("inception", "fid")
    published = Inception3(num_classes=1008, aux_logits=False, init_weights=False)
    published.load_state_dict(random_weights())
    published.fc = torch.nn.Identity()
    x = torch.randn(1, 3, 299, 299, generator=Generator().manual_seed(3))
    with torch.no_grad():
        difference = (extractor.network(x) - published.eval()(x)).abs().max()
    assert difference > 1e-3


def test_another_file_is_refused_before_it_is_loaded(
    weights_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Bad:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, ("echo ran",)

    bad = tmp_path / inception.FILE
    bad.write_bytes(pickle.dumps(Bad()))
    for path in (weights_file, bad):
        with pytest.raises(DataError, match=r"this is not the file of .* inception") as caught:
            Inception(path)
        assert caught.value.exit_code == 4
        assert str(path) in str(caught.value)
        assert inception.SHA256 in str(caught.value)


def test_a_pickle_with_code_is_refused_whatever_its_sum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Bad:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return Path.touch, (tmp_path / "ran",)

    bad = tmp_path / "bad.pth"
    torch.save({"fc.weight": Bad()}, bad)
    monkeypatch.setattr(inception, "SHA256", hashlib.sha256(bad.read_bytes()).hexdigest())
    with pytest.raises(pickle.UnpicklingError):
        Inception(bad)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["missing.pth", "."])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(
        UsageError, match="cannot read the file of the extractor inception"
    ) as caught:
        Inception(tmp_path / name)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


def test_building_the_network_leaves_the_random_generator_as_it_was() -> None:
    weights = random_weights()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    inception_network(weights)
    assert torch.equal(torch.get_rng_state(), before)

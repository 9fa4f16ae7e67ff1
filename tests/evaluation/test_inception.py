"""The Inception Score's network against torch-fidelity's."""

import copy
import importlib.util
import runpy
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from acontrol.errors import UserError
from acontrol.evaluation.backends import load_backend
from acontrol.evaluation.inception import CLASSES, WIDTH, Inception, resize

EXAMPLE = Path(__file__).parents[2] / "examples" / "convert_inception.py"
# torch-fidelity 0.4.0 on `filled` and `random_images` (test_torch_fidelity_agrees, if it is
# installed): the first logits of the first image, and the mean of both images' vectors.
LOGITS = [32.957832, -5.210288, -67.156174, -23.435356]
MEAN = 3.7634724


@pytest.fixture(scope="module")
def filled() -> Inception:
    """Random weights that keep activations in range, rounded to single precision."""
    torch.manual_seed(0)
    network = Inception()
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        if tensor.ndim == 4:
            torch.nn.init.kaiming_normal_(tensor)
        elif name.endswith(("bn.weight", "running_var")):
            tensor.uniform_(0.5, 1.5)
        elif tensor.ndim:
            tensor.normal_(0, 0.2)
    return network.double()


def random_images(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def test_it_has_torch_fidelitys_outputs(filled: Inception) -> None:
    vectors = filled.embed(random_images(2, 3, 70, 70))
    logits = filled.logits(vectors)
    assert (vectors.shape, logits.shape) == ((2, WIDTH), (2, CLASSES))
    # torch-fidelity rounds them to single precision.
    torch.testing.assert_close(logits[0, :4].tolist(), LOGITS, rtol=1e-6, atol=0)
    assert float(vectors.mean()) == pytest.approx(MEAN, rel=1e-6)


@pytest.mark.skipif(
    importlib.util.find_spec("torch_fidelity") is None, reason="torch-fidelity is not installed"
)
def test_torch_fidelity_agrees(filled: Inception, tmp_path: Path, monkeypatch) -> None:
    # The package imports torchvision; this module of it does not.
    spec = importlib.util.find_spec("torch_fidelity")
    assert spec
    package = types.ModuleType("torch_fidelity")
    package.__path__ = list(spec.submodule_search_locations or ())
    monkeypatch.setitem(sys.modules, "torch_fidelity", package)
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    torch.save(filled.state_dict(), tmp_path / "weights.pth")
    genuine = FeatureExtractorInceptionV3(
        "inception",
        ["2048", "logits_unbiased"],
        feature_extractor_weights_path=str(tmp_path / "weights.pth"),
    ).double()
    # Its option of this name does not convert single precision.
    genuine.feature_extractor_internal_dtype = torch.float64
    for shape in ((2, 3, 70, 70), (1, 3, 256, 256), (1, 3, 400, 400), (1, 3, 299, 299)):
        images = random_images(*shape)
        vectors, logits = genuine(images)
        own = filled.embed(images)
        torch.testing.assert_close(own.float(), vectors, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(filled.logits(own).float(), logits, rtol=1e-6, atol=1e-6)


def test_images_are_resized_from_their_first_pixel() -> None:
    line = torch.tensor([0.0, 10.0, 40.0]).view(1, 1, 1, 3).repeat(1, 3, 2, 1)
    # At 0, 3/5, 6/5, 9/5 and 12/5; beyond the last pixel its value is repeated.
    expected = torch.tensor([0.0, 6.0, 16.0, 34.0, 40.0])
    torch.testing.assert_close(resize(line, 5)[0, 0], expected.expand(5, 5))
    same = torch.rand(1, 3, 7, 7)
    assert torch.equal(resize(same, 7), same)


def test_weights_are_converted_and_read(filled: Inception, tmp_path: Path) -> None:
    published = tmp_path / "published.pth"
    single = copy.deepcopy(filled).float()
    torch.save(single.state_dict(), published)
    main = runpy.run_path(str(EXAMPLE))["main"]
    main(str(published), str(tmp_path / "inception.safetensors"))
    backend = load_backend("inception", tmp_path, None)
    assert backend.embed and backend.logits and backend.layers is None
    vectors = backend.embed(random_images(1, 3, 64, 64))
    assert torch.equal(vectors, single.embed(random_images(1, 3, 64, 64)))
    assert np.isfinite(backend.logits(vectors.double()).numpy()).all()


def test_missing_and_other_weights_are_one_line(tmp_path: Path) -> None:
    file = tmp_path / "inception.safetensors"
    with pytest.raises(
        UserError, match=r"inception\.safetensors: does not exist.*convert_inception"
    ):
        Inception.load(file)
    save_file({"fc.weight": torch.zeros(1000, WIDTH)}, file)
    with pytest.raises(UserError, match="not the weights of Inception-v3"):
        Inception.load(file)

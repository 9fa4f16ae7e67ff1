"""Methods on a base draw on an inpainting base, too."""

from pathlib import Path

import pytest
import torch

from acontrol.config.sampling import Sampling
from acontrol.generation.methods import load_method
from acontrol.generation.settings import MethodName
from acontrol.rivals.diffusion import DiffusionMethod
from acontrol.rivals.task import Task
from launch import fit
from tests.networks.nine_channels import write_inpainting_base
from tests.rivals.conftest import pixels


@pytest.mark.parametrize("name", ["reference-only", "lora", "anodiff"])
def test_the_mask_and_the_masked_image_are_seen(
    name: MethodName, built_in_data: Path, database: str, tmp_path: Path
) -> None:
    base, folder = write_inpainting_base(tmp_path / "base"), tmp_path / "fitted"
    if name != "reference-only":
        args = [built_in_data, "--method", name, "--base", base, "--output", folder]
        args += ["--steps", 1, "--tracking-uri", database]
        fit.run([str(one) for one in args])
    fitted = folder if folder.exists() else None
    method = load_method(name, None, None if fitted else str(base), fitted=fitted).method
    assert isinstance(method, DiffusionMethod)
    seen: list[torch.Tensor] = []
    method.base.unet.register_forward_pre_hook(lambda unet, args: seen.append(args[0]))
    method.draw([stain(built_in_data)])
    assert {latents.shape[1] for latents in seen} == {9}
    masks = seen[-1][:, 4]
    assert 0 < masks.mean() < 1


def stain(data: Path) -> Task:
    wood = data / "wood"
    mask = pixels(wood / "ground_truth/stain/000_mask.png") > 0
    files = wood / "test/stain/000.png", wood / "ground_truth/stain/000_mask.png"
    normal, sampling = pixels(wood / "train/good/000.png"), Sampling(steps=1)
    return Task(normal, mask, "wood", "stain", *files, "stain", "a stain", 1, sampling)

"""Reference-only drawing against the rule of diffusers' community pipeline, written out.

That rule (examples/community/stable_diffusion_reference.py) in its own order: a pass that
writes down what each self-attention reads of the noised reference, then one that reads it,
whose unconditional half is a mixture by ``style_fidelity``. Softmax by hand, through hooks.
"""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from diffusers.models.attention_processor import Attention
from PIL import Image
from torch import Tensor

from acontrol.config.sampling import Sampling
from acontrol.data.images import region
from acontrol.method.encoder import embed_text
from acontrol.networks.load import BaseModels
from acontrol.pipelines.blending import Canvas
from acontrol.rivals.reference_only import ReferenceOnly
from acontrol.rivals.task import Task

SIDE, SCALE = 64, 3.0


class Oracle:
    """A U-Net whose self-attention writes down or reads a reference."""

    def __init__(self, unet: Any, fidelity: float):
        self.unet, self.fidelity = unet, fidelity
        self.writing, self.bank = True, dict[str, Tensor]()
        for name, module in unet.named_modules():
            if name.endswith("attn1"):
                module.register_forward_hook(self._hook(name))

    def _hook(self, name: str) -> Any:
        def replace(attn: Attention, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            hidden = args[0]
            if self.writing:
                self.bank[name] = hidden
                return output
            both = attend(attn, hidden, torch.cat([hidden, self.bank[name]], dim=1))
            half = len(hidden) // 2  # Without conditions first.
            alone = attend(attn, hidden[:half], hidden[:half])
            mixed = self.fidelity * alone + (1 - self.fidelity) * both[:half]
            return torch.cat([mixed, both[half:]])

        return replace

    def __call__(self, reference: Tensor, latents: Tensor, step: Tensor, text: Tensor) -> Any:
        self.writing = True
        self.unet(torch.cat([reference] * 2), step, text)
        self.writing = False
        return self.unet(torch.cat([latents] * 2), step, text).sample.chunk(2)


def attend(attn: Attention, queries: Tensor, context: Tensor) -> Tensor:
    def heads(tensor: Tensor) -> Tensor:
        return tensor.unflatten(-1, (attn.heads, -1)).transpose(1, 2)

    q, k, v = heads(attn.to_q(queries)), heads(attn.to_k(context)), heads(attn.to_v(context))
    read = (q @ k.mT / q.shape[-1] ** 0.5).softmax(dim=-1) @ v
    return attn.to_out[0](read.transpose(1, 2).flatten(2))


def tasks(data: Path, steps: int) -> list[Task]:
    """Whole images to draw, so that nothing is blended in."""
    wood = data / "wood"
    sampling = Sampling(steps=steps, guidance_scale=SCALE)
    return [
        Task(
            image=np.asarray(Image.open(wood / "train/good/000.png")),
            mask=np.ones((SIDE, SIDE), bool),
            category="wood",
            defect=defect,
            reference_image=wood / f"test/{defect}/000.png",
            reference_mask=wood / f"ground_truth/{defect}/000_mask.png",
            phrase=defect,
            prompt=f"a photo of wood with a {defect}",
            seed=seed,
            sampling=sampling,
        )
        for seed, defect in ((5, "crack"), (6, "stain"))
    ]


@torch.no_grad()
def reference_latents(base: BaseModels, task: Task) -> Tensor:
    """The magnified defect with its surroundings."""
    image, mask = task.reference()
    near = region(Image.fromarray(image), Image.fromarray(mask), 1.5)[0]
    near = near.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.asarray(near, np.float32) / 127.5 - 1).permute(2, 0, 1)
    return base.vae.encode(pixels[None]).latent_dist.mean * base.vae.config.scaling_factor


@torch.no_grad()
def drawn_by_rule(base: BaseModels, task: Task, steps: int, fidelity: float) -> np.ndarray:
    """The community pipeline's loop for one image, with one noise for its reference."""
    oracle = Oracle(base.unet, fidelity)
    scheduler = DDIMScheduler.from_config(
        base.scheduler.config, clip_sample=False, set_alpha_to_one=False
    )
    reference = reference_latents(base, task)
    generator = torch.Generator().manual_seed(task.seed)
    latents, noise = (torch.randn(reference.shape, generator=generator) for _ in range(2))
    text = embed_text(base.text_encoder, base.tokenizer, ["", task.prompt])
    scheduler.set_timesteps(steps)
    for step in scheduler.timesteps:
        noised = scheduler.add_noise(reference, noise, step[None])
        without, with_text = oracle(noised, latents, step, text)
        guided = without + SCALE * (with_text - without)
        latents = scheduler.step(guided, step, latents).prev_sample
    decoded = base.vae.decode(latents / base.vae.config.scaling_factor).sample[0]
    return ((decoded.clamp(-1, 1) + 1) * 127.5).round().permute(1, 2, 0).numpy()


def own_copy(base: BaseModels) -> BaseModels:
    return dataclasses.replace(base, unet=copy.deepcopy(base.unet))


@torch.no_grad()
@pytest.mark.parametrize("step", [20, 700])
def test_a_step_is_the_community_pipelines(
    base: BaseModels, tiny_base: BaseModels, built_in_data: Path, step: int
) -> None:
    """At style fidelity 1; below, the unconditional half would see the reference too."""
    todo, timestep = tasks(built_in_data, 1), torch.tensor(step)
    method = ReferenceOnly(base, SIDE, 0)
    seeds = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    predict = method.predictor(todo, Canvas(), seeds)
    latents = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(3))
    got = predict(latents, timestep)
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    noise = torch.cat([torch.randn(1, 4, 16, 16, generator=one) for one in generators])
    references = torch.cat([reference_latents(base, task) for task in todo])
    noised = method.scheduler.add_noise(references, noise, timestep[None])
    empty, *prompts = [
        embed_text(base.text_encoder, base.tokenizer, [text])
        for text in ("", *(task.prompt for task in todo))
    ]
    text = torch.cat([empty, empty, *prompts])

    def by_rule(fidelity: float) -> Tensor:
        oracle = Oracle(own_copy(tiny_base).unet, fidelity)
        without, with_text = oracle(noised, latents, timestep, text)
        return without + SCALE * (with_text - without)

    torch.testing.assert_close(got, by_rule(1.0), rtol=0, atol=1e-4)
    # The default of that pipeline; and the same latents beside no reference.
    assert (got - by_rule(0.5)).abs().max() > 1e-2
    without, with_text = tiny_base.unet(torch.cat([latents] * 2), timestep, text).sample.chunk(
        2
    )
    assert (got - without - SCALE * (with_text - without)).abs().max() > 1e-2


def test_it_draws_the_community_pipelines_picture(
    base: BaseModels, tiny_base: BaseModels, built_in_data: Path
) -> None:
    todo = tasks(built_in_data, 4)
    ours = ReferenceOnly(base, SIDE, 0).draw(todo)
    for task, drawing in zip(todo, ours, strict=True):
        expected, default = (
            drawn_by_rule(own_copy(tiny_base), task, 4, fidelity) for fidelity in (1.0, 0.5)
        )
        assert np.abs(expected - drawing.pixels).max() <= 1
        assert np.abs(default - drawing.pixels).max() > 5

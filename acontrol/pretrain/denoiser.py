"""Text encoder and U-Net: Stable Diffusion's objective on cached latents."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, StableDiffusionPipeline
from PIL import Image
from torch import Tensor, nn

from acontrol.method.diffusion import timestep_weights
from acontrol.method.encoder import embed_text
from acontrol.pretrain.networks import Networks
from acontrol.pretrain.pool import DefectType, Pool
from acontrol.pretrain.settings import DenoiserStage
from acontrol.pretrain.vae import encode
from acontrol.reporting import contact_sheet
from acontrol.runs.stage import StageContext, run_stage

SAMPLE_STEPS = 25
SAMPLE_GUIDANCE = 4.0
NUM_SAMPLES = 24
SAMPLE_BATCH = 48
_COLUMNS = 4  # Of the sheet of samples.


def train_denoiser(
    networks: Networks,
    pool: Pool,
    stage: DenoiserStage,
    context: StageContext,
    *,
    bfloat16: bool,
) -> None:
    """Train text encoder and U-Net together and keep the moving average of both."""
    moments = encode(networks.vae, pool, context.device)
    side = moments.shape[-1]
    masks = F.adaptive_max_pool2d(pool.masks.float(), side)
    scheduler, unet, text_encoder = networks.scheduler, networks.unet, networks.text_encoder
    scale = networks.vae.config.scaling_factor
    weights = timestep_weights(scheduler.alphas_cumprod, "late").to(context.device)

    def loss(step: int) -> dict[str, Tensor]:
        chosen = context.chosen("denoiser", step, stage.batch_size, len(pool))
        generator = context.generator("denoiser noise", step)
        mean, std = moments[chosen].chunk(2, dim=1)
        latents = (mean + std * torch.randn(mean.shape, generator=generator)) * scale
        noise = torch.randn(mean.shape, generator=generator)
        timesteps = torch.randint(len(weights), (len(chosen),), generator=generator)
        chances = torch.rand(2, len(chosen), generator=generator).tolist()
        entries = [pool.vocabulary[label] for label in pool.labels[chosen].tolist()]
        captions = [
            ""
            if drop < stage.caption_dropout
            else (entry.plain_caption if plain < stage.plain_captions else entry.caption)
            for entry, drop, plain in zip(entries, *chances, strict=True)
        ]
        noisy = scheduler.add_noise(latents, noise, timesteps).to(context.device)
        noise, timesteps = noise.to(context.device), timesteps.to(context.device)
        weight = 1 + stage.mask_weight * masks[chosen].to(context.device)
        with torch.autocast(context.device.type, torch.bfloat16, enabled=bfloat16):
            text = embed_text(text_encoder, networks.tokenizer, captions)
            noise_pred = unet(noisy, timesteps, text).sample.float()
        error = (weight * (noise_pred - noise).square()).flatten(1).mean(dim=1)
        return {"loss": (weights[timesteps] * error).mean()}

    unet.train()
    text_encoder.train()
    run_stage(
        "denoiser",
        nn.ModuleDict({"unet": unet, "text_encoder": text_encoder}),
        loss,
        context,
        steps=stage.steps,
        learning_rate=stage.learning_rate,
        ema_decay=stage.ema_decay,
        sample=lambda: sample_sheet(networks, pool.vocabulary),
    )
    unet.eval().requires_grad_(False)
    text_encoder.eval().requires_grad_(False)


def generate_images(networks: Networks, captions: list[str], seed: int) -> list[Image.Image]:
    """Generate with Stable Diffusion's own pipeline: DDIM, classifier-free guidance."""
    scheduler = DDIMScheduler.from_config(
        networks.scheduler.config, clip_sample=False, set_alpha_to_one=False
    )
    pipeline = StableDiffusionPipeline(
        networks.vae,
        networks.text_encoder,
        networks.tokenizer,
        networks.unet,
        scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    images: list[Image.Image] = []
    for start in range(0, len(captions), SAMPLE_BATCH):
        batch = captions[start : start + SAMPLE_BATCH]
        generators = [
            torch.Generator().manual_seed(seed + start + index) for index in range(len(batch))
        ]
        images += pipeline(
            batch,
            num_inference_steps=SAMPLE_STEPS,
            guidance_scale=SAMPLE_GUIDANCE,
            generator=generators,
        ).images
    return images


def sample_sheet(networks: Networks, vocabulary: Sequence[DefectType]) -> Image.Image:
    """At most `NUM_SAMPLES` images from captions that are spread over the vocabulary.

    A row of one caption each where there are few, as for one product.
    """
    stride = max(1, len(vocabulary) // NUM_SAMPLES)
    captions = [entry.caption for entry in vocabulary[::stride][:NUM_SAMPLES]]
    copies = _COLUMNS if len(captions) * _COLUMNS <= NUM_SAMPLES else 1
    drawn = [caption for caption in captions for _ in range(copies)]
    images = generate_images(networks, drawn, seed=0)
    names = [caption.removeprefix("a photo of ") for caption in drawn]
    names += [""] * (-len(names) % _COLUMNS)  # Each lies under its picture.
    starts = range(0, len(names), _COLUMNS)
    rows = [images[start : start + _COLUMNS] for start in starts]
    titles = [" | ".join(names[start : start + _COLUMNS]) for start in starts]
    return contact_sheet(rows, [""] * _COLUMNS, titles)

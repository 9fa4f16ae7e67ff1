"""The autoencoder."""

import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor

from acontrol.data.images import pictures
from acontrol.pretrain.pool import Pool
from acontrol.pretrain.settings import VaeStage
from acontrol.reporting import contact_sheet
from acontrol.runs.stage import StageContext, run_stage

KL_WEIGHT = 1e-4
SHOWN = 6


def train_vae(
    vae: AutoencoderKL,
    pool: Pool,
    test: Pool,
    stage: VaeStage,
    context: StageContext,
    *,
    bfloat16: bool,
) -> None:
    """Train encoder and decoder, then the decoder alone; set the latents' scale.

    Once the encoder rests the latents do not change, and the decoder has all the steps it
    needs for the fine print of defects.
    """
    device = context.device.type

    def loss(name: str, step: int, encoder_rests: bool) -> dict[str, Tensor]:
        chosen = context.chosen(name, step, stage.batch_size, len(pool))
        image = pool.pixels(chosen).to(context.device)
        weight = 1 + stage.mask_weight * pool.masks[chosen].to(context.device)
        generator = context.generator(f"{name} noise", step)
        with torch.autocast(device, torch.bfloat16, enabled=bfloat16):
            with torch.set_grad_enabled(not encoder_rests):
                posterior = vae.encode(image).latent_dist
            noise = torch.randn(posterior.mean.shape, generator=generator).to(context.device)
            decoded = vae.decode(posterior.mean + posterior.std * noise).sample.float()
        error = decoded - image
        terms = {
            "l1": (weight * error.abs()).mean(),
            "mse": (weight * error.square()).mean(),
            "kl": posterior.kl().float().mean() / noise[0].numel(),
        }
        total = terms["l1"] + 2 * terms["mse"]
        return {"loss": total if encoder_rests else total + KL_WEIGHT * terms["kl"], **terms}

    def sample() -> Image.Image:
        return reconstructions(vae, test, context.device)

    vae.train()
    run_stage(
        "autoencoder",
        vae,
        lambda step: loss("autoencoder", step, encoder_rests=False),
        context,
        steps=stage.steps,
        learning_rate=stage.learning_rate,
        sample=sample,
    )
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)
    if stage.decoder_steps:
        run_stage(
            "decoder",
            vae,
            lambda step: loss("decoder", step, encoder_rests=True),
            context,
            steps=stage.decoder_steps,
            learning_rate=stage.learning_rate / 2,
            sample=sample,
        )
    vae.eval().requires_grad_(False)
    latents = encode(vae, test, context.device)[:, :4]
    vae.register_to_config(scaling_factor=round(1 / float(latents.std()), 4))


@torch.no_grad()
def encode(vae: AutoencoderKL, pool: Pool, device: torch.device, batch: int = 64) -> Tensor:
    """Mean and standard deviation of every image's latent, (N, 8, h, w), not yet scaled."""
    found = []
    for chosen in torch.arange(len(pool)).split(batch):
        posterior = vae.encode(pool.pixels(chosen).to(device)).latent_dist
        found.append(torch.cat([posterior.mean, posterior.std], dim=1).cpu())
    return torch.cat(found)


@torch.no_grad()
def psnr(vae: AutoencoderKL, pool: Pool, device: torch.device) -> dict[str, float]:
    """Peak signal-to-noise ratio of reconstructions in dB: everywhere, and in the masks.

    Means over images, as is usual; ``pooled`` ones are of the error over all images at once,
    in which the hardest product weighs most.
    """
    errors, inside, covered = [], [], []
    for chosen in torch.arange(len(pool)).split(64):
        image = pool.pixels(chosen)
        decoded = vae.decode(vae.encode(image.to(device)).latent_dist.mean).sample.cpu()
        error = (decoded.clamp(-1, 1) - image).square() / 4  # For values in [0, 1].
        mask = pool.masks[chosen].expand_as(error)
        errors.append(error.mean(dim=(1, 2, 3)))
        inside.append((error * mask).sum(dim=(1, 2, 3)))
        covered.append(mask.sum(dim=(1, 2, 3)))

    def decibels(error: Tensor) -> Tensor:
        return -10 * torch.log10(error)

    every, total, pixels = torch.cat(errors), torch.cat(inside), torch.cat(covered)
    some = pixels > 0
    return {
        "psnr_db": float(decibels(every).mean()),
        "psnr_in_masks_db": float(decibels(total[some] / pixels[some]).mean()),
        "psnr_pooled_db": float(decibels(every.mean())),
        "psnr_pooled_in_masks_db": float(decibels(total.sum() / pixels.sum())),
    }


@torch.no_grad()
def reconstructions(vae: AutoencoderKL, pool: Pool, device: torch.device) -> Image.Image:
    """Images beside what comes back."""
    image = pool.pixels(torch.arange(min(SHOWN, len(pool))))
    decoded = vae.decode(vae.encode(image.to(device)).latent_dist.mean).sample.cpu()
    rows = list(zip(pictures(image), pictures(decoded), strict=True))
    return contact_sheet(rows, ["image", "decoded"])

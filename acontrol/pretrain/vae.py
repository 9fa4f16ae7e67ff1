"""The autoencoder: its training and its reconstruction quality."""

import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor, nn

from acontrol.data.images import pictures
from acontrol.pretrain.critic import Critic
from acontrol.pretrain.pool import Pool
from acontrol.pretrain.settings import VaeStage
from acontrol.reporting import contact_sheet
from acontrol.runs.stage import StageContext, run_stage
from acontrol.seeding import derive_seed

KL_WEIGHT = 1e-4
NUM_SAMPLES = 6
BATCH = 64  # Without gradients.


def train_vae(
    vae: AutoencoderKL,
    pool: Pool,
    test: Pool,
    stage: VaeStage,
    context: StageContext,
    *,
    bfloat16: bool,
) -> None:
    """Train encoder and decoder, then the decoder alone; set the scaling factor.

    With the encoder frozen the latents no longer change, and the decoder has all the steps
    that fine details of defects need. There a patch critic may ask for grain.
    """

    def train(name: str, steps: int, learning_rate: float, *, encoder_frozen: bool) -> None:
        def loss(step: int) -> dict[str, Tensor]:
            chosen = context.chosen(name, step, stage.batch_size, len(pool))
            pixels, masks = pool.pixels(chosen), pool.masks[chosen]
            if stage.crop and stage.crop < pixels.shape[-1]:
                corners = context.generator(f"{name} crops", step)
                pixels, masks = cropped(pixels, masks, stage.crop, corners)
            image = pixels.to(context.device)
            weight = 1 + stage.mask_weight * masks.to(context.device)
            generator = context.generator(f"{name} noise", step)
            with torch.autocast(context.device.type, torch.bfloat16, enabled=bfloat16):
                with torch.set_grad_enabled(not encoder_frozen):
                    posterior = vae.encode(image).latent_dist
                noise = torch.randn(posterior.mean.shape, generator=generator)
                latents = posterior.mean + posterior.std * noise.to(context.device)
                decoded = vae.decode(latents).sample.float()
            error = decoded - image
            terms = {
                "l1": (weight * error.abs()).mean(),
                "mse": (weight * error.square()).mean(),
                "kl": posterior.kl().float().mean() / noise[0].numel(),
            }
            total = terms["l1"] + 2 * terms["mse"]
            if encoder_frozen and stage.critic_weight:
                terms["fooling"], terms["judging"] = critic.terms(image, decoded)
                total = total + stage.critic_weight * terms["fooling"] + terms["judging"]
            return {
                "loss": total if encoder_frozen else total + KL_WEIGHT * terms["kl"],
                **terms,
            }

        judged = encoder_frozen and stage.critic_weight
        run_stage(
            name,
            nn.ModuleDict({"vae": vae, "critic": critic}) if judged else vae,
            loss,
            context,
            steps=steps,
            learning_rate=learning_rate,
            sample=lambda: reconstructions(vae, test, context.device),
        )

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(context.seed, "critic"))
        critic = Critic().to(context.device)
    vae.train()
    train("autoencoder", stage.steps, stage.learning_rate, encoder_frozen=False)
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)
    if stage.decoder_steps:
        train("decoder", stage.decoder_steps, stage.learning_rate / 2, encoder_frozen=True)
    vae.eval().requires_grad_(False)
    latents = encode(vae, test, context.device)[:, :4]
    vae.register_to_config(scaling_factor=round(1 / float(latents.std()), 4))


def cropped(
    pixels: Tensor, masks: Tensor, side: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """A random square of each image and of its mask; of a defective one half hold a part."""
    last = pixels.shape[-1] - side
    corners = torch.randint(last + 1, (len(pixels), 2), generator=generator)
    on_defect = torch.rand(len(pixels), generator=generator) < 0.5
    parts = []
    for index, (corner, aimed) in enumerate(zip(corners, on_defect.tolist(), strict=True)):
        if aimed and bool(masks[index].any()):
            inside = torch.nonzero(masks[index, 0])
            pixel = inside[torch.randint(len(inside), (), generator=generator)]
            offset = torch.randint(side, (2,), generator=generator)
            corner = (pixel - offset).clamp(0, last)
        y, x = corner.tolist()
        window = (index, slice(None), slice(y, y + side), slice(x, x + side))
        parts.append((pixels[window], masks[window]))
    images, own_masks = zip(*parts, strict=True)
    return torch.stack(images), torch.stack(own_masks)


def differences(image: Tensor) -> tuple[Tensor, Tensor]:
    """Steps from each pixel to its right and its lower neighbour."""
    return image[..., :, 1:] - image[..., :, :-1], image[..., 1:, :] - image[..., :-1, :]


@torch.no_grad()
def encode(vae: AutoencoderKL, pool: Pool, device: torch.device) -> Tensor:
    """Mean and standard deviation of all latents, (N, 8, h, w), unscaled."""
    moments = []
    for indices in torch.arange(len(pool)).split(BATCH):
        posterior = vae.encode(pool.pixels(indices).to(device)).latent_dist
        moments.append(torch.cat([posterior.mean, posterior.std], dim=1).cpu())
    return torch.cat(moments)


def gradient_energies(image: Tensor, decoded: Tensor, mask: Tensor) -> Tensor:
    """Sums of squared gradients in the mask: the image's, the decoded one's, the error's."""
    sums = torch.zeros(3)
    for own, drawn in zip(differences(image), differences(decoded), strict=True):
        inside = mask[..., : own.shape[-2], : own.shape[-1]]
        parts = (own, drawn, drawn - own)
        sums += torch.stack([(inside * part.square()).sum() for part in parts])
    return sums


@torch.no_grad()
def edges(vae: AutoencoderKL, pool: Pool, device: torch.device) -> dict[str, float]:
    """What reconstructions keep of edges and grain inside the masks, over all images at once.

    Returns:
        ``gradients_kept_in_masks``: energy of the gradients in the reconstruction as a share
        of the image's; 1.0 is all, less is blur. ``gradient_error_in_masks``: energy of the
        gradients' error as a share of the image's; 0 is none, and a flat grey gives 1. Empty
        if no image has a defect.
    """
    sums = torch.zeros(3)
    for indices in torch.arange(len(pool)).split(BATCH):
        image = pool.pixels(indices)
        decoded = vae.decode(vae.encode(image.to(device)).latent_dist.mean).sample.cpu()
        sums += gradient_energies(image, decoded.clamp(-1, 1), pool.masks[indices])
    real, drawn, wrong = sums.tolist()
    if not real:
        return {}
    return {"gradients_kept_in_masks": drawn / real, "gradient_error_in_masks": wrong / real}


@torch.no_grad()
def psnr(vae: AutoencoderKL, pool: Pool, device: torch.device) -> dict[str, float]:
    """Peak signal-to-noise ratio of reconstructions in dB, of whole images and in the masks.

    Means over images, as is usual. The pooled ones come from the error over all images at
    once, in which the hardest product weighs most.
    """
    errors, inside, covered = [], [], []
    for indices in torch.arange(len(pool)).split(BATCH):
        image = pool.pixels(indices)
        decoded = vae.decode(vae.encode(image.to(device)).latent_dist.mean).sample.cpu()
        error = (decoded.clamp(-1, 1) - image).square() / 4  # For values in [0, 1].
        mask = pool.masks[indices].expand_as(error)
        errors.append(error.mean(dim=(1, 2, 3)))
        inside.append((error * mask).sum(dim=(1, 2, 3)))
        covered.append(mask.sum(dim=(1, 2, 3)))

    def decibels(error: Tensor) -> Tensor:
        return -10 * torch.log10(error)

    whole, total, pixels = torch.cat(errors), torch.cat(inside), torch.cat(covered)
    defective = pixels > 0
    return {
        "psnr_db": float(decibels(whole).mean()),
        "psnr_in_masks_db": float(decibels(total[defective] / pixels[defective]).mean()),
        "psnr_pooled_db": float(decibels(whole.mean())),
        "psnr_pooled_in_masks_db": float(decibels(total.sum() / pixels.sum())),
    }


@torch.no_grad()
def reconstructions(vae: AutoencoderKL, pool: Pool, device: torch.device) -> Image.Image:
    """Contact sheet of images and their reconstructions."""
    image = pool.pixels(torch.arange(min(NUM_SAMPLES, len(pool))))
    decoded = vae.decode(vae.encode(image.to(device)).latent_dist.mean).sample.cpu()
    rows = list(zip(pictures(image), pictures(decoded), strict=True))
    return contact_sheet(rows, ["image", "decoded"])

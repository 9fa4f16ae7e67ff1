"""What fitted methods learn: the base's noise-prediction loss on the training defects."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from acontrol.data.crops import target_view
from acontrol.data.images import fit, read_image
from acontrol.data.mvtec import LabelledImage
from acontrol.method.condition_dropout import chances
from acontrol.method.diffusion import denoising_loss, draw, timestep_weights
from acontrol.method.encoder import embed_text
from acontrol.networks.inpainting import concat_inpainting_inputs, is_inpainting, mask_out
from acontrol.networks.load import BaseModels
from acontrol.rivals.settings import Fit
from acontrol.seeding import derive_seed

_CHUNK = 16  # Images encoded together.


class TrainingImages:
    """Training defects as the frozen networks see them, encoded once.

    Attributes:
        moments: (image, 2, channel, side, side), the latents' mean and deviation, with the
            masked-out images' channels behind for an inpainting base.
        masks: (image, 1, resolution, resolution).
        region: (image, 1, side, side), 1 on latents that a mask touches.
        text: (image, token, dim), of the captions; and of no text, (1, token, dim).
    """

    def __init__(
        self,
        base: BaseModels,
        images: Sequence[LabelledImage],
        crop: float,
        resolution: int,
        limit: int | None = None,
    ):
        """Read and encode them.

        Raises:
            UserError: If a file is bad.
        """
        self.base, self.inpainting = base, is_inpainting(base.unet)
        pairs = []
        for image in images:
            mask = Image.fromarray(image.read_mask())
            picture = Image.fromarray(read_image(image.image))
            view = target_view(picture, mask, crop, resolution, limit)
            pairs.append(fit(*view, resolution))
        pixels, masks = (torch.stack(list(part)) for part in zip(*pairs, strict=True))
        with torch.no_grad():
            parts = [self._encode(p, m) for p, m in self._chunks(pixels, masks)]
            self.moments = torch.cat(parts)
            self.text = torch.cat([self._text(image.caption) for image in images])
            self.empty = self._text("")
        self.masks = masks
        self.region = F.adaptive_max_pool2d(masks, self.moments.shape[-1])

    def _chunks(self, pixels: Tensor, masks: Tensor) -> Sequence[tuple[Tensor, Tensor]]:
        return list(zip(pixels.split(_CHUNK), masks.split(_CHUNK), strict=True))

    def _encode(self, pixels: Tensor, masks: Tensor) -> Tensor:
        vae = self.base.vae
        views = [pixels, mask_out(pixels, masks)] if self.inpainting else [pixels]
        posteriors = [vae.encode(view.to(vae.device, vae.dtype)).latent_dist for view in views]
        mean = torch.cat([posterior.mean for posterior in posteriors], dim=1)
        std = torch.cat([posterior.std for posterior in posteriors], dim=1)
        return torch.stack([mean, std], dim=1).float().cpu() * vae.config.scaling_factor

    def _text(self, caption: str) -> Tensor:
        base = self.base
        return embed_text(base.text_encoder, base.tokenizer, [caption]).cpu()


class DefectObjective:
    """The loss of a batch, a pure function of what is trained, seed and positions."""

    def __init__(self, images: TrainingImages, settings: Fit):
        """Use encoded images."""
        self.images, self.settings = images, settings
        weights = timestep_weights(
            images.base.scheduler.alphas_cumprod, settings.loss_weighting
        )
        self.weights = weights

    def numbers(self, positions: Sequence[int]) -> list[int]:
        """The images at these positions of the stream."""
        count = len(self.images.moments)
        return [derive_seed(self.settings.seed, "fit", at) % count for at in positions]

    def __call__(
        self, positions: Sequence[int], conditions: Callable[[list[int]], Tensor] | None = None
    ) -> Tensor:
        """Eq. (6) on a batch, a scalar.

        Args:
            positions: The samples' positions in the stream.
            conditions: Gives (batch, token, dim) for images by their numbers; their captions'
                by default.
        """
        images, settings, base = self.images, self.settings, self.images.base
        device, scheduler = base.unet.device, base.scheduler
        numbers = self.numbers(positions)
        mean, std = images.moments[numbers].unbind(dim=1)
        channels = base.latent_shape[0]
        drawn = draw(
            settings.seed,
            positions,
            (channels, *mean.shape[-2:]),
            len(self.weights),
            moments=mean.shape[1],
        )
        latents, *masked = (mean + std * drawn.posterior_noise).split(channels, dim=1)
        noisy = scheduler.add_noise(latents, drawn.noise, drawn.timesteps)
        region = images.region[numbers]
        if images.inpainting:
            noisy = concat_inpainting_inputs(noisy, region, *masked)
        text = images.text[numbers] if conditions is None else conditions(numbers)
        dropped = chances(settings.seed, positions) < settings.dropped_text
        text = torch.where(dropped[:, None, None].to(text.device), images.empty.to(text), text)
        noise_pred = base.unet(
            noisy.to(device, base.unet.dtype), drawn.timesteps.to(device), text.to(device)
        ).sample
        noise, region = drawn.noise.to(device), region.to(device)
        if settings.method == "anodiff":
            error = region * (noise_pred.float() - noise).square()
            errors = error.sum(dim=(1, 2, 3)) / (channels * region.sum(dim=(1, 2, 3)))
        else:
            errors = denoising_loss(noise_pred, noise, region, settings.mask_weight)
        return (self.weights[drawn.timesteps].to(device) * errors).mean()

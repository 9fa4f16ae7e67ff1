"""AnomalyDiffusion's idea on our base (Hu et al., AAAI 2024).

Each category and defect has a few vectors in place of words (textual inversion), and one
encoder turns a mask into a few tokens, the spatial embedding; both learn by the base's
noise-prediction loss inside the mask. When drawing, the attention to these tokens is raised
where the picture is still like the normal image. Departures: docs/rivals.md.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from PIL import Image
from torch import Tensor, nn

from acontrol.data.images import fit
from acontrol.data.mvtec import LabelledImage
from acontrol.errors import UserError
from acontrol.masks.inversion import MaskWords, embed_vectors
from acontrol.networks.load import BaseModels
from acontrol.pipelines.blending import Canvas
from acontrol.pipelines.denoising import NoisePredictor
from acontrol.rivals.diffusion import DiffusionMethod
from acontrol.rivals.task import Task

WEIGHTS = "anodiff.safetensors"
SPATIAL = 4  # Tokens of a mask.
_SIDE = 32  # Of what the encoder sees.
_RATE = 50.0  # Vectors of words move so many times as fast as the encoder's weights.
_MOST = 1.5  # Factor of the attention.


class AnomalyEmbedding(nn.Module):
    """The learned vectors of every category and defect, and the encoder of masks.

    Attributes:
        start: (type, vector, dim), where the vectors start: the defect's caption.
        moved: What was learned, in units of ``_RATE``.
        encoder: From (batch, 1, 32, 32) to (batch, 4 * context).
    """

    start: Tensor

    def __init__(self, start: Tensor, context: int):
        """Begin at these vectors; the encoder's last layer begins as zero.

        Args:
            start: (type, vector, dim).
            context: Width of the U-Net's conditions.
        """
        super().__init__()
        self.register_buffer("start", start.clone().float())
        self.moved = nn.Parameter(torch.zeros_like(self.start))
        last = nn.Linear(64 * (_SIDE // 8) ** 2, SPATIAL * context)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.encoder = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, 2, 1), nn.SiLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.SiLU()),
            *(nn.Conv2d(32, 64, 3, 2, 1), nn.SiLU(), nn.Flatten()),
            last,
        )

    @classmethod
    def of_captions(
        cls, base: BaseModels, captions: Sequence[str], vectors: int, seed: int
    ) -> "AnomalyEmbedding":
        """Begin with a caption of each type.

        Raises:
            UserError: If the base's prompt is too short for the vectors and the mask's tokens.
        """
        room = base.tokenizer.model_max_length - 2 - SPATIAL
        if vectors > room:
            raise UserError(f"--vectors {vectors}: the base reads {room} at most")
        words = [MaskWords.of_caption(base, one, vectors).vectors.detach() for one in captions]
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return cls(torch.stack(words), int(base.unet.config.cross_attention_dim))

    def conditions(self, base: BaseModels, types: Sequence[int], masks: Tensor) -> Tensor:
        """(batch, token, dim) for the U-Net; the mask's tokens stand in the last places.

        Args:
            base: Its text encoder reads the vectors.
            types: Number of each sample's type.
            masks: (batch, 1, side, side).
        """
        vectors = self.start + _RATE * self.moved
        encoder = (base.text_encoder, base.tokenizer)
        read = {kind: embed_vectors(*encoder, vectors[kind]) for kind in sorted(set(types))}
        text = torch.cat([read[kind] for kind in types])
        small = F.adaptive_avg_pool2d(masks.to(self.start), _SIDE)
        spatial = self.encoder(small).unflatten(-1, (SPATIAL, -1)).to(text)
        # In the places of padding, so that guidance's empty text has as many.
        return torch.cat([text[:, :-SPATIAL], text[:, -SPATIAL:] + spatial], dim=1)


def types_of(images: Sequence[LabelledImage]) -> dict[str, str]:
    """The caption of each category and defect, by "category/defect", in order."""
    captions: dict[str, str] = {}
    for image in images:
        captions.setdefault(f"{image.category}/{image.defect}", image.caption)
    return captions


class _Weights:
    """How much more each latent attends to the anomaly's tokens; None is as it is."""

    def __init__(self, vectors: int):
        self.map: Tensor | None = None
        self.vectors = vectors


class _RaisedAttention:
    """Cross-attention whose logits for the anomaly's tokens are multiplied by a map."""

    def __init__(self, weights: _Weights):
        self.weights = weights
        self.attend = AttnProcessor2_0()

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **options: Any,
    ) -> Tensor:
        """Attend; only the last rows of the batch, which have conditions, are raised."""
        raised = self.weights.map
        if raised is None or encoder_hidden_states is None:
            drawn: Tensor = self.attend(
                attn, hidden_states, encoder_hidden_states, attention_mask
            )
            return drawn
        side = round(hidden_states.shape[1] ** 0.5)
        factors = torch.ones(
            *hidden_states.shape[:2], encoder_hidden_states.shape[1], device=raised.device
        )
        own = F.adaptive_avg_pool2d(raised, side).flatten(1)[..., None]
        rows = slice(len(hidden_states) - len(raised), None)
        factors[rows, :, 1 : 1 + self.weights.vectors] = own
        factors[rows, :, -SPATIAL:] = own

        def heads(tensor: Tensor) -> Tensor:
            return tensor.unflatten(-1, (attn.heads, -1)).transpose(1, 2)

        q = heads(attn.to_q(hidden_states))
        k = heads(attn.to_k(encoder_hidden_states))
        v = heads(attn.to_v(encoder_hidden_states))
        logits = (q @ k.mT) * attn.scale * factors[:, None].to(q)
        read = logits.softmax(dim=-1) @ v
        result: Tensor = attn.to_out[0](read.transpose(1, 2).flatten(2))
        return result


def raised(clean: Tensor, canvas: Canvas) -> Tensor | None:
    """The map of a step: larger where the drawing is still like the normal image.

    |m| softmax(1 / d) inside the mask of |m| cells, d the squared distance of the latents,
    between 1 and 1.5; 1 outside.

    Args:
        clean: (batch, channel, side, side), the clean latents as the last step saw them.
        canvas: The normal images and masks.
    """
    if canvas.normal is None or canvas.mask is None:
        return None
    distance = (clean - canvas.normal).square().sum(dim=1, keepdim=True)
    nearness = (1 / distance.clamp(min=1e-6)).masked_fill(canvas.mask < 0.5, -torch.inf)
    share = nearness.flatten(1).softmax(dim=1).view_as(nearness)
    cells = canvas.mask.sum(dim=(1, 2, 3), keepdim=True)
    return (cells * share).clamp(1, _MOST)


class AnoDiff(DiffusionMethod):
    """Draws with the vectors of a defect and the tokens of a mask."""

    name = "anodiff"

    def __init__(
        self,
        base: BaseModels,
        resolution: int,
        crop: float,
        weights: Mapping[str, Tensor],
        types: Sequence[str],
        limit: int | None = None,
    ):
        """Load the embedding; otherwise as ``DiffusionMethod``.

        Args:
            base: The networks.
            resolution: As there.
            crop: As there.
            weights: Of ``AnomalyEmbedding``.
            types: Its "category/defect" in order.
            limit: As there.
        """
        super().__init__(base, resolution, crop, limit)
        start = weights["start"]
        self.types = {name: number for number, name in enumerate(types)}
        embedding = AnomalyEmbedding(start, int(base.unet.config.cross_attention_dim))
        embedding.load_state_dict(dict(weights))
        self.embedding = embedding.eval().requires_grad_(False).to(base.unet.device)
        self.weights = _Weights(start.shape[1])
        base.unet.set_attn_processor(
            {
                name: _RaisedAttention(self.weights)
                if name.endswith("attn2.processor")
                else AttnProcessor2_0()
                for name in base.unet.attn_processors
            }
        )

    def predictor(
        self, tasks: Sequence[Task], canvas: Canvas, seeds: list[torch.Generator]
    ) -> NoisePredictor:
        """The U-Net on the embeddings.

        Raises:
            UserError: If a category and defect has no vectors.
        """
        scale = tasks[0].sampling.guidance_scale
        text = torch.cat([self._conditions(task) for task in tasks])
        empty = self.texts([""]).expand_as(text)
        clean: list[Tensor] = []

        def predict(latents: Tensor, timestep: Tensor) -> Tensor:
            self.weights.map = raised(clean[0], canvas) if clean else None
            noise_pred = self.noise_in(latents, timestep, canvas, text, empty, scale)
            self.weights.map = None
            kept = self.scheduler.alphas_cumprod[timestep.cpu()].item()
            clean[:] = [(latents - (1 - kept) ** 0.5 * noise_pred) / kept**0.5]
            return noise_pred

        return predict

    def _conditions(self, task: Task) -> Tensor:
        """One by one: its neighbours in a batch must not change a text's last bit."""
        name = f"{task.category}/{task.defect}"
        if name not in self.types:
            known = ", ".join(list(self.types)[:8])
            raise UserError(f"--method anodiff was not fitted to {name}; it knows {known}")
        mask = fit(Image.fromarray(task.image), Image.fromarray(task.mask), self.resolution)[1]
        masks = mask[None].to(self.base.unet.device)
        return self.embedding.conditions(self.base, [self.types[name]], masks)

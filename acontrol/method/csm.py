"""Cross-modal semantic modeling: Sec. 3.2.1. The frozen BLIP-2 turns a reference into C'.

    I_a  reference_image  (batch, 3, size, size) in [-1, 1]
    T_a  reference_text   template + the anomaly's words
    C'   semantic tokens  (batch, query, dim), the Q-Former's query outputs

This is BLIP-2's image-text matching path: queries and text go through the Q-Former together,
and the queries attend to the image's patches. In transformers 5 the retrieval model's
``forward`` does not return attention maps, and its Q-Former cannot be entered half-way, so
``acontrol.method.qformer`` runs its layers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import Blip2ForImageTextRetrieval, PreTrainedTokenizerBase
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from acontrol.config import AseaConfig, CsmConfig
from acontrol.method.anomaly_map import ReferenceText, energy, region_on_grid
from acontrol.method.asea import Solver, guide
from acontrol.method.qformer import QFormerPass
from acontrol.method.words import LAVIS_TOKENS, warn_if_long

PADDED_TO = 16  # Tokens of a text are padded to a multiple of it for compiled steps.


@dataclass(frozen=True)
class SemanticFeatures:
    """Output of CSM.

    Attributes:
        tokens: C'.
        energy_before: E of Eq. (3) at e_g = 0.
        energy_after: E after the last step.
    """

    tokens: Float[Tensor, "batch query dim"]
    energy_before: Float[Tensor, " batch"]
    energy_after: Float[Tensor, " batch"]


def embed_patches(
    vlm: Blip2ForImageTextRetrieval, image: Float[Tensor, "batch 3 size size"]
) -> Float[Tensor, "batch token width"]:
    """The vision tower's output for images in [-1, 1]."""
    weight = vlm.vision_model.embeddings.patch_embedding.weight
    mean = torch.tensor(OPENAI_CLIP_MEAN, device=weight.device)[:, None, None]
    std = torch.tensor(OPENAI_CLIP_STD, device=weight.device)[:, None, None]
    pixels = ((image.to(weight.device) + 1) / 2 - mean) / std
    embedding: Tensor = vlm.vision_model(pixel_values=pixels.to(weight.dtype)).last_hidden_state
    return embedding


class CrossModalEncoder:
    """The frozen BLIP-2 with ASEA inside: reference image, words and mask in, C' out."""

    def __init__(
        self,
        vlm: Blip2ForImageTextRetrieval,
        tokenizer: PreTrainedTokenizerBase,
        csm: CsmConfig,
        attention: AseaConfig,
    ):
        """Freeze a loaded BLIP-2."""
        assert tokenizer.padding_side == "right"  # By which the anomaly's words are found.
        self.vlm = vlm.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.csm = csm
        self.asea = attention
        self.solve: Solver | None = None  # ASEA's steps, if they are compiled.
        self.image_px: int = vlm.config.vision_config.image_size
        self.grid: int = self.image_px // vlm.config.vision_config.patch_size
        self.text_limit: int = vlm.config.qformer_config.max_position_embeddings
        self.dim: int = vlm.config.qformer_config.hidden_size

    @property
    def device(self) -> torch.device:
        """The device of the model's weights."""
        return self.vlm.query_tokens.device

    def read(self, phrases: Sequence[str]) -> ReferenceText:
        """Tokenize "template [anomaly]" and find the anomaly's tokens.

        Raises:
            ValueError: If a phrase has no token, since Eq. (2) averages over them, or is longer
                than the Q-Former's limit.
        """
        prefix = self.tokenizer(self.csm.template, add_special_tokens=False)["input_ids"]
        texts = [f"{self.csm.template} {phrase}" for phrase in phrases]
        batch = self.tokenizer(
            texts,
            padding=True,
            # Few lengths, as compiled steps are for one each.
            pad_to_multiple_of=PADDED_TO if self.solve else None,
            return_tensors="pt",
            return_special_tokens_mask=True,
        )
        lengths = batch["attention_mask"].sum(dim=1).tolist()
        length, limit = max(lengths), self.text_limit
        if length > limit:
            longest = max(phrases, key=len)
            raise ValueError(
                f"the anomaly text {longest!r} is too long: {length} tokens with its template, "
                f"and the vision-language model takes {limit}"
            )
        warn_if_long("BLIP-2 was trained on anomaly texts up to", texts, lengths, LAVIS_TOKENS)
        # [CLS] comes first, then the template's tokens, then the anomaly's.
        position = torch.arange(batch["input_ids"].shape[1])
        special = batch["special_tokens_mask"].bool()
        span = (position > len(prefix)) & ~special & batch["attention_mask"].bool()
        for phrase, row in zip(phrases, span, strict=True):
            if not row.any():
                raise ValueError(f"the anomaly text {phrase!r} gives no token")
        device = self.device
        return ReferenceText(
            batch["input_ids"].to(device), batch["attention_mask"].to(device), span.to(device)
        )

    @torch.no_grad()
    def embed_image(
        self, image: Float[Tensor, "batch 3 size size"]
    ) -> Float[Tensor, "batch token width"]:
        """The visual embedding e_v: class token, then patches, after the last layer norm."""
        # The Q-Former stays in float32 whatever the vision tower's precision.
        return embed_patches(self.vlm, image).to(self.vlm.query_tokens.dtype)

    @torch.no_grad()
    def __call__(
        self,
        image: Float[Tensor, "batch 3 size size"],
        phrases: Sequence[str],
        mask: Float[Tensor, "batch 1 size size"],
        attention: AseaConfig | None = None,
    ) -> SemanticFeatures:
        """Run CSM with T_g steps of ASEA and one more pass for C' (Algorithm 1).

        C' is a pure function of its arguments and the frozen weights.

        Args:
            image: I_a in [-1, 1], at the vision tower's size.
            phrases: The anomaly's words, one phrase per sample.
            mask: M_A at the image's size, the share of each pixel that the defect covers.
            attention: ASEA settings; by default the encoder's own.
        """
        settings = attention or self.asea
        solve = self.solve if settings == self.asea else None
        text = self.read(phrases) if self.csm.text else None
        mask = mask.to(self.device)
        if self.csm.outside == "grey":
            image = torch.where(mask > 0, image.to(self.device), 0)
        region = region_on_grid(mask, self.grid)
        visual = self.embed_image(image)
        qformer = QFormerPass(
            self.vlm,
            len(image),
            text,
            method=settings.map,
            first=settings.solver == "first",
            values=visual if settings.target == "keys" else None,
        )
        embedding, energies = guide(qformer, visual, region, settings, solve)
        tokens, attended = qformer.finish(embedding)
        after = energy(attended, region)
        before = energies[:, 0] if settings.steps else after
        return SemanticFeatures(tokens, before, after)

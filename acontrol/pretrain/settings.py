"""Every setting of launch.pretrain."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from acontrol.config import Settings

# The denoiser of the built-in base sees none of these, so that an adapter has something to
# teach: one defect everywhere, and three on one product each.
HELD_OUT = ("spots", "leather/crack", "metal/stain", "wood/hole")


class Sizes(Settings):
    """How large the networks are. Three numbers fix most: the others follow."""

    resolution: int = Field(
        64, ge=32, multiple_of=32, description="Side of the images, in pixels: 64, 128, 256."
    )
    vae_channels: tuple[int, ...] = Field(
        (16, 32, 64), min_length=2, description="Of the autoencoder; each halves the side."
    )
    unet_channels: tuple[int, ...] = Field(
        (48, 96), min_length=2, description="Of the U-Net; the first levels attend to text."
    )
    width: int = Field(
        64, ge=32, multiple_of=32, description="Of text embeddings and of C', which must agree."
    )
    vision_width: int = Field(96, ge=32, multiple_of=32, description="Of the vision tower.")
    vision_layers: int = Field(3, ge=1, description="Of the vision tower.")
    patch: int = Field(8, ge=4, multiple_of=4, description="Side of its patches, in pixels.")
    qformer_layers: int = Field(6, ge=2, multiple_of=2, description="Every other one sees.")
    queries: int = Field(8, ge=1, description="Query tokens: the length of C'.")


class VaeStage(Settings):
    """The autoencoder: L1 + 2 MSE + 1e-4 KL, weighted inside the defects."""

    steps: int = Field(3_000, ge=1, description="Of encoder and decoder together.")
    decoder_steps: int = Field(12_000, ge=0, description="Of the decoder alone, after that.")
    batch_size: int = Field(8, ge=1, description="Images a step.")
    learning_rate: float = Field(2e-3, gt=0, description="Of AdamW; falls as a cosine.")
    mask_weight: float = Field(
        4.0, ge=0, description="Extra weight of pixels in a defect, or small ones vanish."
    )


class DenoiserStage(Settings):
    """Text encoder and U-Net: noise prediction on cached latents."""

    steps: int = Field(4_000, ge=1, description="Optimizer steps.")
    batch_size: int = Field(16, ge=1, description="Images a step.")
    learning_rate: float = Field(1.2e-3, gt=0, description="Of AdamW; falls as a cosine.")
    mask_weight: float = Field(3.0, ge=0, description="Extra weight of latents in a defect.")
    ema_decay: float = Field(0.998, ge=0, lt=1, description="Of the weights that are kept.")
    caption_dropout: float = Field(0.1, ge=0, lt=1, description="Share without a caption.")
    plain_captions: float = Field(
        0.3, ge=0, lt=1, description="Share whose caption leaves out colour and shade."
    )


class VlmStage(Settings):
    """The BLIP-2: a vision tower on patch labels, then ITC and ITM on the Q-Former."""

    vision_steps: int = Field(
        1_800,
        ge=0,
        description="In which the vision tower learns what each patch shows, from the masks: "
        "it stands in for a tower trained on web images. Frozen afterwards.",
    )
    steps: int = Field(3_000, ge=1, description="Of the Q-Former.")
    batch_size: int = Field(48, ge=2, description="Images a step.")
    learning_rate: float = Field(1.5e-3, gt=0, description="Of AdamW; falls as a cosine.")
    temperature: float = Field(0.07, gt=0, description="Of the contrastive loss.")


class PretrainTracking(Settings):
    """MLflow."""

    uri: str | None = Field(
        None, description="Tracking server or database; by default an SQLite file beside BASE."
    )
    experiment: str = Field("acontrol-pretrain", min_length=1, description="Its name.")


class PretrainConfig(Settings):
    """A base, whole."""

    output: Path = Field(description="Folder of the finished base; the same one resumes.")
    seed: int = Field(0, ge=0, lt=2**63, description="Everything random follows from it.")
    pool: int = Field(
        16_000,
        ge=8,
        description="Images that are drawn before training, or views cut from the folder's.",
    )
    test: int = Field(512, ge=8, description="Further images, for the metrics in the card.")
    hold_out: tuple[str, ...] | None = Field(
        None,
        description="Defects that the U-Net does not see, as DEFECT or CATEGORY/DEFECT; by "
        f"default, for the built-in data alone: {' '.join(HELD_OUT)}.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Where to train.")
    bfloat16: bool = Field(
        True, description="Autoencoder (and on CUDA everything) under bfloat16 autocast."
    )
    judge_steps: int = Field(
        1_500, ge=1, description="Of the classifier that judges drawings for the card."
    )
    save_every: int = Field(250, ge=1, description="Steps between states that a rerun takes.")
    samples_every: int = Field(1_000, ge=1, description="Steps between sample grids.")
    sizes: Sizes = Sizes()
    vae: VaeStage = VaeStage()
    denoiser: DenoiserStage = DenoiserStage()
    vlm: VlmStage = VlmStage()
    tracking: PretrainTracking = PretrainTracking()

    @model_validator(mode="after")
    def _grid_divides(self) -> "PretrainConfig":
        factor = 2 ** (len(self.sizes.vae_channels) - 1)
        deepest = factor * 2 ** (len(self.sizes.unet_channels) - 1)
        if self.sizes.resolution % deepest or self.sizes.resolution % self.sizes.patch:
            raise ValueError(
                f"sizes.resolution {self.sizes.resolution} must be a multiple of {deepest} "
                f"(the U-Net's deepest level) and of sizes.patch {self.sizes.patch}"
            )
        return self

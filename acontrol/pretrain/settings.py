"""Settings of launch.pretrain."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from acontrol.config import Settings
from acontrol.data.settings import SPLIT_FILE

# Not shown to the denoiser of the built-in base, so that an adapter has something to teach: one
# defect everywhere, and three on one product each.
HELD_OUT = ("spots", "leather/crack", "metal/stain", "wood/hole")


class Sizes(Settings):
    """Sizes of the networks."""

    resolution: int = Field(
        64, ge=32, multiple_of=32, description="Side of the images, in pixels: 64, 128, 256."
    )
    vae_channels: tuple[int, ...] = Field(
        (16, 32, 64),
        min_length=2,
        description="Autoencoder channels by level of half the side.",
    )
    unet_channels: tuple[int, ...] = Field(
        (48, 96), min_length=2, description="U-Net channels; all levels but the last see text."
    )
    width: int = Field(
        64, ge=32, multiple_of=32, description="Width of both text embeddings and C'."
    )
    vision_width: int = Field(96, ge=32, multiple_of=32, description="Vision tower's width.")
    vision_layers: int = Field(3, ge=1, description="Layers of the vision tower.")
    patch: int = Field(8, ge=4, multiple_of=4, description="Side of its patches, in pixels.")
    qformer_layers: int = Field(
        6, ge=2, multiple_of=2, description="Layers; every other one has cross-attention."
    )
    queries: int = Field(8, ge=1, description="Query tokens: the length of C'.")


class VaeStage(Settings):
    """The autoencoder: L1 + 2 MSE + 1e-4 KL, weighted inside the defects."""

    steps: int = Field(3_000, ge=1, description="Steps of encoder and decoder together.")
    decoder_steps: int = Field(12_000, ge=0, description="Further steps of the decoder alone.")
    batch_size: int = Field(8, ge=1, description="Images per step.")
    learning_rate: float = Field(2e-3, gt=0, description="AdamW's peak rate; cosine decay.")
    mask_weight: float = Field(
        4.0, ge=0, description="Extra weight of defective pixels, or small defects vanish."
    )


class DenoiserStage(Settings):
    """Text encoder and U-Net: noise prediction on cached latents."""

    steps: int = Field(4_000, ge=1, description="Optimizer steps.")
    batch_size: int = Field(16, ge=1, description="Images per step.")
    learning_rate: float = Field(1.2e-3, gt=0, description="AdamW's peak rate; cosine decay.")
    mask_weight: float = Field(3.0, ge=0, description="Extra weight of defective latents.")
    ema_decay: float = Field(0.998, ge=0, lt=1, description="Of the weights' moving average.")
    caption_dropout: float = Field(0.1, ge=0, lt=1, description="Share without a caption.")
    plain_captions: float = Field(
        0.3, ge=0, lt=1, description="Share of captions without colour and shade."
    )


class VlmStage(Settings):
    """The BLIP-2: a vision tower on patch labels, then ITC and ITM on the Q-Former."""

    vision_steps: int = Field(
        1_800,
        ge=0,
        description="Steps in which the vision tower learns from the masks what each patch "
        "shows, in place of training on web images. Frozen afterwards.",
    )
    steps: int = Field(3_000, ge=1, description="Optimizer steps of the Q-Former.")
    batch_size: int = Field(48, ge=2, description="Images per step.")
    learning_rate: float = Field(1.5e-3, gt=0, description="AdamW's peak rate; cosine decay.")
    temperature: float = Field(0.07, gt=0, description="Temperature of the contrastive loss.")


class PretrainTracking(Settings):
    """MLflow."""

    uri: str | None = Field(
        None,
        description="Tracking server or database; by default MLFLOW_TRACKING_URI, else "
        "runs/mlflow.db.",
    )
    experiment: str = Field("acontrol", min_length=1, description="Experiment name.")


class PretrainConfig(Settings):
    """A whole base."""

    output: Path = Field(description="Folder of the finished base; the same one resumes.")
    seed: int = Field(0, ge=0, lt=2**63, description="Random seed.")
    split_file: Path | None = Field(None, description=SPLIT_FILE)
    pool: int = Field(
        16_000, ge=8, description="Training images, drawn or cropped before training."
    )
    test: int = Field(512, ge=8, description="Views for the card's metrics.")
    hold_out: tuple[str, ...] | None = Field(
        None,
        description="Defects hidden from the U-Net, as DEFECT or CATEGORY/DEFECT; by default, "
        f"for the built-in data alone: {' '.join(HELD_OUT)}.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Where to train.")
    bfloat16: bool = Field(
        True, description="bfloat16 autocast of the autoencoder, and on CUDA of everything."
    )
    judge_steps: int = Field(
        1_500, ge=1, description="Steps of the classifier behind the card's metrics."
    )
    save_every: int = Field(250, ge=1, description="Steps between saved states.")
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

"""Settings of launch.pretrain."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from acontrol.config import BUILT_IN, Settings
from acontrol.data.settings import SPLIT_FILE

# Not shown to the denoiser of the built-in base, so that an adapter has something to teach: one
# defect everywhere, and three on one product each.
HELD_OUT = ("spots", "leather/crack", "metal/stain", "wood/hole")
MAX_SCALE = 4  # Beyond, a square is only blur.
Turns = Literal["auto", "any"]


class Sizes(Settings):
    """Sizes of the networks; with --init those that are not given are the init's."""

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

    def check(self) -> None:
        """Check that the networks' grids divide the image.

        Raises:
            ValueError: If they do not.
        """
        factor = 2 ** (len(self.vae_channels) - 1)
        deepest = factor * 2 ** (len(self.unet_channels) - 1)
        if self.resolution % deepest or self.resolution % self.patch:
            raise ValueError(
                f"sizes.resolution {self.resolution} must be a multiple of {deepest} "
                f"(the U-Net's deepest level) and of sizes.patch {self.patch}"
            )


class VaeStage(Settings):
    """The autoencoder: L1 + 2 MSE + 1e-4 KL, weighted inside the defects."""

    steps: int = Field(3_000, ge=1, description="Steps of encoder and decoder together.")
    decoder_steps: int = Field(12_000, ge=0, description="Further steps of the decoder alone.")
    batch_size: int = Field(8, ge=1, description="Images per step.")
    learning_rate: float = Field(2e-3, gt=0, description="AdamW's peak rate; cosine decay.")
    mask_weight: float = Field(
        4.0, ge=0, description="Extra weight of defective pixels, or small defects vanish."
    )
    crop: int | None = Field(
        None,
        ge=32,
        multiple_of=32,
        description="Side of the random squares of the images that it trains on, in pixels; by "
        "default whole images. It is convolutional.",
    )
    critic_weight: float | None = Field(
        None,
        ge=0,
        description="Weight of a patch critic in the decoder's own steps, such as .05, which "
        "keeps more grain; by default there is none.",
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
    init: str | None = Field(
        None,
        description=f"Base whose weights every network starts from: {BUILT_IN}, or a folder of "
        "acontrol pretrain; by default fresh weights.",
    )
    view: int | None = Field(
        None,
        ge=32,
        multiple_of=32,
        description="Side of the images, in pixels, as squares cut from the photographs' own "
        "pixels: of good products anywhere, and around defects. By default whole photographs "
        "(at least three quarters of each), squashed to sizes.resolution.",
    )
    scale: tuple[float, ...] | None = Field(
        None,
        min_length=1,
        max_length=2,
        description="Pixels of a view per pixel of the photograph, or the smallest and the "
        "largest: at .5, --view 64 shows squares of 128 pixels. By default 1.",
    )
    turns: Turns = Field(
        "auto",
        description="Orientations of the squares of --view: any of eight, or auto: those in "
        "which a product's streaks run as in nearly all of its good images.",
    )
    also: tuple[Path, ...] | None = Field(
        None,
        description="Folders of other products, whose good training images the autoencoder "
        "learns too.",
    )
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
        True, description="bfloat16 autocast of the autoencoder, and on CUDA of the U-Net too."
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
    def _fits_together(self) -> Self:
        if self.view is None and self.scale is not None:
            raise ValueError("--scale is of the squares of --view: give --view too")
        if self.view is None and self.turns != "auto":
            raise ValueError("--turns is of the squares of --view: give --view too")
        if self.scale is not None and not 0 < min(self.scale) <= max(self.scale) <= MAX_SCALE:
            raise ValueError(f"scale must be over 0 and at most {MAX_SCALE}, got {self.scale}")
        own = self.sizes.resolution
        if self.view not in (None, own) and "resolution" in self.sizes.model_fields_set:
            raise ValueError(
                f"--view {self.view} is the side of the networks' images, and "
                f"--sizes.resolution {own} another: give --view alone"
            )
        if self.init is None:
            self.resolved({}).check()
        return self

    def check(self) -> None:
        """Check resolved sizes: the networks' grids, and the autoencoder's crop.

        Raises:
            ValueError: If they do not fit together.
        """
        self.sizes.check()
        if self.vae.crop is not None and self.vae.crop > self.sizes.resolution:
            raise ValueError(
                f"vae.crop {self.vae.crop} is larger than the images "
                f"({self.sizes.resolution} pixels)"
            )

    @property
    def squares_scale(self) -> tuple[float, ...] | None:
        """The scale of squares of original pixels; None for whole photographs."""
        return None if self.view is None else self.scale or (1.0,)

    def resolved(self, init: Mapping[str, Any]) -> Self:
        """These settings with every size in place: given, else the view's, else the init's.

        Args:
            init: Sizes of the base to start from, by name.
        """
        given = {name: getattr(self.sizes, name) for name in self.sizes.model_fields_set}
        view = {} if self.view is None else {"resolution": self.view}
        sizes = Sizes.model_validate({**init, **view, **given})
        return self.model_copy(update={"sizes": sizes})

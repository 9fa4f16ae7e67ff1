"""How one image is drawn."""

from typing import Literal

from pydantic import Field

from acontrol.config.settings import Settings

Solver = Literal["ddim", "dpm++", "unipc"]
# Stable Diffusion's "leading" timesteps are a whole number apart: with more steps they are 1
# apart, and drawing would begin at as many of 1,000 as there are steps, far below pure noise.
MOST_STEPS = 500


class Sampling(Settings):
    """How one image is drawn. A request may set each of these itself."""

    steps: int = Field(30, ge=1, le=MOST_STEPS, description="Denoising steps (Sec. 4.1: 30).")
    solver: Solver = Field(
        "ddim",
        description="ddim: the paper's. dpm++, unipc: DPM-Solver++ and UniPC, which draw about "
        "the same in fewer --steps.",
    )
    guidance_scale: float = Field(
        7.5, ge=1, le=100, description="Classifier-free guidance (Sec. 4.1)."
    )
    scale: float | None = Field(
        None, ge=0, le=10, description="Gamma of Eq. 5; by default the one trained with."
    )
    asea_steps: int | None = Field(
        None, ge=0, le=50, description="T_g of Eq. 4; by default as trained with."
    )
    asea_step_size: float | None = Field(
        None, gt=0, description="Alpha of Eq. 4; by default as trained with."
    )
    crop: float | None = Field(
        None,
        ge=0,
        le=100,
        description="Draw in a square so many times as large as the defect, and paste it back; "
        "0: the whole image. By default as the adapter was trained (data.target_view).",
    )
    start: Literal["noise", "reference", "clean"] = Field(
        "noise",
        description="What lies under the noise inside the mask. noise: nothing (the paper); "
        "reference: the reference's defect, warped into the mask; clean: the normal image.",
    )
    strength: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Of the noise over --start reference or clean, as in diffusers' "
        "inpainting: the share of the steps that are done. Below 1 the structure stays.",
    )

    detail: bool = Field(
        False,
        description="Keep grain that the base is too coarse for: add only the drawing's "
        "difference from the autoencoder's view of what lies under it (--start reference or "
        "clean; with noise the normal image) to that, in its own pixels.",
    )

    def check(self) -> None:
        """Check settings that a command and its requests set together.

        Raises:
            ValueError: If there is nothing that a strength below 1 could keep.
        """
        if self.start == "noise" and self.strength < 1:
            raise ValueError(
                f"strength {self.strength:g} keeps a part of what a drawing starts from: give "
                "start reference or clean with it"
            )

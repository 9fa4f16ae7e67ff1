"""The method's own settings: CSM, ASEA, SGA and condition dropout."""

from typing import Literal

from pydantic import Field, model_validator

from acontrol.config.settings import Settings, unit_interval


class CsmConfig(Settings):
    """Cross-modal semantic modeling (Sec. 3.2.1)."""

    text: bool = Field(True, description="Read the reference text too; off: image-only C'.")
    mode: Literal["queries", "pooled"] = Field(
        "queries",
        description="C' as the sequence of query outputs (the paper), or pooled into four "
        "projected tokens (the authors' code).",
    )
    outside: Literal["keep", "grey"] = Field(
        "keep",
        description="The reference's pixels outside its mask: kept (the paper), or greyed, so "
        "that nothing else in the photograph can be read.",
    )
    template: str = Field(
        "This is an image with", description="Prefix of the reference text T_a (Sec. 3.2.2)."
    )


class AseaConfig(Settings):
    """Anomaly-semantic enhanced attention (Sec. 3.2.2, Eq. 2-4)."""

    steps: int = Field(
        3,
        ge=0,
        le=50,
        description="T_g, gradient steps on e_g; 0 is off. They help where something else in "
        "the reference competes with the defect for attention (docs/results.md).",
    )
    step_size: float = Field(
        0.1,
        gt=0,
        description="Alpha. With rule 'token' how far the token that moves most moves, as a "
        "share of its own length; with 'normalized' the length of a whole step as a share of "
        "|e_v|, which lets a token go further on a finer grid; with 'gd' the factor of Eq. 4, "
        "large (1e3 on a small VLM); with 'adam' its rate (0.1 in the authors' code).",
    )
    rule: Literal["token", "normalized", "gd", "adam"] = Field(
        "token",
        description="Step rule: Eq. 4 as printed is 'gd', the authors' code 'adam'; earlier "
        "versions had 'normalized', with alpha 0.02.",
    )
    target: Literal["both", "keys"] = Field(
        "both",
        description="What reads e_v + e_g: keys and values of the Q-Former's cross-attention "
        "(the paper), or the keys alone, which decide where it looks; values are what it sees.",
    )
    map: Literal["rollout", "query_mean"] = Field(
        "rollout",
        description="How BLIP-2 yields the text-to-image map A of Eq. 2: text to queries to "
        "patches, or the mean over queries (the authors' code).",
    )
    solver: Literal["all", "first"] = Field(
        "all",
        description="Layers whose attention the energy uses: all cross-attention layers (the "
        "paper), or only the first, which costs next to nothing.",
    )
    bound: float | None = Field(
        None,
        gt=0,
        description="Upper bound of |e_g| as a share of |e_v|, in each token; None: no bound.",
    )
    stop_energy: float | None = Field(
        None, gt=0, le=1, description="A sample stops once its E is below this; None: never."
    )

    @model_validator(mode="after")
    def _first_has_a_closed_form(self) -> "AseaConfig":
        if self.solver == "first" and self.rule == "adam":
            raise ValueError("solver 'first' steps in closed form; rule 'adam' has none")
        return self


class SgaConfig(Settings):
    """The semantic guided adapter (Sec. 3.2.3, Eq. 5)."""

    scale: float = Field(1.0, ge=0, le=10, description="Gamma; 0 is the base model.")


class DropoutConfig(Settings):
    """Condition dropout from one uniform draw a sample, for classifier-free guidance."""

    text: float = unit_interval(0.05, "Share of samples that lose only the target text.")
    semantic: float = unit_interval(0.05, "Share of samples that lose only C'.")
    both: float = unit_interval(0.05, "Share of samples that lose both.")

    @model_validator(mode="after")
    def _leaves_conditioned_samples(self) -> "DropoutConfig":
        if self.text + self.semantic + self.both >= 1:
            raise ValueError("text + semantic + both must stay under 1")
        return self

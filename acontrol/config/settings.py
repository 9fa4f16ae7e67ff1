"""The base class of every group of settings."""

from pydantic import BaseModel, ConfigDict, Field


class Settings(BaseModel):
    """A frozen group of settings that refuses unknown names."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def unit_interval(default: float, description: str) -> float:
    """A field for a probability or a share, in [0, 1]."""
    return Field(default, ge=0, le=1, description=description)

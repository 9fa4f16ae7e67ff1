"""Settings of launch.studio."""

from pathlib import Path

from pydantic import Field

from acontrol.config import Precision, Settings
from acontrol.data.settings import SPLIT_FILE


class StudioConfig(Settings):
    """What the page draws with, and where what is kept goes."""

    model: str = Field(description="The adapter that draws, as for acontrol generate.")
    data: Path = Field(
        description="Folder of good images and reference defects, in MVTec AD's layout."
    )
    out: Path = Field(
        description="Folder of what is kept, in the same layout; the same one continues."
    )
    split_file: Path | None = Field(None, description=SPLIT_FILE)
    host: str = Field(
        "127.0.0.1",
        description="Address to listen on; another than this machine's own needs --token.",
    )
    port: int = Field(8080, ge=1, le=65535, description="Port to listen on.")
    token: str | None = Field(
        None, min_length=8, description="What a browser must give once, as /?token=..."
    )
    show: bool = Field(True, description="Open the page in a browser.")
    most: int = Field(
        20, ge=1, le=1000, description="Images that one request may ask for at most."
    )
    megapixels: float = Field(
        50.0, gt=0, le=200, description="Size of an uploaded image, at most."
    )
    waiting: int = Field(200, ge=1, description="Drawings that may wait, at most.")
    precision: Precision = Field("float32", description="Of the networks.")
    seed: int = Field(0, ge=0, lt=2**63, description="Where the seeds of drawings start.")

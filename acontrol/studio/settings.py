"""Settings of `acontrol studio`, and its bounds."""

from pathlib import Path

from pydantic import Field

from acontrol.config import Precision, Settings
from acontrol.data.settings import SPLIT_FILE

LOOPBACK = ("127.0.0.1", "localhost", "::1")
MOST_AT_ONCE = 16  # Drawings of one request.
MOST_WAITING = 200  # Drawings of all users.
MOST_STEPS = 200
MOST_SHOWN = 500  # Accepted drawings in the gallery, the latest; so of the others.
MOST_BYTES = 64 * 2**20  # Of one upload.


class StudioConfig(Settings):
    """Every setting of launch.studio."""

    model: str = Field(
        description="A run's or adapter's folder or its URI, tiny for the one that ships with "
        "acontrol, or models:/NAME@ALIAS of the server in MLFLOW_TRACKING_URI."
    )
    data: Path = Field(description="Folder of normal images and defects, in MVTec AD's layout.")
    out: Path = Field(description="Folder for what is kept; created, or continued.")
    port: int = Field(8090, ge=0, le=65535, description="Port; 0 takes a free one.")
    host: str = Field(
        "127.0.0.1",
        description="Address to listen on. Any other needs a token, which is printed.",
    )
    open: bool = Field(True, description="Open the page in the browser.")
    split_file: Path | None = Field(None, description=SPLIT_FILE)
    captions: Path | None = Field(
        None, description="JSON file of captions, as acontrol shard was given."
    )
    base_path: str | None = Field(None, description="Where the base is now, if it moved.")
    tracking_uri: str | None = Field(
        None,
        description="MLflow server or database whose runs are listed; by default "
        "MLFLOW_TRACKING_URI, else runs/mlflow.db.",
    )
    precision: Precision = Field("float32", description="Of the networks.")

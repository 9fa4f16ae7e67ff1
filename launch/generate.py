"""Draw new labelled defect images with a trained adapter, in MVTec AD's layout.

    python -m launch.generate --model MODEL --data ROOT --out DIR [--defect D] [--count N]

MODEL is a run's output folder, an adapter folder or models:/NAME@ALIAS. References and masks
come from the part of ROOT that was trained on, normal images from its train/good or from
--normal ROOT. The manifest (DIR/manifest.jsonl) says how each image was made; the same command
gives the same bytes on the same machine.
"""

import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field
from tqdm import tqdm

from acontrol.config import Settings, UserError
from acontrol.data.mvtec import open_folder
from launch.entry import main, parse

PROG = "python -m launch.generate"


class GenerateCommand(Settings):
    """Options of launch.generate."""

    model: str = Field(
        description="A run's output folder, an adapter folder, or models:/NAME@ALIAS of the "
        "server in MLFLOW_TRACKING_URI."
    )
    data: Path = Field(description="Folder of the defects, in MVTec AD's layout.")
    out: Path = Field(description="Folder to create.")
    normal: Path | None = Field(
        None, description="Folder of the good images, if they are not in --data."
    )
    category: str | None = Field(None, description="Only this category; by default all.")
    defect: str = Field("all", description="Only this defect type, or 'all'.")
    split: Literal["train", "test", "all"] | None = Field(
        None, description="Part of --data for references and masks; by default as trained."
    )
    count: int = Field(4, ge=1, description="Images of each category and defect.")
    seed: int = Field(0, ge=0, lt=2**63, description="Everything drawn follows from it.")
    masks: Literal["real", "same", "perlin", "file"] = Field(
        "real",
        description="Where defects go. real: training masks of that defect, moved, turned, "
        "scaled and bent; same: these as they are; perlin: blobs, as a control; file: yours.",
    )
    mask_files: Path | None = Field(
        None, description="Masks for --masks file: DIR/DEFECT/*.png, or DIR/*.png for all."
    )
    composite: bool = Field(
        True,
        description="Keep the normal image's own pixels outside the mask; without, they went "
        "through the autoencoder, which leaks.",
    )
    steps: int = Field(30, ge=1, le=1000, description="DDIM steps (Sec. 4.1).")
    guidance_scale: float = Field(7.5, ge=1, description="Classifier-free guidance (Sec. 4.1).")
    scale: float | None = Field(
        None, ge=0, le=10, description="Gamma of Eq. 5; by default the one trained with."
    )
    batch_size: int = Field(4, ge=1, description="Images drawn together.")
    base_path: str | None = Field(None, description="Where the base is now, if it moved.")


def run(args: Sequence[str]) -> None:
    """Plan, then draw."""
    command = parse(GenerateCommand, args, prog=PROG, description=__doc__)
    registered = command.model.startswith("models:")
    if not registered and not Path(command.model).is_dir():
        raise UserError(f"--model {command.model}: no such folder")
    folder = open_folder(command.data)
    normal_folder = open_folder(command.normal) if command.normal else None

    # Imported only once the arguments are known to be good.
    import torch

    from acontrol.base import quieten
    from acontrol.generation.draw import (
        DrawSettings,
        check_empty,
        load_pipeline,
        write_dataset,
    )
    from acontrol.generation.plan import plan

    quieten()
    check_empty(command.out)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory(prefix="acontrol-model-") as scratch:
        model = command.model
        if registered:
            from acontrol.registry.pull import pull
            from acontrol.registry.server import server_uri

            model = os.path.join(scratch, "adapter")
            pull(command.model, Path(model), server_uri(None))
        pipeline, digest = load_pipeline(model, command.base_path, device)
    planned, left_out = plan(
        folder,
        split=command.split or pipeline.card.split,
        normal_folder=normal_folder,
        category=command.category,
        defect=None if command.defect == "all" else command.defect,
        count=command.count,
        seed=command.seed,
        masks=command.masks,
        mask_files=command.mask_files,
        cells=pipeline.card.resolution >> (len(pipeline.vae.config.block_out_channels) - 1),
    )
    pipeline.set_progress_bar_config(disable=True)

    def progress(numbers: Iterable[int]) -> Iterable[int]:
        return tqdm(numbers, desc="drawing", unit="image", disable=None)

    write_dataset(
        command.out,
        pipeline,
        digest,
        planned,
        DrawSettings(
            num_inference_steps=command.steps,
            guidance_scale=command.guidance_scale,
            semantic_scale=command.scale,
            composite=command.composite,
        ),
        roots=(folder.root, normal_folder.root if normal_folder else folder.root),
        batch_size=command.batch_size,
        progress=progress,
    )
    if left_out:
        print(f"{len(left_out)} found no place for their defect; the first: {left_out[0]}")
    print(f"{len(planned)} images with masks: {os.fspath(command.out)}")


if __name__ == "__main__":
    main(run)

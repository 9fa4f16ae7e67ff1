"""Fit a rival method to the training defects, to draw with by acontrol generate.

    python -m launch.fit ROOT --method lora --output LORA [--base BASE] [--split-file S]
    python -m launch.generate --method lora --fitted LORA --data ROOT --out DIR

lora: the U-Net's attention learns ROOT's training part from its captions, one LoRA for all
products and defects, in a file that diffusers' pipelines load, too. anodiff: a few vectors for
each defect and an encoder of masks, as AnomalyDiffusion's. The base stays as it is. Killed, the
same command continues. More in docs/rivals.md.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from acontrol.messages import counted
from acontrol.rivals.settings import FitConfig
from launch.entry import loading, main
from launch.options import parse

PROG = "python -m launch.fit"


class FitCommand(FitConfig):
    """Options of launch.fit."""

    root: Path = Field(
        description="Folder of categories in MVTec AD's layout, or one category."
    )


def run(args: Sequence[str], prog: str = PROG) -> None:
    """Fit a method; print what it has seen and where it is."""
    command = parse(
        FitCommand, args, prog=prog, description=__doc__, positional={"root": "ROOT"}
    )
    # The models are imported only once the settings are valid.
    with loading():
        from acontrol.networks.load import quieten

        quieten()
        from acontrol.rivals.fitting import fit

    config = FitConfig.model_validate(command.model_dump(exclude={"root"}))
    card = fit(config, command.root)
    learnt = counted(len(card.training), "image")
    print(f"{card.fit.method} of {learnt}: {os.fspath(config.output)}")


if __name__ == "__main__":
    main(run)

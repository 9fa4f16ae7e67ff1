"""Learn where defects go: masks that the frozen base draws, like a defect's training masks.

    python -m launch.masks ROOT --output MASKS [--base BASE] [--category C] [--defect D]
    python -m launch.generate ... --masks learned --masks-path MASKS

For each category and defect of ROOT, textual inversion learns a few vectors that make the base
draw its masks; masks are then drawn, and those that differ from the training masks in area or
length, are empty, or run along the border are left out. With the built-in base that is a few
minutes each on one core. Killed, the same command continues. Look at
MASKS/CATEGORY/DEFECT/sheet.png, and remove from masks/ there what you do not like.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from acontrol.masks.settings import MasksConfig
from acontrol.messages import counted
from launch.entry import loading, main
from launch.options import parse

PROG = "python -m launch.masks"


class MasksCommand(MasksConfig):
    """Options of launch.masks."""

    root: Path = Field(
        description="Folder of categories in MVTec AD's layout, or one category."
    )


def run(args: Sequence[str], prog: str = PROG) -> None:
    """Learn masks; print the counts and the folder."""
    command = parse(
        MasksCommand, args, prog=prog, description=__doc__, positional={"root": "ROOT"}
    )
    # The models are imported only once the settings are valid.
    with loading():
        from acontrol.networks.load import quieten

        quieten()
        from acontrol.masks.inversion_run import learn_masks

    config = MasksConfig.model_validate(command.model_dump(exclude={"root"}))
    for card in learn_masks(config, command.root):
        rejected = sorted(card.rejected.items(), key=lambda item: -item[1])
        reasons = ", ".join(f"{count} {reason}" for reason, count in rejected)
        print(
            f"{card.category}/{card.defect}: {card.kept} of "
            f"{counted(card.drawn, 'drawn mask')} kept"
            + (f" (not {reasons})" if reasons else "")
        )
    print(f"Masks: {os.fspath(config.output)}")


if __name__ == "__main__":
    main(run)

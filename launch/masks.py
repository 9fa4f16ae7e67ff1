"""Learn where defects go: masks that the frozen base draws, like a defect's training masks.

    python -m launch.masks ROOT --output MASKS [--base BASE] [--category C] [--defect D]
    python -m launch.generate ... --masks learned --masks-path MASKS

For each category and defect of ROOT a few vectors learn, by textual inversion, what the base
must read to draw its masks; then masks are drawn, and those unlike the training masks in area
or length, empty, or along the border are left out. With the built-in base that is a few
minutes each on one core. Killed, the same command continues. Look at
MASKS/CATEGORY/DEFECT/sheet.png, and remove from masks/ there what you do not like.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from acontrol.masks.settings import MasksConfig
from launch.entry import main
from launch.options import parse

PROG = "python -m launch.masks"


class MasksCommand(MasksConfig):
    """Options of launch.masks."""

    root: Path = Field(
        description="Folder of categories in MVTec AD's layout, or one category."
    )


def run(args: Sequence[str], prog: str = PROG) -> None:
    """Learn, and say what came and where it is."""
    command = parse(
        MasksCommand, args, prog=prog, description=__doc__, positional={"root": "ROOT"}
    )
    # The models are imported only once the arguments are known to be good.
    from acontrol.networks.load import quieten

    quieten()
    from acontrol.masks.inversion_run import learn_masks

    config = MasksConfig.model_validate(command.model_dump(exclude={"root"}))
    for card in learn_masks(config, command.root):
        reasons = sorted(card.rejected.items(), key=lambda one: -one[1])
        told = ", ".join(f"{count} {reason}" for reason, count in reasons)
        print(
            f"{card.category}/{card.defect}: {card.kept} masks of {card.drawn} drawn"
            + (f" (not {told})" if told else "")
        )
    print(f"Masks: {os.fspath(config.output)}")


if __name__ == "__main__":
    main(run)

"""Train a small base: autoencoder, text-to-image U-Net and BLIP-2.

    python -m launch.pretrain [ROOT] --output BASE
    python -m launch.pretrain ROOT --output BASE --init tiny --view 64 --scale 0.5

ROOT is a folder in MVTec AD's layout, of which only the training images are read (--split-file,
or the first third of each defect); without it, the built-in data. BASE then serves as
--base.path. For photographs give --init, to start from a base's weights, and --view with
--scale, to learn squares of their own pixels instead of squashed whole photographs
(docs/recipes.md). The same command resumes. Sample grids and MLflow's database are in
BASE-training.
"""

import shlex
from collections.abc import Sequence
from pathlib import Path

from acontrol.errors import UserError
from acontrol.pretrain.settings import PretrainConfig
from launch.entry import loading, main
from launch.options import parse

PROG = "python -m launch.pretrain"


def run(args: Sequence[str], prog: str = PROG) -> None:
    """Train the base, and print its card and folder."""
    rest = list(args)
    root = Path(rest.pop(0)).expanduser() if rest and not rest[0].startswith("-") else None
    config = parse(PretrainConfig, rest, prog=prog, description=__doc__)
    if root is None:
        for name in ("split_file", "view", "also"):
            if getattr(config, name) is not None:
                option = name.replace("_", "-")
                raise UserError(f"--{option} is for a folder: name ROOT")
    if root is not None and not root.is_dir():
        raise UserError(f"{root}: no such folder; name one in MVTec AD's layout, or none")
    with loading():
        from acontrol.networks.locate import CARD
        from acontrol.pretrain.run import pretrain

    base = pretrain(config, root, f"{PROG} {shlex.join(args)}")
    print((base / CARD).read_text(), end="")
    print(f"Train with it:  acontrol train tiny --base.path {base} ...")
    print(f"Base: {base}")


if __name__ == "__main__":
    main(run)

"""Train a small base from scratch: autoencoder, text-to-image U-Net and BLIP-2.

    python -m launch.pretrain [ROOT] --output BASE

ROOT is a folder in MVTec AD's layout, of which only the training images are read (--split-file,
or the first third of each defect); without it, the built-in data. BASE then serves as
--base.path. A substitute for Stable Diffusion's weights: about an hour on two cores at 64 px;
on a GPU try --sizes.resolution 128 or 256. The same command resumes. Sample grids and MLflow's
database are in BASE-training.
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
    if root is None and config.split_file is not None:
        raise UserError("--split-file is for a folder: name ROOT")
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

"""Run the frozen networks over every sample once, so that training need not.

    python -m launch.precompute PRESET --data.shards DIR --data.features DIR [...]

Takes launch.train's presets and settings; those that decide what the networks give are data.*,
base.*, csm.*, asea.* and runtime.precision. C', the autoencoder's moments and the text's
embeddings go into a folder named after all of these. Train with the same settings and
--data.features DIR: what fits is used, anything else is computed online, and training says
which. The same command goes on where it was stopped.
"""

import os
from collections.abc import Sequence

from launch.entry import main
from launch.train import read_config

PROG = "python -m launch.precompute"


def run(args: Sequence[str], prog: str = PROG) -> None:
    """Precompute and say where the features are."""
    config = read_config(args, prog=prog, description=__doc__)
    # Ray and the models are imported only once the arguments are known to be good.
    from acontrol.train.precompute import precompute

    print(f"Features: {os.fspath(precompute(config))}")
    print("Train with them:  python -m launch.train, the same settings, and an --output")


if __name__ == "__main__":
    main(run)

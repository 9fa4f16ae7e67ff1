"""Run the frozen networks over every sample once, ahead of training.

    python -m launch.precompute PRESET --data.shards DIR --data.features DIR [...]

Takes acontrol train's presets and settings; the features depend on data.*, base.*, csm.*,
asea.* and runtime.precision. C', the autoencoder's moments and the text embeddings go into a
folder named after all of these. Train with the same settings and --data.features DIR: matching
features are used, the others are computed online, and training prints which. The same command
resumes.
"""

import os
from collections.abc import Sequence

from launch.entry import loading, main
from launch.train import read_config

PROG = "python -m launch.precompute"


def run(args: Sequence[str], prog: str = PROG) -> None:
    """Precompute the features and print their folder."""
    needed = ("data.shards", "data.features")
    config = read_config(args, prog=prog, description=__doc__, required=needed)
    # Ray and the models are imported only once the settings are valid.
    with loading():
        from acontrol.train.precompute import precompute

    print(f"Features: {os.fspath(precompute(config))}")
    print("Train with them:  acontrol train, the same settings, and an --output")


if __name__ == "__main__":
    main(run)

"""Write a folder of defects in MVTec AD's layout as WebDataset shards with an index.

    python -m launch.shard ROOT --out DIR [--split-file FILE] [--resolution PX]

ROOT holds categories, or is one. The default split takes the training images of the split
file, without one the first third of each defect's, as the paper does. The same input gives the
same bytes; an earlier set at DIR is replaced only once the new one is whole.
"""

from collections.abc import Sequence

from acontrol.data.settings import ShardConfig
from launch.entry import main
from launch.options import parse

PROG = "python -m launch.shard"


def run(args: Sequence[str], prog: str = PROG) -> None:
    """Check the folder, then write."""
    positional = {"root": "ROOT"}
    config = parse(ShardConfig, args, prog=prog, description=__doc__, positional=positional)
    from acontrol.data.shard_folder import shard_folder

    shard_folder(config)


if __name__ == "__main__":
    main(run)

"""Write which images of a data set train and which test, for --split-file everywhere.

    python -m launch.split ROOT --by third|pieces --out split.json [--seed N]

third is the paper's split: the first third of each defect trains, good images as the folders
say. pieces keeps photographs of one piece on one side, good or defective: those whose texture
correlates over .8, as acontrol evaluate counts them. About a third of each defect trains, and
as many good images as are in train/good.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from acontrol.data.settings import SplitConfig
from acontrol.errors import UserError
from acontrol.messages import counted
from acontrol.progress import tracked
from acontrol.runs import storage
from launch.entry import main
from launch.options import parse

PROG = "python -m launch.split"


def run(args: Sequence[str], prog: str = PROG) -> None:
    """Split, print the counts, and write the file."""
    positional = {"root": "ROOT"}
    config = parse(SplitConfig, args, prog=prog, description=__doc__, positional=positional)
    import numpy as np

    from acontrol.data import pieces
    from acontrol.data.mvtec import open_folder
    from acontrol.data.split import read_split

    folder = open_folder(config.root)
    if config.out.is_dir():
        raise UserError(f"--out {config.out}: is a folder; name the file to write")
    if config.out.exists():
        try:
            read_split(config.out)
        except UserError as error:
            raise UserError(
                f"--out {config.out}: exists and is no split file; name another file"
            ) from error
    if config.by == "third":
        splits = pieces.split_by_third(folder)
    else:
        splits = pieces.split_by_pieces(folder, config.seed, _progress)
    for part in splits:
        sizes = np.bincount(part.pieces)
        images = f"{part.category}: {counted(len(part.files), 'image')}"
        if config.by == "pieces":
            largest = counted(int(sizes.max(initial=0)), "image")
            images += f", {counted(len(sizes), 'piece')}, the largest of {largest}"
        print(f"{images}\n  {'':<16}{'train':>6}{'test':>6}")
        for defect, (train, test) in part.counts().items():
            print(f"  {defect:<16}{train:>6}{test:>6}")
        if not part.apart:
            print("  Textures of its good images look alike: only equal images are one piece")
        elif part.nearest is not None:
            print(f"  No pair over .8 crosses the sides; the nearest has {part.nearest:.3f}")
    split = pieces.as_split(folder, splits)
    if not split.train or not split.test:
        raise UserError(f"{config.root}: holds no images for both sides of a split")
    storage.write(config.out, f"{split.model_dump_json(indent=1)}\n".encode())
    print(
        f"{counted(len(split.train), 'training image')}, "
        f"{counted(len(split.test), 'test image')}, "
        f"checksum {split.digest[:12]}: {config.out}"
    )


def _progress(items: Iterable[Any], label: str) -> Iterable[Any]:
    return tracked(items, label, leave=False)


if __name__ == "__main__":
    main(run)

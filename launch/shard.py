"""Write a folder of defects in MVTec AD's layout as WebDataset shards with an index.

    python -m launch.shard ROOT --out DIR [--split train|test|all] [--resolution PX]

ROOT holds categories, or is one. The default split takes the first third of each defect's
images, as the paper does. The same input gives the same bytes; an earlier set at DIR is
replaced only once the new one is whole.
"""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field
from tqdm import tqdm

from acontrol.config import Settings
from acontrol.data.mvtec import LabelledImage, open_folder
from acontrol.data.shards import check_replaceable, write_shards
from acontrol.data.train_list import read_train_list
from acontrol.data.validation import check, empty_defects
from acontrol.errors import UserError
from launch.entry import main
from launch.options import parse

PROG = "python -m launch.shard"


class ShardCommand(Settings):
    """Options of launch.shard."""

    root: Path = Field(
        description="Folder of categories in MVTec AD's layout, or one category."
    )
    out: Path | None = Field(None, description="Folder to write the shards to.")
    split: Literal["train", "test", "all"] = Field(
        "train", description="First third of each defect's images, the rest, or all."
    )
    resolution: int | None = Field(
        512,
        ge=16,
        description="Images whose shorter side is longer are scaled down to it; "
        "None keeps every pixel.",
    )
    shard_size: int = Field(128, ge=1, description="Samples a shard.")
    captions: Path | None = Field(
        None, description="JSON file of captions: {category: {defect: {id: sentence}}}."
    )
    train_list: Path | None = Field(
        None,
        description="JSON list of the authors' repository, which says what to train on and "
        "with which captions: [{image_file, mask_file, text, subject_text}]. Instead of "
        "--split, which is then recorded as 'all'.",
    )
    skip_bad: bool = Field(
        False, description="Leave out, list and count images that are bad, instead of stopping."
    )
    dry_run: bool = Field(False, description="Check everything, count, and write nothing.")


def run(args: Sequence[str], prog: str = PROG) -> None:
    """Check the folder, then write."""
    command = parse(
        ShardCommand, args, prog=prog, description=__doc__, positional={"root": "ROOT"}
    )
    if command.out is None and not command.dry_run:
        raise UserError("--out DIR is needed: where the shards go (or --dry-run)")
    if command.out is not None:
        check_replaceable(command.out)
    empty: list[str] = []
    bad: list[str] = []
    if command.train_list is None:
        folder = open_folder(command.root, captions=command.captions)
        empty = empty_defects(folder)
        if empty and not command.skip_bad:
            raise UserError(empty[0])
        left_out = bad if command.skip_bad else None
        found, split = folder.labelled(command.split, left_out=left_out), command.split
    else:
        # Which third the list is of nobody can tell: whoever evaluates must take care.
        found, split = read_train_list(command.root, command.train_list), "all"
    good = _checked(found, command, empty, bad)
    if command.dry_run or command.out is None:
        _count(good, command)
        return
    index = write_shards(
        good,
        command.out,
        split=split,
        resolution=command.resolution,
        shard_size=command.shard_size,
        progress=lambda images: _progress(images, "writing"),
    )
    print(f"{index.num_samples} samples in {len(index.shards)} shards: {command.out}")


def _checked(
    found: Sequence[LabelledImage], command: ShardCommand, empty: list[str], bad: list[str]
) -> list[LabelledImage]:
    """The images to write; says on standard error what is left out, and what is small."""
    total = len(found) + len(bad)
    checked = check(
        found,
        command.skip_bad,
        resolution=command.resolution,
        progress=lambda images: _progress(images, "checking"),
    )
    bad += checked.bad
    for message in empty + bad:
        print(f"left out: {message}", file=sys.stderr)
    if empty or bad:
        folders = f" and {len(empty)} empty defect folders" if empty else ""
        print(f"left out {len(bad)} of {total} images{folders}", file=sys.stderr)
    if checked.small:
        key, share = min(checked.small.items(), key=lambda one: one[1])
        print(
            f"note: {len(checked.small)} of {len(checked.good)} defects cover no half of any "
            f"of BLIP-2's 16 x 16 tokens (the smallest: {key}, {share:.2%} of one); they are "
            "kept, and --data.reference-view region shows them larger",
            file=sys.stderr,
        )
    return checked.good


def _progress(images: Iterable[LabelledImage], what: str) -> Iterable[LabelledImage]:
    # disable=None: no bar where there is no terminal.
    return tqdm(images, desc=what, unit="image", disable=None)


def _count(images: Sequence[LabelledImage], command: ShardCommand) -> None:
    counts: dict[tuple[str, str], int] = {}
    for image in images:
        place = (image.category, image.defect)
        counts[place] = counts.get(place, 0) + 1
    for (category, defect), count in counts.items():
        print(f"{category}/{defect}: {count}")
    shards = -(-len(images) // command.shard_size)
    print(f"dry run: {len(images)} samples would go into {shards} shards; nothing written")


if __name__ == "__main__":
    main(run)

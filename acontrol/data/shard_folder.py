"""A folder of defect images becomes shards: checked image by image, then written."""

import contextlib
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from acontrol.config import THIRD
from acontrol.data.left_out import print_notes, unused_captions
from acontrol.data.lock import only_writer
from acontrol.data.mvtec import LabelledImage, MvtecFolder, open_folder
from acontrol.data.overlap import refuse_overlap
from acontrol.data.prompts import wording_note
from acontrol.data.settings import ShardConfig
from acontrol.data.shards import check_replaceable, require_some, write_shards
from acontrol.data.train_list import read_train_list
from acontrol.data.validation import check, empty_defects
from acontrol.errors import UserError
from acontrol.messages import counted, print_note
from acontrol.progress import tracked


def shard_folder(config: ShardConfig) -> None:
    """Check a folder's images and write them as shards, or only count them.

    Prints how many samples there are; left-out and small ones go to standard error.

    Raises:
        UserError: If the folder, an image or a caption is bad, or ``out`` holds anything else.
    """
    if config.out is None and not config.dry_run:
        raise UserError("--out DIR is needed: where the shards go (or --dry-run)")
    writer: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if config.out is not None:
        refuse_overlap(config.out, "--out", {"ROOT": config.root})
        check_replaceable(config.out)
        if not config.dry_run:
            writer = only_writer(config.out)
    with writer:
        _shard(config)


def _shard(config: ShardConfig) -> None:
    empty: list[str] = []
    bad: list[str] = []
    digest = THIRD
    if config.train_list is None:
        folder = open_folder(config.root, config.captions, config.split_file)
        digest = folder.trained_on(config.split).split_digest
        empty = empty_defects(folder)
        if empty and not config.skip_bad:
            raise UserError(empty[0])
        images = folder.labelled(config.split, left_out=bad if config.skip_bad else None)
        print_notes(folder)
        if (note := unused_captions(folder)) is not None:
            print_note(note)
        split = config.split
    else:
        images = read_train_list(config.root, config.train_list)
        # Without a file the list's split is unknown: it may name what tests.
        split = "all"
        if config.split_file is not None:
            folder = open_folder(config.root, split_file=config.split_file)
            _require_training(images, folder, config.train_list)
            split, digest = "train", folder.trained_on("train").split_digest
    words = wording_note((image.defect, image.phrase, image.caption) for image in images)
    if words is not None:
        print_note(words)
    good = _checked(images, config, empty, bad)
    if config.dry_run or config.out is None:
        _count(good, config.shard_size)
        return
    index = write_shards(
        good,
        config.out,
        split=split,
        split_digest=digest,
        resolution=config.resolution,
        shard_size=config.shard_size,
        progress=lambda images: _progress(images, "writing"),
    )
    samples, shards = counted(index.num_samples, "sample"), counted(len(index.shards), "shard")
    print(f"{samples} in {shards}: {config.out}")


def _require_training(
    images: Sequence[LabelledImage], folder: MvtecFolder, train_list: Path
) -> None:
    """Refuse a list of training images that a split file has among its test images."""
    training = {row.image for row in folder.labelled("train")}
    for image in images:
        if image.image not in training:
            raise UserError(
                f"{train_list}: names {image.image}, which is not in the split file's train: "
                "put it there, or leave it out of the list"
            )


def _checked(
    images: Sequence[LabelledImage], config: ShardConfig, empty: list[str], bad: list[str]
) -> list[LabelledImage]:
    """The good images; reports on standard error what is left out, and what is small."""
    total = len(images) + len(bad)
    try:
        checked = check(
            images,
            config.skip_bad,
            resolution=config.resolution,
            progress=lambda images: _progress(images, "checking"),
        )
    except UserError as error:
        hint = "acontrol inspect lists every bad image, --skip-bad leaves them out"
        raise UserError(f"{error} ({hint})") from error
    bad += checked.bad
    for message in empty + bad:
        print(f"left out: {message}", file=sys.stderr)
    if empty or bad:
        folders = f" and {counted(len(empty), 'empty defect folder')}" if empty else ""
        print(f"left out {len(bad)} of {counted(total, 'image')}{folders}", file=sys.stderr)
    for note in checked.notes():
        print_note(note)
    return checked.good


def _progress(images: Iterable[LabelledImage], label: str) -> Iterable[LabelledImage]:
    return tracked(images, label, "image")


def _count(images: Sequence[LabelledImage], shard_size: int) -> None:
    require_some(images)
    counts = Counter((image.category, image.defect) for image in images)
    for (category, defect), count in counts.items():
        print(f"{category}/{defect}: {count}")
    samples = counted(len(images), "sample")
    shards = counted(-(-len(images) // shard_size), "shard")
    print(f"dry run: {samples} would go into {shards}; nothing written")

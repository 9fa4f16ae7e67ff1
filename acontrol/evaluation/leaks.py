"""No test image may be among the training images, under whatever name or format.

Near duplicates, other photographs of the same piece, are only reported: near_duplicates.py.
"""

import json
from collections.abc import Iterable, Sequence

import numpy as np

from acontrol.config import DataConfig, TrainedOn
from acontrol.data.images import pixel_digest, read_image
from acontrol.data.mvtec import MvtecFolder
from acontrol.data.reader import ShardReader
from acontrol.data.split import refuse_mix
from acontrol.errors import UserError, one_line
from acontrol.evaluation.images import ImageSet

JOB = "job.json"  # Of launch.generate, next to its categories.


def refuse_leaks(test: ImageSet, training: Iterable[ImageSet]) -> None:
    """Refuse test images among the training images.

    Raises:
        UserError: For the first of them.
    """
    tested = dict(zip(test.digests, test.files, strict=True))
    leaks = [
        (file, tested[digest])
        for part in training
        for digest, file in zip(part.digests, part.files, strict=True)
        if digest in tested
    ]
    if leaks:
        more = f" (and {len(leaks) - 1} more)" if len(leaks) > 1 else ""
        raise UserError(
            f"{leaks[0][0]}: is the test image {leaks[0][1]}, pixel by pixel{more}; a detector "
            "must not train on its test images: remove one of them"
        )


def refuse_seen_tests(
    owner: str, trained_on: Iterable[TrainedOn], real: MvtecFolder, categories: Sequence[str]
) -> None:
    """Refuse weights, or images drawn by them, that have seen what is tested on.

    Args:
        owner: What they are, for the message.
        trained_on: Their records.
        real: The real data, with its split.
        categories: Its categories that are tested on.

    Raises:
        UserError: For the first record of all images, or of another split.
    """
    tested = real.trained_on("train").model_copy(update={"categories": tuple(categories)})
    for part in trained_on:
        if part.split != "train" and part.shares(tested):
            images = {"all": "every image", "test": "the test images"}[part.split]
            raise UserError(
                f"{owner} comes from {images} of {', '.join(part.categories or ['its data'])}, "
                "so a test on them proves nothing: train it on the training images alone, "
                "from acontrol pretrain and acontrol shard on"
            )
    refuse_mix(owner, trained_on, f"the test on {real.root}", tested)


def job_of(folder: MvtecFolder) -> tuple[TrainedOn, ...]:
    """The records of the images behind a generated folder; empty if they are unknown.

    Raises:
        UserError: If its job.json is damaged.
    """
    # A category of a generated folder may be given alone.
    alone = [*folder.folders.values()] == [folder.root]
    for file in [folder.root / JOB, *([folder.root.resolve().parent / JOB] if alone else [])]:
        if file.is_file():
            try:
                job = json.loads(file.read_bytes())
                own = {"categories": folder.categories, "split": job["split"]}
                parts = job.get("trained_on", [own])  # A job from before split files.
                return tuple(TrainedOn.model_validate(part) for part in parts)
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise UserError(
                    f"{file}: is damaged ({one_line(error)}); restore it"
                ) from error
    return ()


def refuse_leaking_shards(data: DataConfig, folder: MvtecFolder) -> None:
    """Refuse shards with an image that detectors are tested on.

    Raises:
        UserError: For the first, or if the shards hold more than the training split.
    """
    reader = ShardReader(data.shards or "", data.cache_dir)
    refuse_mix(
        f"the shards {data.shards}",
        [reader.index.trained_on],
        f"the test on {folder.root}",
        folder.trained_on("train"),
    )
    if reader.index.split != "train":
        raise UserError(
            f"{data.shards}: holds split {reader.index.split!r}, with the images that "
            "detectors are tested on; write it with acontrol shard --split train"
        )
    tested = {pixel_digest(read_image(row.image)): row.image for row in folder.labelled("test")}
    for number, (_, sample) in enumerate(reader.places):
        pixels = np.asarray(reader.read(number).image.convert("RGB"))
        test_image = tested.get(pixel_digest(pixels))
        if test_image:
            raise UserError(
                f"{data.shards}: its sample {sample.key} is the test image {test_image}, "
                "pixel by pixel; write it from this data with acontrol shard --split train"
            )

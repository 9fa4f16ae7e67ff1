"""No test image may be among the training images, under whatever name or format.

Near duplicates, other photographs of the same piece, are only reported: near_duplicates.py.
"""

from collections.abc import Iterable

import numpy as np

from acontrol.config import DataConfig
from acontrol.data.images import read_image
from acontrol.data.mvtec import MvtecFolder
from acontrol.data.reader import ShardReader
from acontrol.errors import UserError
from acontrol.evaluation.images import ImageSet, digest


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


def refuse_leaking_shards(data: DataConfig, folder: MvtecFolder) -> None:
    """Refuse shards with an image that detectors are tested on.

    Raises:
        UserError: For the first, or if the shards hold more than the training split.
    """
    reader = ShardReader(data.shards or "", data.cache_dir)
    if reader.index.split != "train":
        raise UserError(
            f"{data.shards}: holds split {reader.index.split!r}, with the images that "
            "detectors are tested on; write it with launch.shard --split train"
        )
    tested = {digest(read_image(row.image)): row.image for row in folder.labelled("test")}
    for number, (_, sample) in enumerate(reader.places):
        pixels = np.asarray(reader.read(number).image.convert("RGB"))
        test_image = tested.get(digest(pixels))
        if test_image:
            raise UserError(
                f"{data.shards}: its sample {sample.key} is the test image {test_image}, "
                "pixel by pixel; write it from this data with launch.shard --split train"
            )

"""A sample's members as picture, mask and words: PNG and JSON, and nothing else.

webdataset's own decoders go by a member's ending and would unpickle some, load others with
torch and unpack .gz; Pillow's go by the content and would start Ghostscript for one. So
webdataset's stage is given exactly two of them here, without its defaults.
"""

import io
import json
from dataclasses import dataclass
from functools import lru_cache

from PIL import Image
from pydantic import ValidationError
from webdataset.autodecode import Decoder, DecodingError, handle_extension

from acontrol.config import Settings
from acontrol.data.index import IndexedSample
from acontrol.data.pixels import opened
from acontrol.errors import UserError, explain


@dataclass(frozen=True)
class Decoded:
    """A sample as it lies in its shard."""

    image: Image.Image
    mask: Image.Image
    caption: str
    phrase: str


class Facts(Settings):
    """A sample's JSON."""

    category: str
    defect: str
    id: str
    caption: str
    phrase: str


def decode(sample: IndexedSample, contents: dict[str, bytes], where: str) -> Decoded:
    """Turn members into picture, mask and words.

    Args:
        sample: What the index says of it.
        contents: Bytes by the member's kind: "png", "mask.png", "json".
        where: The shard, for messages.

    Raises:
        UserError: If a member is not what its name says, mask and image do not fit, or the
            JSON is of another sample; names shard, member and offset.
    """
    offsets = {member.kind: member.offset for member in sample.members}

    def refusal(kind: str, reason: str) -> UserError:
        return UserError(
            f"{where}: sample {sample.key}, member {sample.key}.{kind} at offset "
            f"{offsets[kind]}: {reason}; make the shards again with launch.shard"
        )

    try:
        decoded = _decoder()(contents)
    except DecodingError as error:
        raise refusal(error.k, " ".join(str(error.__cause__).split())) from error
    image, mask = decoded["png"], decoded["mask.png"]
    try:
        facts = Facts.model_validate(decoded["json"])
    except ValidationError as error:
        raise refusal("json", explain(error)) from error
    if (facts.category, facts.defect) != (sample.category, sample.defect):
        raise refusal("json", f"it is of {facts.category}/{facts.defect}")
    if mask.size != image.size:
        raise refusal("mask.png", f"it is {mask.size} and its image {image.size} pixels")
    levels = mask.convert("L").getcolors(2) or []
    if {level for _, level in levels} not in ({0, 255}, {255}):
        raise refusal("mask.png", "it needs 255 on the defect, 0 elsewhere and nothing else")
    return Decoded(image.convert("RGB"), mask.convert("1"), facts.caption, facts.phrase)


@lru_cache(maxsize=1)
def _decoder() -> Decoder:
    handlers = [handle_extension("png", _png), handle_extension("json", json.loads)]
    return Decoder(handlers, pre=[], post=[])


def _png(content: bytes) -> Image.Image:
    with opened(io.BytesIO(content), ("PNG",)) as image:
        image.load()
        return image.copy()

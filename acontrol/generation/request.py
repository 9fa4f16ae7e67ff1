"""Requests: one JSON object per line, checked before anything is drawn."""

import json
from pathlib import Path

from pydantic import Field, ValidationError, model_validator

from acontrol.errors import UserError, explain
from acontrol.generation.settings import MOST, Sampling
from acontrol.masks.settings import SourceName

_NAME = r"^[^/\\.\x00-\x1f][^/\\\x00-\x1f]*$"  # Safe as a folder's name.


class Request(Sampling):
    """Images of one defect type. Missing fields are chosen, or default to the command's.

    Paths are absolute, or relative to the requests file's folder.
    """

    category: str = Field(pattern=_NAME, description="The product; names the output's folder.")
    defect: str = Field(pattern=_NAME, description="The label; names the output's folder.")
    normal: str | None = Field(
        None, description="Image to draw on; by default a random good one of the category."
    )
    mask: str | None = Field(None, description="Where to draw: a mask for this normal image.")
    masks: SourceName | None = Field(None, description="Source of masks.")
    reference: str | None = Field(
        None,
        pattern=r"^[^/]+/[^/]+/[^/]+$",
        description="CATEGORY/DEFECT/ID of --data; by default a random one of this type.",
    )
    reference_category: str | None = Field(
        None, description="Take references from this category; by default the same."
    )
    reference_image: str | None = Field(None, description="Any image that shows the defect.")
    reference_mask: str | None = Field(None, description="Its mask.")
    reference_phrase: str | None = Field(
        None, min_length=1, description="Its words, such as 'a dark crack'."
    )
    prompt: str | None = Field(None, min_length=1, description="Target text T_t.")
    seed: int | None = Field(None, ge=0, lt=2**63, description="By default from the command's.")
    count: int = Field(1, ge=1, le=MOST, description="Images to draw.")

    @model_validator(mode="after")
    def _parts_agree(self) -> "Request":
        if self.mask is not None and self.normal is None:
            raise ValueError("a mask is for one normal image: name it as normal")
        if self.mask is not None and self.masks is not None:
            raise ValueError("give mask or masks, not both")
        if (self.reference_image is None) != (self.reference_mask is None):
            raise ValueError("reference_image and reference_mask need each other")
        ways = (self.reference, self.reference_category, self.reference_image)
        if sum(way is not None for way in ways) > 1:
            raise ValueError(
                "give one of reference, reference_category and reference_image, not several"
            )
        return self

    def sampling(self, default: Sampling) -> Sampling:
        """The request's own sampling settings, and the defaults for the rest."""
        own = self.model_dump(include=self.model_fields_set & Sampling.model_fields.keys())
        return default.model_copy(update=own)


def read_requests(file: Path) -> list[tuple[str, Request]]:
    """Read a requests file.

    Returns:
        "FILE:LINE" and request of each line that is not blank.

    Raises:
        UserError: With file and line number, at the first bad request; or if there are none.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")  # With a byte-order mark or without.
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: is not UTF-8 text ({error.reason})") from error
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}") from error
    requests = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{file}:{number}"
        try:
            value = json.loads(line)
        except ValueError as error:
            raise UserError(f"{where}: not JSON: {error}") from error
        except RecursionError:
            raise UserError(f"{where}: not JSON: nested too deep") from None
        if not isinstance(value, dict):
            raise UserError(
                f"{where}: need a JSON object in one line, such as "
                '{"category": "tile", "defect": "crack", "count": 10}'
            )
        try:
            requests.append((where, Request.model_validate(value, strict=True)))
        except ValidationError as error:
            raise UserError(f"{where}: {explain(error)}") from error
    if not requests:
        raise UserError(f"{file}: holds no request")
    return requests

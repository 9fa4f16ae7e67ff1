"""The built-in data set: drawn product photographs with labelled defects."""

from acontrol.data.builtin.dataset import (
    ATTRIBUTES,
    CATEGORIES,
    DEFECT_TYPES,
    GOOD,
    Specimen,
    draw,
    has,
    specimens,
    write_dataset,
)
from acontrol.data.builtin.defects import PAINTS

__all__ = [
    "ATTRIBUTES",
    "CATEGORIES",
    "DEFECT_TYPES",
    "GOOD",
    "PAINTS",
    "Specimen",
    "draw",
    "has",
    "specimens",
    "write_dataset",
]

import dataclasses

import numpy as np

from acontrol.config import BaseConfig
from acontrol.networks.load import load_base
from acontrol.pretrain.denoiser import sample_sheet
from acontrol.pretrain.networks import Networks
from acontrol.pretrain.pool import DefectType
from acontrol.reporting import CELL_PX, contact_sheet


def test_few_captions_have_a_row_of_samples_each() -> None:
    base = load_base(BaseConfig())
    parts = {field.name: getattr(base, field.name) for field in dataclasses.fields(Networks)}
    captions = ("a photo of wood", "a photo of wood with a crack")
    words = [DefectType("wood", "", "", "", caption, caption) for caption in captions]
    sheet = sample_sheet(Networks(**parts), words)
    empty = contact_sheet([[], []], [""] * 4, ["", ""])
    assert sheet.size == empty.size
    gap = (sheet.width - 4 * CELL_PX) // 5
    for left in range(gap, sheet.width - gap, CELL_PX + gap):
        column = np.asarray(sheet.crop((left, 0, left + CELL_PX, sheet.height)))
        assert (column < 250).any(axis=(1, 2)).sum() > 2 * CELL_PX * 0.9

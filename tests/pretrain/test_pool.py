from pathlib import Path

import pytest
import torch

from acontrol.data import builtin
from acontrol.errors import UserError
from acontrol.pretrain.pool import built_in_vocabulary, draw_pool, folder_pool


def test_the_built_in_vocabulary_names_every_drawing() -> None:
    vocabulary = built_in_vocabulary()
    assert len(set(vocabulary)) == 84
    captions = {entry.caption for entry in vocabulary}
    for category in builtin.CATEGORIES:
        for defect in (*builtin.DEFECT_TYPES, builtin.GOOD):
            for attribute in builtin.ATTRIBUTES.get(defect, (None,)):
                specimen = builtin.draw(category, defect, seed=1, attribute=attribute)
                assert specimen.caption in captions


def test_an_image_depends_on_seed_and_number_alone() -> None:
    short, long = draw_pool(4, 7, 32), draw_pool(9, 7, 32)
    assert torch.equal(short.images, long.images[:4])
    assert torch.equal(short.labels, long.labels[:4])
    assert not torch.equal(short.images, draw_pool(4, 8, 32).images)


def test_masks_and_words_belong_to_their_image() -> None:
    pool = draw_pool(40, 0, 32)
    for mask, entry in zip(pool.masks, pool.defect_types, strict=True):
        assert mask.any() == (entry.defect != "good")


def test_held_out_defects_are_left_out() -> None:
    pool = draw_pool(80, 0, 32)
    seen = pool.without(("spots", "metal/stain"))
    pairs = {(entry.category, entry.defect) for entry in seen.defect_types}
    assert 0 < len(seen) < len(pool)
    assert all(defect != "spots" and (c, defect) != ("metal", "stain") for c, defect in pairs)
    assert any(defect == "stain" for _, defect in pairs)


def test_a_magnified_defect_covers_more() -> None:
    pool = draw_pool(30, 0, 64)
    magnified, half = pool.magnified(1.0, 0), pool.magnified(0.5, 0)
    areas = [images.masks.float().mean(dim=(1, 2, 3)) for images in (pool, magnified)]
    defective = areas[0] > 0
    before, after = areas[0][defective], areas[1][defective]
    assert bool((after >= before).all()), "a defect that spans the image is unchanged"
    assert float((after > before).float().mean()) > 0.5
    assert torch.equal(magnified.images[~defective], pool.images[~defective])
    changed = (half.images != pool.images).flatten(1).any(dim=1)
    assert 0 < int(changed.sum()) < int(defective.sum())
    assert torch.equal(pool.images, draw_pool(30, 0, 64).images), "the original is unchanged"


def test_a_folder_gives_views_of_good_and_bad(built_in_data: Path) -> None:
    pool = folder_pool(built_in_data, 60, 0, 32)
    good = torch.tensor([entry.defect == "good" for entry in pool.defect_types])
    assert 15 < int(good.sum()) < 45
    assert torch.equal(pool.masks.flatten(1).any(dim=1), ~good), "a view keeps its defect"
    assert {entry.category for entry in pool.vocabulary} == {"wood", "button"}
    assert "a photo of wood with a red stain" in {entry.caption for entry in pool.vocabulary}
    again = folder_pool(built_in_data, 60, 0, 32)
    assert torch.equal(pool.images, again.images)


def test_a_folder_without_images_is_named(tmp_path: Path) -> None:
    (tmp_path / "tile" / "train").mkdir(parents=True)
    with pytest.raises(UserError, match="no images"):
        folder_pool(tmp_path, 4, 0, 32)

from pathlib import Path

import pytest
import torch

from acontrol.data import builtin
from acontrol.errors import UserError
from acontrol.pretrain.pool import built_in_vocabulary, draw_pool, folder_pool


def test_the_built_in_vocabulary_names_every_drawing() -> None:
    vocabulary = built_in_vocabulary()
    assert len(set(vocabulary)) == 84
    captions = {kind.caption for kind in vocabulary}
    for category in builtin.CATEGORIES:
        for defect in (*builtin.DEFECT_TYPES, builtin.GOOD):
            for attribute in builtin.ATTRIBUTES.get(defect, (None,)):
                one = builtin.draw(category, defect, seed=1, attribute=attribute)
                assert one.caption in captions


def test_an_image_depends_on_seed_and_number_alone() -> None:
    short, long = draw_pool(4, 7, 32), draw_pool(9, 7, 32)
    assert torch.equal(short.images, long.images[:4])
    assert torch.equal(short.kinds, long.kinds[:4])
    assert not torch.equal(short.images, draw_pool(4, 8, 32).images)


def test_masks_and_words_belong_to_their_image() -> None:
    pool = draw_pool(40, 0, 32)
    for mask, place in zip(pool.masks, pool.kinds.tolist(), strict=True):
        assert mask.any() == (pool.vocabulary[place].defect != "good")


def test_what_is_held_out_is_gone() -> None:
    pool = draw_pool(80, 0, 32)
    seen = pool.without(("spots", "metal/stain"))
    pairs = {
        (pool.vocabulary[place].category, pool.vocabulary[place].defect)
        for place in seen.kinds.tolist()
    }
    assert 0 < len(seen) < len(pool)
    assert all(defect != "spots" and (c, defect) != ("metal", "stain") for c, defect in pairs)
    assert any(defect == "stain" for _, defect in pairs)


def test_a_magnified_defect_covers_more() -> None:
    pool = draw_pool(30, 0, 64)
    every, some = pool.magnified(1.0, 0), pool.magnified(0.5, 0)
    area = [one.masks.float().mean(dim=(1, 2, 3)) for one in (pool, every)]
    defective = area[0] > 0
    before, after = area[0][defective], area[1][defective]
    assert bool((after >= before).all()), "a defect that spans the image stays as it is"
    assert float((after > before).float().mean()) > 0.5
    assert torch.equal(every.images[~defective], pool.images[~defective])
    changed = (some.images != pool.images).flatten(1).any(dim=1)
    assert 0 < int(changed.sum()) < int(defective.sum())
    assert torch.equal(pool.images, draw_pool(30, 0, 64).images), "the first stays as it was"


def test_a_folder_gives_views_of_good_and_bad(built_in_data: Path) -> None:
    pool = folder_pool(built_in_data, 60, 0, 32)
    kinds = [pool.vocabulary[place] for place in pool.kinds.tolist()]
    good = torch.tensor([kind.defect == "good" for kind in kinds])
    assert 15 < int(good.sum()) < 45
    assert torch.equal(pool.masks.flatten(1).any(dim=1), ~good), "a view keeps its defect"
    assert {kind.category for kind in kinds} == {"wood", "button"}
    assert "a photo of wood with a red stain" in {kind.caption for kind in pool.vocabulary}
    again = folder_pool(built_in_data, 60, 0, 32)
    assert torch.equal(pool.images, again.images)


def test_a_folder_without_images_is_named(tmp_path: Path) -> None:
    (tmp_path / "tile" / "train").mkdir(parents=True)
    with pytest.raises(UserError, match="no images"):
        folder_pool(tmp_path, 4, 0, 32)

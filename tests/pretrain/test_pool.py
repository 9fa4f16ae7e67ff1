import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from acontrol.data import builtin
from acontrol.data.builtin import write_dataset
from acontrol.data.mvtec import MvtecFolder, image_names, open_folder
from acontrol.data.split import Split
from acontrol.errors import UserError
from acontrol.pretrain.pool import (
    Pool,
    built_in_vocabulary,
    draw_pool,
    folder_pools,
    good_pool,
)
from acontrol.pretrain.views import streaks


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


@pytest.fixture(scope="module")
def wood(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pool") / "data"
    write_dataset(
        root,
        num_good=4,
        num_good_test=1,
        num_defects=9,
        categories=("wood",),
        defects=("crack", "stain"),
    )
    return root


def test_a_folder_gives_views_of_good_and_bad(wood: Path) -> None:
    pool, test = folder_pools(open_folder(wood), 60, 12, 0, 32)
    assert (len(pool), len(test)) == (60, 12)
    for views in (pool, test):
        good = torch.tensor([entry.defect == "good" for entry in views.defect_types])
        assert 0.2 < float(good.float().mean()) < 0.8
        assert torch.equal(views.masks.flatten(1).any(dim=1), ~good), "a view keeps its defect"
    assert pool.vocabulary == test.vocabulary
    assert "a photo of wood with a red stain" in {entry.caption for entry in pool.vocabulary}
    again = folder_pools(open_folder(wood), 60, 12, 0, 32)
    assert torch.equal(pool.images, again[0].images)
    assert torch.equal(test.images, again[1].images)


def marked(root: Path, colours: dict[Path, int]) -> None:
    """Give each file one grey level of its own, with a dot."""
    for file, level in colours.items():
        pixels = np.full((64, 64), level, np.uint8)
        pixels[0, 0] = 0
        Image.fromarray(pixels).save(file)


@pytest.mark.parametrize("scale", [None, (0.5, 1.0)])
def test_the_test_part_is_never_read(
    wood: Path, tmp_path: Path, scale: tuple[float, ...] | None
) -> None:
    """Nor its masks and words: neither the first third's rest, nor a split file's."""
    root = Path(shutil.copytree(wood, tmp_path / "data"))
    names = image_names(open_folder(root))
    train = [name for name in names if name.endswith(("1.png", "2.png", "7.png"))]
    file = tmp_path / "split.json"
    rest = sorted({*names} - {*train})
    file.write_text(Split(train=tuple(train), test=tuple(rest)).model_dump_json())
    folder = open_folder(root, split_file=file)
    words = root / "wood" / "prompt" / "crack"
    words.mkdir(parents=True, exist_ok=True)
    for row in folder.labelled("test"):
        row.image.write_bytes(b"nothing that can be read")
        row.mask.unlink()
        if row.defect == "crack":
            (words / f"{row.id}.txt").write_text("a secret")
    for path in folder.normals("wood", "test"):
        path.write_bytes(b"nothing that can be read")
    pool, _ = folder_pools(folder, 30, 10, 0, 32, scale)
    assert not any("secret" in entry.caption for entry in pool.vocabulary)
    assert len(good_pool([folder], 10, 0, 32, scale)) == 10
    with pytest.raises(UserError, match="is not a PNG"):
        folder_pools(open_folder(root), 30, 10, 0, 32, scale)


def test_squares_show_original_pixels_good_and_bad(wood: Path) -> None:
    """Squares of 32 of the drawing's 64 px; half of them have a defect."""
    pool, test = folder_pools(open_folder(wood), 60, 12, 0, 32, (1.0,))
    whole, _ = folder_pools(open_folder(wood), 60, 12, 0, 32)
    good = torch.tensor([entry.defect == "good" for entry in pool.defect_types])
    assert torch.equal(pool.masks.flatten(1).any(dim=1), ~good), "a defect is in its squares"
    assert 0.2 < float(good.float().mean()) < 0.8
    areas = [float(views.masks.float().mean()) for views in (pool, whole)]
    assert areas[0] > 1.5 * areas[1], "magnified"
    again = folder_pools(open_folder(wood), 60, 12, 0, 32, (1.0,))
    assert torch.equal(pool.images, again[0].images)
    assert torch.equal(test.images, again[1].images)
    longer, _ = folder_pools(open_folder(wood), 70, 12, 0, 32, (1.0,))
    assert torch.equal(longer.images[:60], pool.images), "a view depends on its number alone"


def streaked(root: Path, ways: str) -> MvtecFolder:
    """Good images with streaks that stand, lie or are slanted, and uneven light."""
    rng = np.random.default_rng(0)
    rows, columns = np.indices((64, 64))
    along = {"|": columns, "-": rows, "/": rows + columns}
    for number, way in enumerate(ways):
        lines = rng.integers(40, 180, 127)[along[way]] + rows
        file = root / "steel" / "train" / "good" / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(lines.astype(np.uint8)).save(file)
    return open_folder(root)


def shares(pool: Pool) -> tuple[float, float]:
    """Of the views: whose streaks stand, and, where they are slanted, rise to the right."""
    found = np.array([streaks(image) for image in pool.images])
    return float(np.mean(found[:, 0] > 0)), float(np.mean(found[:, 1] > 0))


def test_squares_keep_the_direction_of_a_products_streaks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said() -> str:
        return capsys.readouterr().out

    standing = streaked(tmp_path / "a", 11 * "|" + "-")  # One lay askew.
    pool, _ = folder_pools(standing, 60, 12, 0, 32, (1.0,))
    assert "steel: its streaks run one way, so squares are mirrored but not turned" in said()
    assert shares(pool)[0] > 0.8
    assert shares(good_pool([standing], 60, 0, 32, (1.0,)))[0] > 0.8
    turned, _ = folder_pools(standing, 60, 12, 0, 32, (1.0,), "any")
    assert 0.3 < shares(turned)[0] < 0.7
    said()
    slanted = streaked(tmp_path / "b", 12 * "/")
    pool, _ = folder_pools(slanted, 60, 12, 0, 32, (1.0,))
    assert "squares are neither mirrored nor turned by right angles" in said()
    assert shares(pool)[1] == 1
    turned, _ = folder_pools(slanted, 60, 12, 0, 32, (1.0,), "any")
    assert 0.3 < shares(turned)[1] < 0.7
    # Where they lie either way, and of few images, any way is right.
    for name, ways in (("c", 8 * "|" + 4 * "-"), ("d", "|||")):
        folder = streaked(tmp_path / name, ways)
        said()
        pool, _ = folder_pools(folder, 60, 12, 0, 32, (1.0,))
        assert said() == ""
        same, _ = folder_pools(folder, 60, 12, 0, 32, (1.0,), "any")
        assert torch.equal(pool.images, same.images)


def test_uneven_light_is_no_direction() -> None:
    rng = np.random.default_rng(0)
    shade = np.broadcast_to(np.linspace(60, 180, 64), (3, 64, 64))
    pixels = torch.from_numpy((shade + rng.normal(0, 3, (64, 64))).astype(np.uint8))
    assert all(abs(value) < 0.15 for value in streaks(pixels))
    assert streaks(torch.full((3, 8, 8), 9, dtype=torch.uint8)) == (0, 0)


def test_other_products_are_good_ones_alone(wood: Path, tmp_path: Path) -> None:
    others = good_pool([open_folder(wood)], 12, 0, 32, (0.5,))
    assert {entry.caption for entry in others.vocabulary} == {"a photo of wood"}
    pool = draw_pool(5, 0, 32)
    both = pool.joined(others)
    assert len(both) == 17 and torch.equal(both.images[5:], others.images)
    assert both.defect_types == [*pool.defect_types, *others.defect_types]
    (tmp_path / "tile" / "train").mkdir(parents=True)
    with pytest.raises(UserError, match="has no good training images"):
        good_pool([open_folder(wood), open_folder(tmp_path)], 12, 0, 32)


def test_what_is_measured_on_is_not_trained_on(wood: Path, tmp_path: Path) -> None:
    """By piece: a training image's other photograph is not held out from it."""
    root = Path(shutil.copytree(wood, tmp_path / "data"))
    folder = open_folder(root)
    files = [row.image for row in folder.labelled("train")] + [*folder.normals("wood")]
    marked(root, {file: 20 + 20 * number for number, file in enumerate(files)})
    shutil.copy(files[1], files[2])
    pool, test = folder_pools(folder, 200, 100, 0, 32)
    levels = [{*views.images[:, 0, 20, 20].tolist()} for views in (pool, test)]
    assert not levels[0] & levels[1]
    assert len(levels[0] | levels[1]) == len(files) - 1, "all others are used"
    assert {entry.defect for entry in pool.defect_types} == {"crack", "stain", "good"}


def test_a_folder_without_images_is_named(tmp_path: Path) -> None:
    (tmp_path / "tile" / "train").mkdir(parents=True)
    with pytest.raises(UserError, match="holds no images to train on"):
        folder_pools(open_folder(tmp_path), 4, 4, 0, 32)

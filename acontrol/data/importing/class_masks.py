"""Images and masks in which each level or colour is a class, as VisA has them.

SOURCE is a CSV with the columns image and mask (label, object and split too, if it has them),
a folder with VisA's image_anno.csv or of such folders, one in MVTec AD's layout, or one of
images and masks.
"""

import csv
from collections.abc import Callable, Container, Sequence
from pathlib import Path

from acontrol.data.images import read_classes
from acontrol.data.importing.loco import Reader, is_layout, layout_images
from acontrol.data.importing.settings import ImportConfig
from acontrol.data.importing.source import (
    GOOD,
    Annotations,
    Source,
    SourceImage,
    category_of,
    first_with,
    is_file,
    pictures_below,
    subfolder,
    within,
)
from acontrol.data.listing import IMAGE_SUFFIXES, MASK_ENDINGS, entries, subfolders
from acontrol.errors import UserError
from acontrol.messages import counted

_TABLE = "image_anno.csv"
_IMAGES = ("images", "image", "imgs", "img", "data")
_ANY = ("anomaly", "anomalous", "bad", "defective", "abnormal")  # Labels that name no defect.
_MASKS = ("masks", "mask", "ground_truth", "groundtruth", "gt", "labels", "annotations")


def read(config: ImportConfig) -> Source:
    """Every image of the CSV, or of the folder of images."""
    root = config.source
    source = Source(levels=True)
    if not root.is_dir():
        _read_table(source, root, config, category_of(config.category, root.parent))
        return source
    if (root / _TABLE).is_file():
        _read_table(source, root / _TABLE, config, category_of(config.category, root))
        return source
    tables = [folder / _TABLE for folder in subfolders(root) if (folder / _TABLE).is_file()]
    if tables:
        for table in tables:
            _read_table(source, table, config, table.parent.name)
        return source
    csvs = [path for path in entries(root) if path.suffix.lower() == ".csv"]
    if len(csvs) == 1:
        _read_table(source, csvs[0], config, category_of(config.category, root))
        return source
    categories = [root] if is_layout(root) else [*filter(is_layout, subfolders(root))]
    if not categories:
        _read_folders(source, config)
    for folder in categories:
        name = category_of(config.category if folder == root else None, folder)
        source.categories[name] = layout_images(folder, _of_layout(config), source.notes)
    return source


def _of_layout(config: ImportConfig) -> Reader:
    return lambda defect, masks: _reader(masks, defect, config.names)


def _read_folders(source: Source, config: ImportConfig) -> None:
    root = config.source
    images = config.images or subfolder(root, _IMAGES)
    masks = config.masks or subfolder(root, _MASKS)
    for option, folder in (("--images", images), ("--masks", masks)):
        if folder is None or not folder.is_dir():
            problem = "is not a folder" if folder else f"has no {option[2:]}/ and no CSV"
            raise UserError(f"{folder or root}: {problem}; give it with {option}")
    assert images is not None and masks is not None
    files = {path.relative_to(masks).as_posix(): path for path in pictures_below(masks)}
    rows = []
    for image in pictures_below(images):
        if masks in image.parents:
            continue
        path = image.relative_to(images)
        stems = [f"{path.with_suffix('').as_posix()}{end}" for end in ("", *MASK_ENDINGS)]
        names = [f"{stem}{suffix}" for stem in stems for suffix in IMAGE_SUFFIXES]
        mask = next((files.pop(name) for name in names if name in files), None)
        rows.append(_row(image, path.as_posix(), mask, config.names))
    if files:
        first = min(files.values())
        source.notes.append(
            f"{counted(len(files), 'mask has', 'masks have')} no image: {first} first"
        )
    source.categories[category_of(config.category, root)] = rows


def _read_table(source: Source, path: Path, config: ImportConfig, category: str) -> None:
    """The images of a CSV, whose paths start from its folder, from one above, or --images."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            columns = {str(name).strip().casefold(): name for name in reader.fieldnames or ()}
            lines = [(reader.line_num, line) for line in reader]
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); mend it") from error
    except (ValueError, csv.Error) as error:
        raise UserError(f"{path}: is no CSV ({error}); mend it") from error
    if not {"image", "mask"} <= columns.keys():
        raise UserError(f"{path}: needs the columns image and mask, has {[*columns][:8]}")
    if not lines:
        raise UserError(f"{path}: lists no image; fill it")

    def value(line: dict[str, str | None], column: str) -> str:
        found = line.get(columns[column]) if column in columns else None
        return found.strip() if isinstance(found, str) else ""

    root = _root(path, value(lines[0][1], "image"), config.images)
    seen: set[Path] = set()
    for number, line in lines:
        where = Path(f"{path}:{number}")
        try:
            image = within(root, value(line, "image"), where)
            named = value(line, "mask")
            mask = within(config.masks or root, named, where) if named else None
            for used in (image, mask):
                if used is not None and not is_file(used):
                    raise UserError(f"{where}: {used} is not there; put it there")
            if image in seen:
                raise UserError(f"{where}: lists {image} twice; keep one of the lines")
        except UserError as error:
            source.bad.append(str(error))
            continue
        seen.add(image)
        name = image.relative_to(root).as_posix()
        label = value(line, "label")
        part = value(line, "split").casefold() == "test"
        product = config.category or value(line, "object") or category
        row = _row(image, name, mask, config.names, label, test=part, table=path)
        source.categories.setdefault(product, []).append(row)


def _root(path: Path, name: str, given: Path | None) -> Path:
    """The folder that paths start from: that in which the first image is."""
    folders = [given] if given is not None else [*path.absolute().parents][:3]
    return first_with(folders, name, path)


def _row(
    image: Path,
    name: str,
    mask: Path | None,
    named: Container[str],
    label: str = "",
    *,
    test: bool = False,
    table: Path | None = None,
) -> SourceImage:
    masks = () if mask is None else (mask,)
    return SourceImage(
        image,
        name,
        _reader(masks, label, named),
        files=masks if table is None else (*masks, table),
        good=None if not label else label.casefold() in GOOD,
        part="test" if test else "train",
    )


def _reader(
    masks: Sequence[Path], label: str, named: Container[str]
) -> Callable[[tuple[int, int]], Annotations]:
    # One class of one level has the CSV's name, if that is one.
    own = "," not in label and label.casefold() not in (*GOOD, *_ANY, "")

    def read_one(size: tuple[int, int]) -> Annotations:
        found = Annotations(said=bool(masks))
        for mask in masks:
            classes = read_classes(mask, size)
            for key, pixels in classes.items():
                alone = own and len(classes) == 1 and key not in named
                found.add(label if alone else key, pixels)
        return found

    return read_one

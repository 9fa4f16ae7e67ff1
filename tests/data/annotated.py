"""A folder of annotated images in every format that is imported."""

import base64
import csv
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from acontrol.data.outlines import encoded_runs, outlines, run_lengths

SIZE = (20, 14)
RNG = np.random.default_rng(3)


def photograph(path: Path) -> bytes:
    """Write an image of its own; returns the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8)).save(path)
    return path.read_bytes()


def box(left: int, top: int, right: int, bottom: int) -> np.ndarray:
    mask = np.zeros((SIZE[1], SIZE[0]), bool)
    mask[top:bottom, left:right] = True
    return mask


SCRATCH, DENT = box(2, 3, 9, 5), box(11, 6, 16, 12)
RING = box(4, 2, 12, 10) & ~box(6, 4, 9, 7)
# The masks of each image's classes; none for a good one.
DRAWN: dict[str, dict[str, np.ndarray]] = {
    "000": {"scratch": SCRATCH},
    "001": {"scratch": box(1, 1, 4, 9)},
    "002": {"scratch": SCRATCH, "dent": DENT},
    "003": {"dent": RING},
    "004": {},
}


def corners(mask: np.ndarray) -> list[list[float]]:
    """The outline of a rectangle, in pixels' corners."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    left, right, top, bottom = columns[0], columns[-1] + 1, rows[0], rows[-1] + 1
    points = [(left, top), (right, top), (right, bottom), (left, bottom)]
    return [[float(x), float(y)] for x, y in points]


def labelme(root: Path) -> None:
    for name, classes in DRAWN.items():
        photograph(root / f"{name}.jpg")
        shapes = []
        for label, mask in classes.items():
            if mask is RING:
                buffer = io.BytesIO()
                Image.fromarray(mask[2:10, 4:12].astype(np.uint8) * 255).save(buffer, "PNG")
                stored = base64.b64encode(buffer.getvalue()).decode()
                shape = {"shape_type": "mask", "points": [[4, 2], [11, 9]], "mask": stored}
            else:
                shape = {"shape_type": "polygon", "points": corners(mask)}
            shapes.append({"label": label, "group_id": None, "flags": {}} | shape)
        content = {
            **{"version": "5.5.0", "flags": {}, "shapes": shapes, "imageData": None},
            **{"imagePath": f"{name}.jpg", "imageHeight": SIZE[1], "imageWidth": SIZE[0]},
        }
        (root / f"{name}.json").write_text(json.dumps(content))


def coco(root: Path, segmentation: Callable[[np.ndarray], object] = encoded_runs) -> None:
    labels = ("scratch", "dent")
    images, annotations = [], []
    for number, (name, classes) in enumerate(DRAWN.items()):
        folder = "" if classes else "good/"
        photograph(root / "images" / f"{folder}{name}.png")
        size = {"width": SIZE[0], "height": SIZE[1]}
        images.append({"id": number, "file_name": f"{folder}{name}.png", **size})
        annotations += [
            {
                **{"id": len(annotations) + index, "image_id": number, "iscrowd": 0},
                **{"category_id": labels.index(label), "bbox": [0, 0, 1, 1]},
                "segmentation": segmentation(mask),
            }
            for index, (label, mask) in enumerate(classes.items())
        ]
    categories = [{"id": number, "name": label} for number, label in enumerate(labels)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations").mkdir(parents=True)
    (root / "annotations" / "instances_default.json").write_text(json.dumps(content))


def polygons(mask: np.ndarray) -> object:
    """Polygons where they can hold the mask."""
    rings = outlines(mask)
    if any(len(ring) > 1 for ring in rings):
        return encoded_runs(mask)
    return [ring[0].ravel().tolist() for ring in rings]


def coco_polygons(root: Path) -> None:
    coco(root, polygons)


def coco_uncompressed(root: Path) -> None:
    def counts(mask: np.ndarray) -> object:
        runs = encoded_runs(mask)
        return runs | {"counts": run_lengths(runs["counts"])}

    coco(root, counts)


def class_mask(path: Path, classes: Mapping[str, np.ndarray], palette: bool = False) -> None:
    levels = {"scratch": 1, "dent": 2}
    mask = np.zeros((SIZE[1], SIZE[0]), np.uint8)
    for label, pixels in classes.items():
        mask[pixels] = levels[label]
    image = Image.fromarray(mask)
    if palette:
        image.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def voc(root: Path, names: str = "class_names.txt") -> None:
    for name, classes in DRAWN.items():
        photograph(root / "JPEGImages" / f"{name}.jpg")
        class_mask(root / "SegmentationClass" / f"{name}.png", classes, palette=True)
    text = "_background_\nscratch\ndent\n"
    if names == "labelmap.txt":
        text = "# label:color:parts\nbackground:0,0,0::\nscratch:128,0,0::\ndent:0,128,0::\n"
    (root / names).write_text(text)


def voc_of_cvat(root: Path) -> None:
    voc(root, "labelmap.txt")


def class_masks(root: Path) -> None:
    for name, classes in DRAWN.items():
        photograph(root / "images" / f"{name}.png")
        class_mask(root / "masks" / f"{name}.png", classes)


def visa(root: Path) -> None:
    """As VisA's folder of a product: paths start from the folder above."""
    rows = [("image", "label", "mask")]
    for name, classes in DRAWN.items():
        kind = "Anomaly" if classes else "Normal"
        photograph(root / "Data" / "Images" / kind / f"{name}.JPG")
        mask = f"{root.name}/Data/Masks/{kind}/{name}.png" if classes else ""
        if classes:
            class_mask(root.parent / mask, classes)
        image = f"{root.name}/Data/Images/{kind}/{name}.JPG"
        rows.append((image, ",".join(classes) or "normal", mask))
    with (root / "image_anno.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def loco(root: Path) -> None:
    """Of LOCO, whose images have one kind of defect each."""
    photograph(root / "validation" / "good" / "004.png")
    photograph(root / "test" / "good" / "000.png")
    for name, classes in DRAWN.items():
        if not classes:
            photograph(root / "train" / "good" / f"{name}.png")
            continue
        defect = defect_of(classes)
        photograph(root / "test" / defect / f"{name}.png")
        for number, mask in enumerate(classes.values()):
            path = root / "ground_truth" / defect / name / f"{number:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask.astype(np.uint8) * (255 - number)).save(path)


def defect_of(classes: Mapping[str, np.ndarray]) -> str:
    return next(iter(classes)) if len(classes) == 1 else "combined"


SOURCES = {
    "labelme": ("labelme", labelme, ()),
    "coco with polygons": ("coco", coco_polygons, ()),
    "coco with compressed runs": ("coco", coco, ()),
    "coco with runs": ("coco", coco_uncompressed, ()),
    "voc of labelme": ("voc-masks", voc, ()),
    "voc of CVAT": ("voc-masks", voc_of_cvat, ()),
    "class masks": ("class-masks", class_masks, ("--classes", "1=scratch,2=dent")),
    "VisA": ("class-masks", visa, ("--classes", "1=scratch", "2=dent")),
    "loco": ("loco", loco, ()),
}

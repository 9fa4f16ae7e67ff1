"""Import annotated images of other formats as a folder in MVTec AD's layout.

    python -m launch.import labelme|coco|voc-masks|class-masks|loco SOURCE --out ROOT

labelme: JSON files beside their images. coco: one JSON. voc-masks: JPEGImages and
SegmentationClass or SegmentationObject. class-masks: images, and masks whose levels or colours
are classes, in folders or a CSV as VisA's. loco: MVTec LOCO, whose images have several masks.

An image of one class of defects goes to ROOT/CATEGORY/test/DEFECT, one of several classes to
test/combined, one without to train/good. Images are copied byte for byte. Boxes and lines are
no masks: images with them are left out, counted and listed in CATEGORY/import.json.
"""

from collections.abc import Sequence

from acontrol.data.importing.settings import ImportConfig
from launch.entry import main
from launch.options import parse

PROG = "python -m launch.import"


def run(args: Sequence[str], prog: str = PROG) -> None:
    """Read the annotations, then write images and masks."""
    positional = {"format": "FORMAT", "source": "SOURCE"}
    config = parse(ImportConfig, args, prog=prog, description=__doc__, positional=positional)
    from acontrol.data.importing.run import import_annotations

    import_annotations(config)


if __name__ == "__main__":
    main(run)

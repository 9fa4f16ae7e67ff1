"""Sets of generated images that `evaluate localization --methods` draws before it compares.

    OUT/drawn/NAME    one set a method, of the same masks, normal images, references and seeds

They are what `acontrol generate` writes, with the gate off and as label what changed.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import get_args

from PIL import Image

from acontrol.data.images import read_image, read_mask
from acontrol.errors import UserError, nearest
from acontrol.evaluation.comparison import named_folders
from acontrol.evaluation.dataset import CONTROLS
from acontrol.evaluation.settings import LocalizationConfig
from acontrol.evaluation.trainings import confirm, in_hours
from acontrol.generation.estimate import estimate
from acontrol.generation.job import read_job
from acontrol.generation.manifest import Line
from acontrol.generation.run import generate
from acontrol.generation.settings import WITH_ADAPTER, GenerationConfig, MethodName
from acontrol.messages import counted
from acontrol.networks.locate import adapter_path
from acontrol.progress import waiting
from acontrol.reporting import contact_sheet, outlined

OURS = "ours"  # In --methods and the tables, the method that draws with an adapter of ours.
_SHOWN = 6  # Columns of the grid of a category.
# What must agree between two methods' drawings of a number.
_SAME = ("normal", "reference", "first_seed")
_Key = tuple[str, str, str]


def planned_sets(config: LocalizationConfig, count: int) -> dict[str, GenerationConfig]:
    """The call of `generate` for each of --methods, by the name of its source.

    Args:
        config: Settings of the comparison.
        count: Images of each defect.

    Raises:
        UserError: If a method is unknown or named twice, or has no model.
    """
    if config.methods is None:
        if config.model is not None:
            raise UserError("--model: is whose method ours is in --methods; give both")
        return {}
    if config.out is None and not config.dry_run:
        raise UserError("--out DIR is needed: where sets and results go")
    if len(config.category) > 1:
        raise UserError("--methods: draws one --category, or all without the option")
    known: dict[str, MethodName] = {name: name for name in get_args(MethodName)}
    known[OURS] = known.pop("acontrol")
    given = named_folders(config.synthetic)
    out = Path("OUT") if config.out is None else config.out.resolve()
    sets: dict[str, GenerationConfig] = {}
    for text in config.methods.split(","):
        method, _, own_model = text.strip().partition("=")
        if method not in known:
            raise UserError(f"--methods: no method {method!r}; {nearest(method, known)}")
        name = f"drawn-{method}" if method in CONTROLS else method
        if name in sets or name in given:
            raise UserError(f"--methods: two sources are named {name}")
        model = own_model or config.model
        if model is None and known[method] in WITH_ADAPTER:
            raise UserError(
                f"--methods {method}: draws with a trained adapter; give --model MODEL, or "
                f"{method}=MODEL for one of its own"
            )
        if model is not None and not adapter_path(model).is_dir():
            raise UserError(f"--methods {method}: no folder {model} of a run or an adapter")
        sets[name] = GenerationConfig(
            method=known[method],
            model=model,
            data=config.real.resolve(),
            split_file=config.split_file and config.split_file.resolve(),
            category=config.category[0] if config.category else None,
            out=out / "drawn" / name,
            count=count,
            gate="off",
            labels="changed",
        )
    return sets


def print_estimate(sets: Mapping[str, GenerationConfig], *, ask: bool) -> None:
    """Print how many images each set lacks and how long that takes; ask before an hour.

    Raises:
        UserError: If a set cannot be drawn, or the answer is not yes.
    """
    total, lines = 0.0, []
    for name, config in sets.items():
        with waiting(f"Timing the drawing of {name}"):
            own = estimate(config)
        total += own.seconds
        each = f", about {in_hours(own.seconds)}" if own.images else "; it is drawn already"
        lines.append(f"  {name}: {counted(own.images, 'image')}{each}")
    print(f"To draw by {counted(len(sets), 'method')}, {in_hours(total)} in all:")
    print("\n".join(lines), flush=True)
    confirm(total, "nothing was drawn", ask=ask)


def draw_sets(sets: Mapping[str, GenerationConfig]) -> None:
    """Draw what is missing of each set, and check that all are of the same plan.

    Raises:
        UserError: If a set cannot be drawn, or two differ in more than the method.
    """
    for name, config in sets.items():
        print(f"Drawing {name}: {config.out}", flush=True)
        generate(config)
    first, *others = (_plan(config.out) for config in sets.values())
    for config, other in zip([*sets.values()][1:], others, strict=True):
        changed = [key for key in first if other.get(key) != first[key]]
        if changed:
            raise UserError(
                f"{config.out}: {'/'.join(changed[0])} has another mask, normal image, "
                "reference or seed than the first method's; models of one split and one scale "
                "have the same. Compare others by --synthetic"
            )


def grid(sets: Mapping[str, GenerationConfig], category: str) -> Image.Image:
    """A row a method, below the normal images with the outlines of their masks.

    The columns are the first images of each defect, in turn.
    """
    lines = {name: _lines(config.out) for name, config in sets.items()}
    common = set.intersection(*(set(own) for own in lines.values()))
    keys = sorted((key for key in common if key[0] == category), key=lambda key: key[::-1])
    keys = keys[:_SHOWN]
    name, config = next(iter(sets.items()))
    outlines, drawings = [], []
    for key in keys:
        line = lines[name][key]
        normal = Image.fromarray(read_image(config.data / line["normal"]))
        mask = read_mask(config.out / line["requested_mask"], normal.size)
        outlines.append(outlined(normal, Image.fromarray(mask)))
    for own in sets:
        files = [sets[own].out / lines[own][key]["image"] for key in keys]
        drawings.append([Image.fromarray(read_image(file)) for file in files])
    titles = [f"{defect} {number}" for _, defect, number in keys]
    captions = ["normal image, outline of the mask", *sets]
    return contact_sheet([outlines, *drawings], titles, captions)


def _lines(folder: Path) -> dict[_Key, Line]:
    """The lines of a set's images by category, defect and number."""
    _, lines = read_job(folder)
    return {
        (line["category"], line["defect"], line["number"]): line
        for line in lines
        if line["image"] is not None
    }


def _plan(folder: Path) -> dict[_Key, list[object]]:
    """What is the same in the sets of all methods: of each image its plan and its mask."""
    return {
        key: [*(line[name] for name in _SAME), (folder / line["requested_mask"]).read_bytes()]
        for key, line in _lines(folder).items()
    }

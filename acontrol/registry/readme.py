"""The model card as Markdown."""

from collections.abc import Iterable

from acontrol.config import BUILT_IN, THIRD, AdapterCard
from acontrol.data import builtin
from acontrol.messages import counted
from acontrol.registry.card import ModelCard

# Licences of well-known bases; --licence adds the user's own notes.
KNOWN_LICENCES = {
    BUILT_IN: "Base: ships with acontrol, Apache-2.0.",
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "Base: Stable Diffusion 1.5, CreativeML "
    "Open RAIL-M, whose use restrictions pass on to adapters and to what they draw.",
    "Salesforce/blip2-itm-vit-g": "Vision-language model: BLIP-2, MIT.",
}
UNKNOWN = "Base: {path}; its licence is not known to acontrol."
DATA = (
    "Training data: its licence holds for the model too; MVTec AD, for one, is CC BY-NC-SA "
    "4.0, not for commercial use."
)
INTENDED = (
    "To draw labelled defects on images of the products below, for training and testing "
    "inspection models beside real defects."
)
LIMITS = (
    "It imitates the defects below; others, and other products, cameras or lighting, are "
    "guesses.",
    "A drawn defect is no proof: judge a detector on real defects, outside the training part.",
    "Its labels are the masks that it was asked to fill; the gate of acontrol generate "
    "measures whether it did.",
)


def licence_notes(adapter: AdapterCard) -> list[str]:
    """Notes on the licences of an adapter's base and data."""
    paths = [path for path in (adapter.base.path, adapter.base.vlm_path) if path is not None]
    notes = [KNOWN_LICENCES.get(path, UNKNOWN.format(path=path)) for path in paths]
    return [*notes, DATA]


def words_of(card: ModelCard) -> dict[str, str]:
    """What a model is, in words: tags of its version."""
    adapter = card.adapter
    categories, defects = _categories(card), _defects(card)
    words = {
        "base": adapter.base.path,
        "categories": ", ".join(categories),
        "defects": ", ".join(defects),
        "training images": str(sum(card.counts.values())) if card.counts else "",
        "resolution": f"{adapter.resolution} px",
        "trained by": card.author or "",
        "trained on": card.date or "",
    }
    return {name: value for name, value in words.items() if value}


def readme(card: ModelCard, grid: str | None) -> str:
    """The page.

    Args:
        card: The model card.
        grid: Where the page finds the sample grid, if there is one.
    """
    adapter = card.adapter
    lines = [
        f"# {card.name}",
        "",
        "An AnomalyControl adapter: it draws defects from a reference, a text and a mask. "
        f"Trained by {card.author or 'an unknown user'} "
        f"{f'on {card.date} ' if card.date else ''}"
        f"with acontrol {adapter.acontrol_version}, commit {card.commit or 'unknown'}.",
    ]
    if grid is not None:
        lines += ["", f"![Reference, mask and sample]({grid})"]
    lines += ["", "## Use", "", INTENDED, "", "## Limits", ""]
    lines += [f"- {limit}" for limit in (*_unseen(adapter), *LIMITS)]
    lines += [f"- It draws {adapter.resolution} px squares, and was trained on {_seen(card)}."]
    lines += ["", "## Data", ""]
    if card.counts:
        lines += _table(("product", "training images by defect"), _counts(card))
    else:
        lines += [f"Products: {', '.join(_categories(card)) or 'not recorded'}."]
    lines += ["", f"The {_split(adapter)}."]
    if card.evaluation:
        lines += ["", "## Evaluation", ""]
        lines += [line for caution in card.cautions for line in (f"**Caution: {caution}**", "")]
        lines += _table(("measured", "value"), _figures(card.evaluation))
    lines += ["", "## Training", "", "Last values of the run.", ""]
    lines += _table(("metric", "value"), _figures(card.metrics))
    lines += ["", "## Licences", "", *(f"- {note}" for note in card.licences)]
    lines += ["", "## Details", "", *_table(("", ""), _details(card))]
    return "\n".join(lines) + "\n"


def _details(card: ModelCard) -> list[tuple[str, str]]:
    adapter = card.adapter
    return [
        ("Base", _source(adapter.base.path, adapter.base.revision)),
        ("Vision-language model", _source(adapter.base.vlm_path, adapter.base.vlm_revision)),
        ("Base, sha256", adapter.base_digest),
        ("Weights, sha256", card.weights_sha256),
        ("Data, sha256 of the index", adapter.data_digest),
        ("Steps, seed", f"{adapter.steps}, {adapter.seed}"),
        (
            "ASEA",
            f"T_g {adapter.asea.steps}, alpha {adapter.asea.step_size}, "
            f"{adapter.asea.rule}, {adapter.asea.map}, {adapter.asea.solver}",
        ),
        ("Gamma", f"{adapter.sga.scale:g}"),
        ("MLflow run", card.run),
    ]


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    cells = [head, ("---",) * len(head), *rows]
    return [f"| {' | '.join(row)} |" for row in cells]


def _figures(values: dict[str, float]) -> list[tuple[str, str]]:
    return [(name, f"{value:.6g}") for name, value in sorted(values.items())]


def _counts(card: ModelCard) -> list[tuple[str, str]]:
    """A row for each product, as "crack 3, stain 2"."""
    rows: dict[str, list[str]] = {}
    for name, count in card.counts.items():
        product, _, defect = name.partition("/")
        rows.setdefault(product, []).append(f"{defect} {count}")
    return [(product, ", ".join(defects)) for product, defects in rows.items()]


def _categories(card: ModelCard) -> list[str]:
    if card.counts:
        return sorted({name.split("/", 1)[0] for name in card.counts})
    return sorted({name for part in card.adapter.seen for name in part.categories or ()})


def _defects(card: ModelCard) -> list[str]:
    return sorted({name.split("/", 1)[1] for name in card.counts})


def _seen(card: ModelCard) -> str:
    count = sum(card.counts.values())
    return f"{counted(count, 'image')} of defects" if count else "few images of defects"


def _unseen(adapter: AdapterCard) -> list[str]:
    """What the built-in base cannot draw; a card knows products by name alone."""
    trained = {name for part in adapter.seen for name in part.categories or ()}
    if adapter.base.path != BUILT_IN or (trained and trained <= {*builtin.CATEGORIES}):
        return []
    return [
        f"**The built-in base has seen drawn {', '.join(builtin.CATEGORIES)} and no other "
        "product: pictures check the chain; see docs/recipes.md.**"
    ]


def _split(adapter: AdapterCard) -> str:
    digest = adapter.seen[-1].split_digest if adapter.seen else THIRD
    which = "" if digest == THIRD else f" by the split file of digest `{digest[:12]}`"
    return f"`{adapter.split}` images of each defect{which}"


def _source(path: str | None, revision: str | None) -> str:
    if path is None:
        return "in the base's folder `vlm`"
    return f"`{path}`" + (f" at `{revision}`" if revision else "")

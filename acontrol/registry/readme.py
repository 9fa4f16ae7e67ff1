"""The model card as Markdown."""

from acontrol.config import BUILT_IN, THIRD, AdapterCard
from acontrol.data import builtin
from acontrol.registry.card import GRID, ModelCard

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


def licence_notes(adapter: AdapterCard) -> list[str]:
    """Notes on the licences of an adapter's base and data."""
    paths = [path for path in (adapter.base.path, adapter.base.vlm_path) if path is not None]
    notes = [KNOWN_LICENCES.get(path, UNKNOWN.format(path=path)) for path in paths]
    return [*notes, DATA]


def readme(card: ModelCard, *, has_grid: bool) -> str:
    """The page README.md."""
    adapter = card.adapter
    rows = [
        ("Base", _source(adapter.base.path, adapter.base.revision)),
        ("Vision-language model", _source(adapter.base.vlm_path, adapter.base.vlm_revision)),
        ("Base, sha256", adapter.base_digest),
        ("Weights, sha256", card.weights_sha256),
        ("Data, sha256 of the index", adapter.data_digest),
        ("Split", _split(adapter)),
        ("Resolution", f"{adapter.resolution} px"),
        ("Steps, seed", f"{adapter.steps}, {adapter.seed}"),
        (
            "ASEA",
            f"T_g {adapter.asea.steps}, alpha {adapter.asea.step_size}, "
            f"{adapter.asea.rule}, {adapter.asea.map}, {adapter.asea.solver}",
        ),
        ("Gamma", f"{adapter.sga.scale:g}"),
        ("MLflow run", card.run),
        ("acontrol", f"{adapter.acontrol_version}, commit {card.commit or 'unknown'}"),
    ]
    lines = [
        f"# {card.name}",
        "",
        "An AnomalyControl adapter: it draws defects from a reference, a text and a mask.",
        "",
        *_limits(adapter),
        "| | |",
        "| --- | --- |",
        *(f"| {name} | {value} |" for name, value in rows),
        "",
        "## Metrics",
        "",
        "Last values of the run.",
        "",
        "| metric | value |",
        "| --- | --- |",
        *(f"| {name} | {value:.6g} |" for name, value in sorted(card.metrics.items())),
        "",
        "## Licences",
        "",
        *(f"- {note}" for note in card.licences),
    ]
    if has_grid:
        lines += ["", "## Samples", "", f"![Reference, mask and sample]({GRID})"]
    return "\n".join(lines) + "\n"


def _limits(adapter: AdapterCard) -> list[str]:
    """What the built-in base cannot draw; a card knows products by name alone."""
    trained = {name for part in adapter.seen for name in part.categories or ()}
    if adapter.base.path != BUILT_IN or (trained and trained <= {*builtin.CATEGORIES}):
        return []
    return [
        f"**The built-in base has seen drawn {', '.join(builtin.CATEGORIES)} and no other "
        "product: pictures check the chain; see docs/recipes.md.**",
        "",
    ]


def _split(adapter: AdapterCard) -> str:
    digest = adapter.seen[-1].split_digest if adapter.seen else THIRD
    which = "" if digest == THIRD else f" by the split file of digest `{digest[:12]}`"
    return f"`{adapter.split}` images of each defect{which}"


def _source(path: str | None, revision: str | None) -> str:
    if path is None:
        return "in the base's folder `vlm`"
    return f"`{path}`" + (f" at `{revision}`" if revision else "")

"""Paths of the base models, folders or pinned hub ids, and their digest.

Nothing here imports diffusers or transformers: the driver resolves a run without them.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from acontrol.config import BUILT_IN, BaseConfig, TrainedOn
from acontrol.data import builtin
from acontrol.errors import UserError, one_line
from acontrol.networks import hub
from acontrol.runs import storage

CARD, BUILT_IN_DATA = "card.json", "built-in"  # Of launch.pretrain.
PARTS = ("vae", "text_encoder", "tokenizer", "unet", "scheduler")


def resolve(config: BaseConfig) -> tuple[str, str, str]:
    """Find the models: (base, vision-language model, its subfolder or "").

    Raises:
        UserError: As ``load_base``.
    """
    path = str(built_in_base()) if config.path == BUILT_IN else config.path
    if os.path.isdir(path):
        missing = [part for part in PARTS if not os.path.isdir(os.path.join(path, part))]
        if missing:
            raise UserError(
                f"base.path {path}: no folder {', '.join(missing)}; a Stable Diffusion 1.5 in "
                f"diffusers' layout holds {', '.join(PARTS)}"
            )
    else:
        _require_pinned("base.path", path, config.revision)
    if config.vlm_path is None:
        if os.path.isdir(path) and not os.path.isdir(os.path.join(path, "vlm")):
            raise UserError(
                f"base.path {path} has no folder vlm: name a BLIP-2 with --base.vlm-path"
            )
        return path, path, "vlm"
    if not os.path.isdir(config.vlm_path):
        _require_pinned("base.vlm-path", config.vlm_path, config.vlm_revision)
    return path, config.vlm_path, ""


def _require_pinned(option: str, path: str, revision: str | None) -> None:
    if not hub.is_hub_id(path):
        raise UserError(f"{option} {path}: no such folder")
    if revision is None:
        name = option.replace("path", "revision")
        raise UserError(
            f"{option} {path}: no such folder, and as a hub id it needs a pinned commit: "
            f"add --{name} COMMIT, or name a local folder"
        )


def digest(config: BaseConfig) -> str:
    """Sha256 of the base models: of their files' contents, or of hub id and commit."""
    path, vlm_path, vlm_folder = resolve(config)
    total = hashlib.sha256()
    if config.variant is not None:
        total.update(f"variant {config.variant}\n".encode())
    folders = [(part, Path(path, part)) for part in PARTS]
    folders.append(("vlm", Path(vlm_path, vlm_folder)))
    for part, folder in folders:
        if not folder.is_dir():
            total.update(
                f"{part}\0{path}@{config.revision} {vlm_path}@{config.vlm_revision}\n".encode()
            )
            continue
        for file in sorted(folder.rglob("*")):
            if file.suffix in (".safetensors", ".json", ".txt") and file.name[0] != ".":
                name = f"{part}/{file.relative_to(folder).as_posix()}"
                with file.open("rb") as stream:
                    content = hashlib.file_digest(stream, "sha256").hexdigest()
                total.update(f"{name}\0{content}\n".encode())
    return total.hexdigest()


def trained_on(config: BaseConfig) -> tuple[TrainedOn, ...]:
    """What a base of launch.pretrain has seen, from its card; empty for any other base.

    A card without a record is of a base that has seen every image of its data.

    Raises:
        UserError: If a card is damaged, or as ``resolve``.
    """
    path, vlm_path, _ = resolve(config)
    # Another base's BLIP-2 is named by its folder vlm.
    folders = [Path(path), Path(vlm_path), Path(vlm_path).parent]
    records: list[TrainedOn] = []
    for folder in dict.fromkeys(folders[: 3 if folders[1].name == "vlm" else 2]):
        own = _OwnCard.of(folder)
        records += own.trained_on if own else ()
    return tuple(records)


@dataclass(frozen=True)
class _OwnCard:
    """What launch.pretrain's card says of its base.

    Attributes:
        trained_on: Records of its images, none for the built-in data.
        squares: Smallest and largest side of the squares that it was taught on, in original
            pixels; None for whole images.
    """

    trained_on: tuple[TrainedOn, ...]
    squares: tuple[int, int] | None

    @classmethod
    def of(cls, folder: Path) -> "_OwnCard | None":
        """Read it; None for other bases.

        Raises:
            UserError: If it is damaged.
        """
        file = folder / CARD
        if not file.is_file():
            return None
        try:
            card = json.loads(file.read_bytes())
            if "held_out_from_denoiser" not in card:
                return None
            before = [] if card["data"] == BUILT_IN_DATA else [{"split": "all"}]
            records = [
                TrainedOn.model_validate(part) for part in card.get("trained_on", before)
            ]
            view = card.get("config", {}).get("view")
            if view is None:
                return cls(tuple(records), None)
            sides = [round(view / scale) for scale in card["config"]["scale"] or (1,)]
            return cls(tuple(records), (min(sides), max(sides)))
        except (ValueError, TypeError, KeyError, AttributeError, ZeroDivisionError) as error:
            raise UserError(f"{file}: is damaged ({one_line(error)}); restore it") from error


def has_small_vlm(config: BaseConfig) -> bool:
    """Whether the vision-language model is one of launch.pretrain, as the built-in base's is.

    Raises:
        UserError: As ``trained_on``.
    """
    _, path, subfolder = resolve(config)
    folder = Path(path)
    if not subfolder and folder.name == "vlm":  # Of another base.
        folder = folder.parent
    return _OwnCard.of(folder) is not None


def unseen_note(config: BaseConfig, defect_types: Iterable[tuple[str, str]]) -> str | None:
    """A sentence on products that a small base has not learnt, if there are any.

    Args:
        config: The base; one that is not launch.pretrain's is assumed to draw anything.
        defect_types: Categories and their defects. MVTec AD has some products of the built-in
            data by name, but with other defects.

    Raises:
        UserError: As ``trained_on``.
    """
    path = resolve(config)[0]
    own = _OwnCard.of(Path(path))
    if own is None or any(record.categories is None for record in own.trained_on):
        return None
    records = own.trained_on
    seen = {name for record in records for name in record.categories or ()}
    unseen = sorted(
        {
            category
            for category, defect in defect_types
            if (category not in seen if records else not builtin.has(category, defect))
        }
    )
    if not unseen:
        return None
    base = "the built-in base" if config.path == BUILT_IN else f"the base {config.path}"
    names = ", ".join(unseen[:3]) + (", ..." if len(unseen) > 3 else "")
    product = "this product" if len(unseen) == 1 else "these products"
    unseen_here = f"{base} has not seen {product} ({names})"
    return f"{unseen_here}: pictures check the chain; see docs/recipes.md"


def squares_note(config: BaseConfig, crop: float, side: int | None) -> str | None:
    """A sentence on training at another scale than a base was taught at, if it is one.

    Args:
        config: The base.
        crop: As ``data.target_crop``.
        side: As ``data.target_px``.

    Raises:
        UserError: As ``trained_on``.
    """
    own = _OwnCard.of(Path(resolve(config)[0]))
    if own is None or own.squares is None:
        return None
    least, most = own.squares
    if side is not None and least <= side <= most:
        return None
    squares = "squares of any side" if side is None else f"squares of up to {side} px"
    sides = f"{least} to {most}" if least < most else f"{most}"
    return (
        f"the base {config.path} was taught on squares of {sides} px, and this adapter is on "
        f"{squares if crop else 'whole images'}: --data.target-view region --data.target-px "
        f"{max(16, least)} draws a long defect in several squares of its finest scale"
    )


def built_in_base() -> Path:
    """The folder of the tiny base that ships with the package."""
    return Path(__file__).parents[1] / "assets" / "tiny-base"


def adapter_path(model: str) -> storage.StoragePath:
    """Where an adapter is: its folder or URI, or the shipped one by the name ``tiny``."""
    return built_in_adapter() if model == BUILT_IN else storage.storage_path(model)


def built_in_adapter() -> Path:
    """The folder of the adapter that ships with the built-in base."""
    return Path(__file__).parents[1] / "assets" / "tiny-adapter"

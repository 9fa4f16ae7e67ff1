"""Base models by hub id: which files they are, whether the hub's cache has them, how large.

Sizes are computed from the architectures' shapes (``acontrol.networks.shapes``), not looked up.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import is_offline_mode, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError

from acontrol.config import BaseConfig
from acontrol.errors import UserError

DIFFUSERS, TRANSFORMERS = "diffusion_pytorch_model", "model"


@dataclass(frozen=True)
class Checkpoint:
    """What is needed of one hub id.

    Attributes:
        option: The setting that names it.
        repo: The hub id.
        revision: Its commit; None for whatever is newest.
        weights: Folder ("" for the top) and stem of each network's weight files.
        texts: Globs of the small files besides; of each, one must be there.
        variant: Of the weight files, as "fp16".
    """

    option: str
    repo: str
    revision: str | None
    weights: tuple[tuple[str, str], ...]
    texts: tuple[str, ...]
    variant: str | None = None

    @property
    def patterns(self) -> list[str]:
        """Names to download, as globs."""
        infix = f".{self.variant}" if self.variant else ""
        found = []
        for folder, stem in self.weights:
            pieces = "" if folder else "*"  # BLIP-2 may come in several, with an index.
            found += [
                f"{folder}config.json",
                f"{folder}{stem}{infix}{pieces}.safetensors{pieces}",
            ]
        return found + list(self.texts)

    def is_cached(self) -> bool:
        """Whether every file is in the hub's cache on this machine."""
        found = self._file(f"{self.weights[0][0]}config.json")
        if found is None:
            return False
        top = found.parents[self.weights[0][0].count("/")]
        return all(
            self._file(f"{folder}config.json") and self._has_weights(folder + stem)
            for folder, stem in self.weights
        ) and all(any(top.glob(name)) for name in self.texts)

    def _has_weights(self, stem: str) -> bool:
        infix = f".{self.variant}" if self.variant else ""
        if self._file(f"{stem}{infix}.safetensors"):
            return True
        index = self._file(f"{stem}.safetensors.index{infix}.json")
        if index is None:
            return False
        folder = stem.rpartition("/")[0]
        pieces = set(json.loads(index.read_text())["weight_map"].values())
        return all(self._file(f"{folder}/{name}".lstrip("/")) for name in pieces)

    def _file(self, name: str) -> Path | None:
        found = try_to_load_from_cache(self.repo, name, revision=self.revision)
        return Path(found) if isinstance(found, str) else None

    def told(self, sizes: dict[str, int]) -> str:
        """One line: what is not here, how large it is, and how to get it."""
        pin = f" at commit {self.revision}" if self.revision else ""
        parts = {folder.rstrip("/") or "vlm": None for folder, _ in self.weights}
        known = {name: sizes[name] for name in parts if name in sizes}
        told = ", ".join(f"{name} {_gigabytes(size)}" for name, size in known.items())
        if len(known) > 1:
            told += f", {_gigabytes(sum(known.values()))} in all"
        size = f" ({told})" if told else ""
        wanted = " ".join(f"--include '{pattern}'" for pattern in self.patterns)
        revision = f" --revision {self.revision or 'COMMIT'}"
        unpinned = f", pinned with --{self.option.replace('path', 'revision')} COMMIT"
        return (
            f"{self.option} {self.repo}{pin} is not on this machine{size}: "
            f"hf download {self.repo}{revision} {wanted}{'' if self.revision else unpinned}; "
            f"or name a folder that holds it with --{self.option}"
        )

    def download(self) -> None:
        """Bring the files into the hub's cache.

        Raises:
            OSError: If the hub cannot be reached or refuses.
            HfHubHTTPError: The same.
        """
        snapshot_download(self.repo, revision=self.revision, allow_patterns=self.patterns)


def checkpoints(config: BaseConfig) -> Iterator[Checkpoint]:
    """The hub ids among a base's places."""
    if is_hub_id(config.path):
        weights = [
            ("unet/", DIFFUSERS),
            ("vae/", DIFFUSERS),
            ("text_encoder/", TRANSFORMERS),
        ]
        texts = ["scheduler/*.json", "tokenizer/*"]
        if config.vlm_path is None:
            weights.append(("vlm/", TRANSFORMERS))
            texts.append("vlm/*token*")
        yield Checkpoint(
            "base.path",
            config.path,
            config.revision,
            tuple(weights),
            tuple(texts),
            config.variant,
        )
    if config.vlm_path is not None and is_hub_id(config.vlm_path):
        yield Checkpoint(
            "base.vlm-path",
            config.vlm_path,
            config.vlm_revision,
            (("", TRANSFORMERS),),
            ("*token*.json",),
        )


def is_hub_id(path: str) -> bool:
    """Whether a place is neither a folder nor looks like one: OWNER/NAME."""
    looks_like_folder = path.startswith((".", "/", "~")) or path.count("/") != 1
    return not looks_like_folder and not Path(path).is_dir()


def missing(config: BaseConfig) -> list[str]:
    """What of a base is not on this machine, one line a hub id; [] if nothing is missing."""
    absent = [one for one in checkpoints(config) if not one.is_cached()]
    if not absent:
        return []
    from acontrol.networks.shapes import parameters, shapes_of  # They bring diffusers.

    shapes = shapes_of(config.path, config.vlm_path or str(Path(config.path, "vlm")))
    sizes = {}
    if shapes is not None:
        bytes_each = {None: 4, "fp16": 2}  # What the public checkpoints are stored in.
        low = bytes_each.get(config.variant, 4)
        sizes = {
            "unet": low * parameters(shapes.unet),
            "vae": low * parameters(shapes.vae),
            "text_encoder": low * parameters(shapes.text_encoder),
            "vlm": 4 * parameters(shapes.vlm),
        }
    return [one.told(sizes) for one in absent]


def fetch(config: BaseConfig) -> None:
    """Download what of a base is not on this machine; nothing to do for folders.

    Raises:
        UserError: If it cannot be had: what, how large and how to get it.
    """
    absent = [one for one in checkpoints(config) if not one.is_cached()]
    if not absent:
        return
    if is_offline_mode():
        raise UserError("; ".join(missing(config)))
    for one in absent:
        try:
            one.download()
        except (OSError, HfHubHTTPError) as error:
            reason = " ".join(str(error).split())[:300]
            raise UserError(f"{'; '.join(missing(config))}; trying it: {reason}") from error


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB"

"""Base models by hub id: their files, whether they are cached, and their size.

Sizes are computed from the architectures' shapes (``acontrol.networks.shapes``), not looked up.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import is_offline_mode, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError

from acontrol.config import BaseConfig
from acontrol.errors import UserError, one_line

DIFFUSERS, TRANSFORMERS = "diffusion_pytorch_model", "model"


@dataclass(frozen=True)
class Checkpoint:
    """The files needed from one hub id.

    Attributes:
        option: The setting that names the hub id.
        repo: The hub id.
        revision: Its commit; None for the newest.
        weights: Folder ("" for the top) and stem of each network's weight files.
        texts: Globs of the other, small files; each must match at least one.
        variant: Of the weight files, for instance "fp16".
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
        patterns = []
        for folder, stem in self.weights:
            shards = "" if folder else "*"  # BLIP-2 may have several, with an index.
            patterns += [
                f"{folder}config.json",
                f"{folder}{stem}{infix}{shards}.safetensors{shards}",
            ]
        return patterns + list(self.texts)

    def is_cached(self) -> bool:
        """Whether every file is in the hub's cache on this machine."""
        first = self.weights[0][0]
        config = self._file(f"{first}config.json")
        if config is None:
            return False
        top = config.parents[first.count("/")]
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
        shards = set(json.loads(index.read_text())["weight_map"].values())
        return all(self._file(f"{folder}/{name}".lstrip("/")) for name in shards)

    def _file(self, name: str) -> Path | None:
        path = try_to_load_from_cache(self.repo, name, revision=self.revision)
        return Path(path) if isinstance(path, str) else None

    def message(self, sizes: dict[str, int]) -> str:
        """One line: what is missing, how large it is, and how to get it."""
        pin = f" at commit {self.revision}" if self.revision else ""
        networks = [folder.rstrip("/") or "vlm" for folder, _ in self.weights]
        known = {name: sizes[name] for name in networks if name in sizes}
        parts = [f"{name} {_gigabytes(size)}" for name, size in known.items()]
        if len(known) > 1:
            parts.append(f"{_gigabytes(sum(known.values()))} in all")
        size = f" ({', '.join(parts)})" if parts else ""
        include = " ".join(f"--include '{pattern}'" for pattern in self.patterns)
        revision = f" --revision {self.revision or 'COMMIT'}"
        unpinned = f", pinned with --{self.option.replace('path', 'revision')} COMMIT"
        return (
            f"{self.option} {self.repo}{pin} is not on this machine{size}: "
            f"hf download {self.repo}{revision} {include}{'' if self.revision else unpinned}; "
            f"or name a folder that holds it with --{self.option}"
        )

    def download(self) -> None:
        """Download the files into the hub's cache.

        Raises:
            OSError: If the hub cannot be reached or refuses.
            HfHubHTTPError: The same.
        """
        snapshot_download(self.repo, revision=self.revision, allow_patterns=self.patterns)


def checkpoints(config: BaseConfig) -> Iterator[Checkpoint]:
    """The checkpoints of a base that are named by hub id."""
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
    """Whether a path is OWNER/NAME and not a folder."""
    looks_like_folder = path.startswith((".", "/", "~")) or path.count("/") != 1
    return not looks_like_folder and not Path(path).is_dir()


def missing(config: BaseConfig) -> list[str]:
    """Messages on the checkpoints that are not on this machine, one line per hub id."""
    absent = _absent(config)
    if not absent:
        return []
    from acontrol.networks.shapes import parameters, shapes_of  # Imports diffusers.

    shapes = shapes_of(config.path, config.vlm_path or str(Path(config.path, "vlm")))
    sizes = {}
    if shapes is not None:
        num_bytes = 2 if config.variant == "fp16" else 4  # As public checkpoints are stored.
        sizes = {
            "unet": num_bytes * parameters(shapes.unet),
            "vae": num_bytes * parameters(shapes.vae),
            "text_encoder": num_bytes * parameters(shapes.text_encoder),
            "vlm": 4 * parameters(shapes.vlm),
        }
    return [checkpoint.message(sizes) for checkpoint in absent]


def fetch(config: BaseConfig) -> None:
    """Download the checkpoints of a base that are not on this machine; none for folders.

    Raises:
        UserError: If that fails: what is missing, how large it is and how to get it.
    """
    absent = _absent(config)
    if absent and is_offline_mode():
        raise UserError("; ".join(missing(config)))
    for checkpoint in absent:
        try:
            checkpoint.download()
        except (OSError, HfHubHTTPError) as error:
            lines = "; ".join(missing(config))
            raise UserError(f"{lines}; the download failed: {one_line(error)}") from error


def _absent(config: BaseConfig) -> list[Checkpoint]:
    return [checkpoint for checkpoint in checkpoints(config) if not checkpoint.is_cached()]


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB"

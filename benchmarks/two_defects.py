"""Does ASEA select, where two defects compete for attention? On the built-in data and base.

    python -m benchmarks.two_defects [--seeds 0,1,2] [--fine-base BASE] [--out FILE.json]
    python -m benchmarks.two_defects --report FILE.json [FILE.json ...]

A reference shows two defects on one product, and its mask covers one of them. It is drawn on
another product, inside a mask of neither's shape, and a classifier trained on real built-in
images says what was drawn: the masked defect, the other, or neither. A linear probe, trained on
C' of references with one defect, says the same of C' itself.

    base case     two stains of different colours; words that name no colour ("a stain"); the
                  whole photograph as the reference; 8 x 8 tokens
    changed, one  words that name the masked colour; words that name the other one; the
    at a time     reference cut to the masked defect's surroundings, with the other inside; two
                  types of defect and words that name neither ("a defect"); with --fine-base
                  16 x 16 tokens
    plain         an adapter trained on references with one defect, without ASEA; every row
                  changes how the reference is read when drawing, nothing else
    distracted    an adapter trained on references with two, read by the row's own settings, in
                  training and in drawing; base case alone. Rows that no setting makes (masked
                  logits, a random mask, one defect) are so in drawing alone, with the adapter
                  of the settings beside it

Adapters: 500 steps of 16 on 4 images of each defective kind, seeds 0, 1, 2. Cases: 68 a seed,
204 a row, the same for every row. 10 sampler steps at guidance 4. Intervals: 95 %, percentile
bootstrap over cases, paired with T_g 0. The protocol was fixed, with the list of rows, before
any row was seen; what the defaults become follows from the table. Finished rows are kept.
"""

import argparse
import datetime
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from scipy import ndimage
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from tqdm import tqdm

from acontrol.config import AseaConfig, BaseConfig, CsmConfig
from acontrol.data.builtin import (
    ATTRIBUTES,
    CATEGORIES,
    DEFECT_TYPES,
    Specimen,
    draw,
    rendering,
)
from acontrol.data.images import reference_view, region
from acontrol.data.prompts import target_text
from acontrol.method.anomaly_map import region_on_grid
from acontrol.method.csm import CrossModalEncoder
from acontrol.method.sga import SemanticAdapter
from acontrol.networks.load import BaseModels, load_base, quieten
from acontrol.pipelines.anomaly_control import AnomalyControlPipeline
from acontrol.pretrain.probe import Probe, as_tensor
from acontrol.seeding import derive_seed
from benchmarks.report import RESULTS, hardware
from benchmarks.tiny_ablation import WITH_TEXT, plain, train, train_judge
from benchmarks.tiny_ablation import Row as TrainedRow

CASES = 68  # A seed.
PART = 34  # Drawn at once.
SAMPLER_STEPS, GUIDANCE = 10, 4.0
PROBED = 600  # References with one defect that the linear probe learns from.
SIDE = 64
OFF = AseaConfig(steps=0)
DEFAULT = AseaConfig(rule="normalized", step_size=0.02, steps=3)
TOKEN = AseaConfig(rule="token", step_size=0.1, steps=3)
STOPPED = AseaConfig(rule="token", step_size=0.1, steps=5, stop_energy=0.05)
KEYS = TOKEN.model_copy(update={"target": "keys"})
GREY = CsmConfig(outside="grey")
BOOTSTRAP = 2000


def normalized(steps: int) -> AseaConfig:
    """The earlier ablation's rows."""
    return AseaConfig(rule="normalized", step_size=0.05, steps=steps)


@dataclass(frozen=True)
class Row:
    """How a reference is read.

    Attributes:
        name: Of the table's line.
        asea: Settings of ASEA.
        csm: Settings of CSM.
        special: Not the library's: logits outside M_A at minus infinity, a random mask, or a
            reference without the other defect.
        everywhere: Also in the conditions that change one thing.
    """

    name: str
    asea: AseaConfig = OFF
    csm: CsmConfig = WITH_TEXT
    special: Literal["", "masked logits", "random mask", "one defect"] = ""
    everywhere: bool = False


ROWS = (
    Row("T_g 0", everywhere=True),
    Row("normalized .02, T_g 3 (the default so far)", DEFAULT, everywhere=True),
    Row("normalized .05, T_g 1", normalized(1)),
    Row("normalized .05, T_g 3", normalized(3)),
    Row("normalized .05, T_g 5", normalized(5)),
    Row("adam .1, T_g 3", AseaConfig(rule="adam", step_size=0.1, steps=3)),
    Row("token .1, T_g 3", TOKEN, everywhere=True),
    Row("token .1, T_g 5", TOKEN.model_copy(update={"steps": 5}), everywhere=True),
    Row("token .1, T_g 5, stop .05", STOPPED, everywhere=True),
    Row("keys, token .1, T_g 3", KEYS),
    Row(
        "keys, token .3, T_g 5, stop .05",
        STOPPED.model_copy(update={"target": "keys", "step_size": 0.3}),
        everywhere=True,
    ),
    Row("grey", csm=GREY, everywhere=True),
    Row("grey, token .1, T_g 5, stop .05", STOPPED, GREY, everywhere=True),
    Row("logits outside M_A masked", special="masked logits"),
    Row("default, random mask (control)", DEFAULT, special="random mask"),
    Row("one defect (ceiling)", special="one defect", everywhere=True),
    Row("one defect, token .1, T_g 5, stop .05", STOPPED, special="one defect"),
    Row("one defect, grey", csm=GREY, special="one defect"),
)


@dataclass(frozen=True)
class Condition:
    """What the references and the words are."""

    name: str
    differ: Literal["colour", "type"] = "colour"
    words: Literal["neither", "right", "wrong"] = "neither"
    view: Literal["image", "region"] = "image"
    fine: bool = False


CONDITIONS = (
    Condition("colours"),
    Condition("words name the masked", words="right"),
    Condition("words name the other", words="wrong"),
    Condition("region", view="region"),
    Condition("types", differ="type"),
    Condition("16 x 16 tokens", fine=True),
)


@dataclass(frozen=True)
class Reference:
    """A product with two defects, and the same with the first alone.

    Attributes:
        two: (64, 64, 3) uint8.
        one: The same without the other defect.
        mask: Pixels of the masked defect.
        random: A mask of another picture's defect.
        masked: Label of the masked defect: its colour, or its type.
        other: Label of the other.
    """

    two: np.ndarray
    one: np.ndarray
    mask: np.ndarray
    random: np.ndarray
    masked: str
    other: str


def reference(product: str, condition: Condition, *key: object) -> Reference:
    """Two defects that do not touch, by seed."""
    rng = np.random.default_rng(derive_seed("two defects", condition.differ, *key))
    if condition.differ == "colour":
        labels = [str(label) for label in rng.permutation(ATTRIBUTES["stain"])[:2]]
        kinds = [("stain", label) for label in labels]
    else:
        labels = [str(label) for label in rng.permutation(DEFECT_TYPES)[:2]]
        kinds = [(label, str(rng.choice(ATTRIBUTES[label]))) for label in labels]

    def painted(kind: tuple[str, str]) -> tuple[np.ndarray, np.ndarray]:
        seeds = ([7, own], [8, int(rng.integers(2**31))])
        image, _, mask = rendering.render(product, *kind, seeds, SIDE)
        return image, mask

    while True:
        own = int(rng.integers(2**31))  # The product's.
        one, mask = painted(kinds[0])
        for _ in range(20):
            second, distractor = painted(kinds[1])
            near = ndimage.binary_dilation(mask, iterations=2)
            if not mask.any() or not distractor.any() or (near & distractor).any():
                continue
            if condition.view == "region":
                # Cut out by the mask, half of the other defect must still be there.
                square = Image.fromarray(distractor).convert("RGB")
                crop, _ = region(square, Image.fromarray(mask))
                if np.asarray(crop)[..., 0].astype(bool).sum() < distractor.sum() / 2:
                    continue
            two = np.where(distractor[..., None], second, one)
            random = painted(kinds[0])[1]
            return Reference(two, one, mask, random, labels[0], labels[1])


def words(made: Reference, condition: Condition) -> str:
    """The anomaly's words, for T_a and T_t."""
    if condition.words == "neither":
        return "a stain" if condition.differ == "colour" else "a defect"
    label = made.masked if condition.words == "right" else made.other
    return f"a {label} stain" if condition.differ == "colour" else plain(label)


Reader = Callable[[Sequence[Reference], Condition, Row], Tensor]


def reader(base: BaseModels) -> Reader:
    """C' of references by a row's settings."""

    def read(references: Sequence[Reference], condition: Condition, row: Row) -> Tensor:
        encoder = CrossModalEncoder(base.vlm, base.vlm_tokenizer, row.csm, row.asea)
        views = []
        for made in references:
            shown = made.one if row.special == "one defect" else made.two
            mask = made.random if row.special == "random mask" else made.mask
            views.append(
                reference_view(
                    Image.fromarray(shown),
                    Image.fromarray(mask),
                    condition.view,
                    encoder.image_px,
                )
            )
        images, masks = (torch.stack(list(column)) for column in zip(*views, strict=True))
        phrases = [words(made, condition) for made in references]
        if row.special == "masked logits":
            return masked_logits(encoder, images, masks, phrases)
        return encoder(images, phrases, masks).tokens

    return read


@torch.no_grad()
def masked_logits(
    encoder: CrossModalEncoder, images: Tensor, masks: Tensor, phrases: Sequence[str]
) -> Tensor:
    """C' of transformers' own Q-Former that sees only the tokens in M_A."""
    vlm, text = encoder.vlm, encoder.read(phrases)
    queries = vlm.query_tokens.expand(len(images), -1, -1)
    inside = region_on_grid(masks, encoder.grid) > 0
    hidden = vlm.qformer(
        query_embeds=vlm.embeddings(input_ids=text.input_ids, query_embeds=queries),
        query_length=queries.shape[1],
        attention_mask=torch.cat(
            [torch.ones(queries.shape[:2], dtype=torch.long), text.attention_mask], dim=1
        ),
        encoder_hidden_states=encoder.embed_image(images),
        # Without the class token, which sees everything.
        encoder_attention_mask=torch.nn.functional.pad(inside, (1, 0))[:, None, None],
    ).last_hidden_state
    return hidden[:, : queries.shape[1]]


class LinearProbe:
    """What C' says, learnt from references with one defect and no ASEA."""

    def __init__(self, read: Reader, condition: Condition):
        """Learn one probe for pixels that are kept and one for greyed ones."""
        shown = replace(condition, words="neither")
        made = [
            reference(CATEGORIES[number % len(CATEGORIES)], shown, "probe", number)
            for number in range(PROBED)
        ]
        labels = [one.masked for one in made]
        self.models = {}
        for csm in (WITH_TEXT, GREY):
            tokens = read(made, shown, Row("", csm=csm, special="one defect"))
            model = LogisticRegression(max_iter=2000)
            self.models[csm.outside] = model.fit(tokens.flatten(1).numpy(), labels)

    def __call__(self, tokens: Tensor, row: Row) -> list[str]:
        """The label of each."""
        return list(self.models[row.csm.outside].predict(tokens.flatten(1).numpy()))


def outcome(label: str, made: Reference) -> str:
    """Which of the two was drawn, or read."""
    return {made.masked: "masked", made.other: "other"}.get(label, "neither")


def drawn(
    pipeline: AnomalyControlPipeline,
    judge: Probe,
    tokens: Tensor,
    references: Sequence[Reference],
    condition: Condition,
    seed: int,
) -> list[str]:
    """Draw every case from its C', and judge it."""
    labels = []
    for first in range(0, len(references), PART):
        numbers = range(first, min(first + PART, len(references)))
        targets = [CATEGORIES[(number + 1 + number // 6 % 5) % 6] for number in numbers]
        own = [derive_seed(seed, "two defects case", number) for number in numbers]
        texts = [
            target_text(product, words(references[number], condition))
            for product, number in zip(targets, numbers, strict=True)
        ]
        normals, masks = [], []
        for product, seed_of in zip(targets, own, strict=True):
            # A stain's shape for types too: it is no type's own.
            shape = draw(product, "stain", seed=seed_of)
            normals.append(Image.fromarray(shape.normal))
            masks.append(Image.fromarray(shape.mask))
        conditions = pipeline.conditions(
            pipeline.encode_text(texts),
            pipeline.adapter(tokens[first : first + PART].to(pipeline.adapter.dtype)),
        )
        images = pipeline.sample(
            conditions,
            normals,
            masks,
            num_inference_steps=SAMPLER_STEPS,
            guidance_scale=GUIDANCE,
            generator=[torch.Generator().manual_seed(seed_of) for seed_of in own],
        ).images
        for _, phrase in judge.read(as_tensor(images)):
            colour = next((word for word in phrase.split() if word in ATTRIBUTES["stain"]), "")
            labels.append(colour if condition.differ == "colour" else judge.defect_of[phrase])
    return labels


def distracted(shown: Specimen, number: int) -> np.ndarray:
    """A training image with a second defect, cut out of another picture of its product."""
    rng = np.random.default_rng(derive_seed("distractor", shown.category, number))
    near = ndimage.binary_dilation(shown.mask, iterations=2)
    for _ in range(20):
        defect = str(rng.choice(DEFECT_TYPES))
        other = draw(shown.category, defect, seed=int(rng.integers(2**31)))
        if not (near & other.mask).any():
            return np.where(other.mask[..., None], other.image, shown.image)
    return shown.image


def main() -> None:
    """Run what is not done yet; write each row at once."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--base", default="tiny")
    parser.add_argument("--fine-base", help="a base whose vision tower has 16 x 16 patches")
    parser.add_argument("--out", type=Path, default=Path("runs/two_defects.json"))
    parser.add_argument("--report", type=Path, nargs="+", help="finished rows, to a report")
    options = parser.parse_args()
    if options.report:
        report(options.report)
        return
    quieten()
    torch.set_num_threads(1)  # Networks this small only wait for each other.
    options.out.parent.mkdir(parents=True, exist_ok=True)
    done = json.loads(options.out.read_text()) if options.out.exists() else {}
    with tempfile.TemporaryDirectory() as scratch:
        judge = train_judge(Path(scratch))
    probes: dict[str, LinearProbe] = {}
    adapters: dict[tuple[object, ...], SemanticAdapter] = {}
    for seed in map(int, options.seeds.split(",")):
        for condition in CONDITIONS:
            path = options.fine_base if condition.fine else options.base
            if path is None:
                continue
            config = BaseConfig(path=path)
            base = load_base(config)
            read = reader(base)
            references = [
                reference(CATEGORIES[number % 6], condition, seed, number)
                for number in range(CASES)
            ]
            first = condition.name == "colours"
            plan = [(row, False) for row in ROWS if first or row.everywhere]
            plan += [(row, True) for row in ROWS if first]
            for row, two in tqdm(plan, f"seed {seed}, {condition.name}", disable=None):
                key = f"{seed}|{condition.name}|{'distracted' if two else 'plain'}|{row.name}"
                if key in done:
                    continue
                begun = time.monotonic()
                if condition.name not in probes:
                    probes[condition.name] = LinearProbe(read, condition)
                trained = row if two else ROWS[0]
                place = (seed, path, condition.view, repr((trained.csm, trained.asea)), two)
                if place not in adapters:
                    adapters[place] = train(
                        load_base(config),
                        TrainedRow(row.name, csm=trained.csm, asea=trained.asea),
                        config,
                        seed,
                        condition.view,
                        *([distracted] if two else []),
                    )
                adapter = adapters[place]
                pipeline = AnomalyControlPipeline.from_base(load_base(config), adapter)
                pipeline.set_progress_bar_config(disable=True)
                tokens = read(references, condition, row)
                labels = drawn(pipeline, judge, tokens, references, condition, seed)
                read_as = probes[condition.name](tokens, row)
                done[key] = {
                    "seconds": round(time.monotonic() - begun),
                    "drawn": [outcome(*pair) for pair in zip(labels, references, strict=True)],
                    "probe": [outcome(*pair) for pair in zip(read_as, references, strict=True)],
                }
                partial = options.out.with_suffix(".partial")
                partial.write_text(json.dumps(done))
                os.replace(partial, options.out)
                share = np.mean([value == "masked" for value in done[key]["drawn"]])
                print(f"{key}: masked {share:.2f}, {done[key]['seconds']} s", flush=True)
    print(table(done))


def table(done: dict[str, Any]) -> str:
    """Every row's shares over all seeds, with the paired difference to T_g 0."""
    lines = [
        "| condition | adapter | row | drawn: masked / other / neither | masked, against T_g 0 "
        "| probe: masked / other |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    seeds = sorted({key.split("|")[0] for key in done})
    rows = dict.fromkeys(tuple(key.split("|")[1:]) for key in done)
    rng = np.random.default_rng(0)
    for condition, adapter, name in rows:
        parts = [done.get(f"{seed}|{condition}|{adapter}|{name}") for seed in seeds]
        nothing = [done.get(f"{seed}|{condition}|{adapter}|T_g 0") for seed in seeds]
        if None in parts or None in nothing:
            continue
        drawings = np.concatenate([part["drawn"] for part in parts])
        probed = np.concatenate([part["probe"] for part in parts])
        start = np.concatenate([part["drawn"] for part in nothing])
        shares = " / ".join(
            f"{np.mean(drawings == value):.2f}" for value in ("masked", "other", "neither")
        )
        gain = (drawings == "masked").astype(float) - (start == "masked")
        means = gain[rng.integers(len(gain), size=(BOOTSTRAP, len(gain)))].mean(axis=1)
        low, high = np.quantile(means, [0.025, 0.975])
        against = "" if name == "T_g 0" else f"{gain.mean():+.2f} [{low:+.2f}, {high:+.2f}]"
        linear = " / ".join(f"{np.mean(probed == value):.2f}" for value in ("masked", "other"))
        lines.append(f"| {condition} | {adapter} | {name} | {shares} | {against} | {linear} |")
    return "\n".join(lines)


def report(files: Sequence[Path]) -> None:
    """Write rows, table and plot to ``benchmarks/results``."""
    done = {key: row for file in files for key, row in json.loads(file.read_text()).items()}
    stem = RESULTS / f"{datetime.datetime.now(datetime.UTC).date()}_two-defects_cpu"
    stem.with_suffix(".json").write_text(json.dumps(done) + "\n")
    hours = sum(row["seconds"] for row in done.values()) / 3600
    stem.with_suffix(".md").write_text(
        f"# Two defects in one reference\n\n{hardware()}, a thread a seed, {hours:.1f} hours "
        f"in all.\n\n{table(done)}\n"
    )
    figure = Figure(figsize=(11, 6), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    names = [row.name for row in ROWS]
    for panel, what in zip(panels, ("drawn", "probe"), strict=True):
        for label, colour in (("masked", "tab:green"), ("other", "tab:red")):
            shares = []
            for name in names:
                rows = [
                    row[what]
                    for key, row in done.items()
                    if key.split("|")[1:] == ["colours", "plain", name]
                ]
                shares.append(np.mean(np.concatenate(rows) == label))
            panel.plot(shares, names, "o", color=colour, label=f"the {label} defect's colour")
        panel.set_xlim(0, 1)
        panel.grid(axis="x", alpha=0.3)
    panels[0].set_title("What is drawn, judged by a classifier")
    panels[1].set_title("What C' holds, by a linear probe")
    panels[0].invert_yaxis()
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    figure.savefig(stem.with_suffix(".png"), dpi=110)
    print(stem.with_suffix(".md"))


if __name__ == "__main__":
    main()

"""A handful of photographs, the fourth round: labels under which something can be seen.

    python -m benchmarks.handful_visible DATA WORK --split-file SPLIT --stage STAGE [--print]

In the WORK of `benchmarks.handful_labels`, whose bases, adapters, photographs and split of the
training part it takes over. What three rounds had missed was found by looking at drawings
beside the normal image and in their labels:

    faint      of the drawn breaks 60 % and of cracks a quarter differed from the normal image
               by under 8 grey levels. A part of this was the composite: faded in over two of
               the model's pixels, a defect of four to six pixels lost a third of its contrast
               and more, pasted copies as well. Now it fades over a quarter of its thickness
               at most
    unseen     the gate took new grain for a change, so that labels with nothing to see passed.
               Now a difference keeps its sign while it is smoothed, and grain cancels itself
    uneven     an uneven surface was drawn from noise, without what the tile looks like, as a
               bright patch. From the normal image (`--start clean`) it is the tile's own
               streaks, changed; and small defects, from the reference with its detail, fill
               their masks

Known when this was written, of the training part, in pixel AP, AUPRO and image AUROC, two
seeds, one adapter: real 7.1, 69.9, 76.4; with the third round's drawings 7.1, 74.8, 85.0; with
drawings by these starts 6.9, 75.9, 84.6; of these the ones that can be seen 9.4, 78.7, 83.4;
with copies 9.0, 79.3, 86.7. Of one seed, of composites that keep thin defects: 7.4, 75.6, 86.5,
the visible ones 8.9, 77.9, 86.9, and copies, all of them, 9.7, 80.1, 88.8.

    sets     of either adapter 60 drawings a defect by WAYS, and copies by the same plan without
             a gate, all by today's composite. The smoothing of the gate is narrower since, so
             that it sees fine scratches: the same command draws somewhat other sets
    choose   on the training part, 2 seeds: real, and with it seen and copies
    test     only if real+seen is above real in pixel AP there: the head, 3 seeds: real, and
             with it seen, copies, and both
    unet     added when choose had just ended and before its figures were read, on the same
             condition: the U-Net, on crops of 128 px at half scale (budget small), 2 seeds,
             with the real ones seen-0 and copies. Another reading of the same images

Success as before: pixel AP of real+seen above real's and above real+copies', the intervals of
both paired differences above 0. It is the sixth opening of these test images.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from benchmarks.handful import Case, tiles
from benchmarks.handful_again import ADAPTERS, adapter
from benchmarks.handful_labels import COUNT, training_part, variant
from benchmarks.real_surfaces import carry_out, parser_of

STAGES = ("sets", "choose", "test", "unet")
REFERENCE: Mapping[str, object] = {"start": "reference", "strength": 0.7, "detail": True}
CLEAN: Mapping[str, object] = {"start": "clean", "strength": 0.7}
WAYS = {"blowhole": REFERENCE, "break": REFERENCE, "crack": REFERENCE, "uneven": CLEAN}
SAMPLING = ("--guidance-scale", "4", "--solver", "dpm++", "--steps", "15")
GATE = ("--min-fill", "0.5", "--tries", "4")


def drawing(case: Case, requests: str, out: str, seed: int, how: tuple[str, ...]) -> list[str]:
    """The command that draws what a file of `write_requests` asks for."""
    asked, place = str(case.place / f"{requests}.jsonl"), str(case.place / out)
    return [
        *("generate", "--model", adapter(case, seed), "--data", str(case.root)),
        *("--requests", asked, "--out", place, "--seed", str(seed)),
        *("--batch-size", "16", "--split-file", str(case.place / "split.json"), *how),
    ]


def write_requests(case: Case) -> None:
    """COUNT drawings of each defect, by WAYS and, for pasting, without them."""
    for name, given in (("requests", True), ("pastes", False)):
        lines = [
            {"category": case.product.name, "defect": defect, "count": COUNT}
            | (dict(way) if given else {})
            for defect, way in WAYS.items()
        ]
        text = "".join(f"{json.dumps(line)}\n" for line in lines)
        (case.place / f"{name}.jsonl").write_text(text)


def main() -> None:
    """Run, or print, a stage."""
    parser = parser_of(__doc__, STAGES)
    parser.add_argument("--split-file", type=Path, required=True, help="by pieces")
    options = parser.parse_args()
    case = tiles(options.data, options.split_file, options.work / "magnetic_tile")
    if options.stage == "sets":
        if not options.print:
            write_requests(case)
        pasted = ("--method", "copy-paste", "--gate", "off")
        how = (*SAMPLING, *GATE)
        drawn = [drawing(case, "requests", f"seen-{seed}", seed, how) for seed in ADAPTERS]
        copies = drawing(case, "pastes", "copies", 0, pasted)
        carry_out([*drawn, copies], show=options.print)
        return
    choice, held = training_part(options.data, options.split_file, case)
    seen = choice if options.stage == "choose" else case

    def made(name: str) -> str:
        place = seen.place / "sets" / options.stage / name
        not_drawn_on = held if seen is choice else frozenset[str]()
        return variant(
            case.place / name,
            place,
            "asked",
            lambda normal: normal not in not_drawn_on,
            show=options.print,
        )

    adapters = ADAPTERS[:1] if options.stage == "unet" else ADAPTERS
    sets = {
        "seen": ",".join(made(f"seen-{seed}") for seed in adapters),
        "copies": made("copies"),
    }
    both = ["real+copies+seen"] if options.stage == "test" else []
    command = seen.evaluation(sets, 3 if options.stage == "test" else 2, both)
    place = "unet" if options.stage == "unet" else "visible"
    command[command.index("--out") + 1] = str(seen.place / place)
    if options.stage == "unet":
        command[command.index("head")] = "unet"
        command[command.index("paper")] = "small"
        command += ["--tile", "128", "--tile-scale", "0.5"]
    carry_out([command], show=options.print)


if __name__ == "__main__":
    main()

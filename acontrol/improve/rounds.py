"""Rounds of detectors, misses and drawings; killed anywhere, the same call continues.

    OUT/trainings/                         detectors of every source and fold, with their maps
    OUT/round-1/misses.json                threshold and regions
    OUT/round-1/plan/NAME/requests.jsonl   what to draw, with masks; plan.json: why
    OUT/round-1/drawn/NAME/                as acontrol generate writes it
    OUT/round-1/admitted.json              which drawings are kept, and why others are not
    OUT/round-1/sets/NAME/fold-2/          kept so far, for detectors of that fold; all/: whole
    OUT/round-1/result.json                figures and gains

Every file depends on data, model and settings alone. The test images stay closed.
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from acontrol.data.images import image_size, read_mask
from acontrol.data.mvtec import MvtecFolder
from acontrol.data.pieces import training_images
from acontrol.errors import UserError
from acontrol.evaluation.bootstrap import interval
from acontrol.evaluation.dataset import check
from acontrol.evaluation.localization import Localization
from acontrol.evaluation.protocol import METRICS
from acontrol.evaluation.summary import Row, summarise
from acontrol.evaluation.trainings import train_missing
from acontrol.generation.job import MANIFEST_NAME
from acontrol.generation.run import generate
from acontrol.generation.settings import GenerationConfig
from acontrol.improve import admission, plan
from acontrol.improve.held import Folds, read_predictions
from acontrol.improve.misses import Held, Region, best_threshold, regions_of
from acontrol.improve.sets import Kept, make_set
from acontrol.improve.settings import ImproveConfig
from acontrol.masks.perlin import perlin_blobs
from acontrol.messages import print_note
from acontrol.runs import storage
from acontrol.seeding import derive_seed

COPIES = "copy-paste"  # The control that answers the same misses.
_PLANS = {"misses": plan.of_misses, "uniform": plan.uniform}


@dataclass
class Rounds:
    """The state of an improvement, all of it in files.

    Attributes:
        config: The command's settings.
        real: The data.
        categories: Those to improve on.
        folds: Folds and detectors; None with another detector's maps.
    """

    config: ImproveConfig
    real: MvtecFolder
    categories: Sequence[str]
    folds: Folds | None
    _masks: dict[str, dict[str, Path]] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """The sets of a round, the one that goes on first."""
        own = self.config.plan
        other = "uniform" if own == "misses" else "misses"
        return (own, other, COPIES) if self.config.controls else (own,)

    def made(self, number: int) -> tuple[str, ...]:
        """The sets that a round has: a control of which nothing was kept is left out."""
        place = self.folder(number) / "sets"
        return tuple(name for name in self.names if (place / name).exists())

    def folder(self, number: int) -> Path:
        """Of a round."""
        return self.config.out / f"round-{number}"

    def before(self, number: int) -> str:
        """The source whose misses a round answers."""
        return "real" if number == 1 else self.source(self.config.plan, number - 1)

    def source(self, name: str, number: int) -> str:
        """A set of a round with the real images."""
        return f"real+{name}-{number}"

    def train(self, number: int, sources: Sequence[str]) -> None:
        """Train the missing detectors of these sources, on sets up to this round."""
        assert self.folds is not None
        synthetic = {
            f"{name}-{round_}": self.folder(round_) / "sets" / name
            for round_ in range(1, number + 1)
            for name in self.names
            if f"real+{name}-{round_}" in sources
        }
        folders = {
            fold: dataclasses.replace(
                own, synthetic={n: path / f"fold-{fold}" for n, path in synthetic.items()}
            )
            for fold, own in self.folds.folders.items()
        }
        jobs = [job for source in sources for job in self.folds.jobs(source)]
        if all(job.file(self.config.out).is_file() for job in jobs):
            return
        data = {
            job.unit: check(folders[job.fold], job.category, sources).digests
            for job in self.folds.jobs(sources[0])
            if job.seed == 0
        }
        experiment = Localization(
            folders[1],
            self.folds.budget,
            ("strict",),
            data,
            perlin_blobs,
            {self.folds.detector: self.folds.budget},
            folders,
            keep=True,
        )
        train_missing(jobs, experiment, self.config.out, self.config.num_workers)

    def read(self, source: str, category: str) -> Iterator[Held]:
        """Held-out images of a source's detectors, or another detector's."""
        if self.folds is not None:
            return self.folds.read(source, category)
        assert self.config.predictions is not None
        return read_predictions(self.config.predictions, self.real, self.categories, category)

    def regions(self, source: str) -> dict[str, tuple[float, list[Region]]]:
        """Threshold and regions of each category."""
        found = {}
        for category in self.categories:

            def read(category: str = category) -> Iterator[Held]:
                return self.read(source, category)

            threshold = best_threshold(read)
            found[category] = threshold, regions_of(read, threshold)
        return found

    def misses(self, number: int) -> dict[str, tuple[float, list[Region]]]:
        """Those that a round answers, written once."""
        file = self.folder(number) / "misses.json"
        if not file.exists():
            _write(file, _records(self.regions(self.before(number))))
        return _of_records(_read(file))

    def plan(self, number: int, name: str) -> list[plan.Wanted]:
        """Write a round's plan, of all categories; empty if nothing was missed."""
        folder = self.folder(number) / "plan" / name
        file = folder / "plan.json"
        if file.exists():
            return [
                plan.Wanted(Region.of_record(one["region"]), one["normal"], one["seed"])
                for one in _read(file)
            ]
        wanted = []
        for category, (_, regions) in self.misses(number).items():
            seed = derive_seed("improve", self.config.seed, name, number, category)
            good = self._good(category, regions)
            wanted += _PLANS[name](regions, good, self.config.images, seed)
        if wanted:
            plan.write(wanted, folder, self.image_file, self._mask)
        _write(file, [dataclasses.asdict(one) for one in wanted])
        return wanted

    def draw(self, number: int) -> None:
        """Draw every plan of a round that is not judged yet, the misses also by copy-paste."""
        if self._admitted(number).exists():
            return
        for name in self.names:
            planned = "misses" if name == COPIES else name
            if not self.plan(number, planned):
                continue
            print(f"Round {number}: drawing {name}", flush=True)
            generate(
                GenerationConfig(
                    model=self.config.model,
                    method="copy-paste" if name == COPIES else "acontrol",
                    data=self.config.root,
                    split_file=self.config.split_file,
                    requests=self.folder(number) / "plan" / planned / "requests.jsonl",
                    out=self.folder(number) / "drawn" / name,
                    gate="off" if name == COPIES else "reject",
                    seed=self.config.seed,
                )
            )

    def admit(self, number: int) -> dict[str, list[dict[str, Any]]]:
        """Judge the drawings of the set that goes on, and choose at most as many of others."""
        file = self._admitted(number)
        if file.exists():
            return dict(_read(file))
        first, *controls = self.names
        admitted = {first: self._judge(number, first)}
        kept = Counter(one["kind"] for one in admitted[first] if one["verdict"] == "kept")
        for name in controls:
            lines = self._lines(number, name)
            chosen = {*admission.as_many(lines, kept)}
            folds = self._folds_of(number, "misses" if name == COPIES else name)
            admitted[name] = [
                self._entry(
                    line, folds, 0.0, "kept" if line["image"] in chosen else "not needed"
                )
                for line in lines
            ]
        _write(file, admitted)
        return admitted

    def _admitted(self, number: int) -> Path:
        return self.folder(number) / "admitted.json"

    def kept(self, name: str, number: int) -> list[Kept]:
        """What was kept of a set's drawings up to a round."""
        return [
            (self.folder(round_) / "drawn" / name, round_, one)
            for round_ in range(1, number + 1)
            for one in self.admit(round_)[name]
            if one["verdict"] == "kept"
        ]

    def make_sets(self, number: int) -> str | None:
        """Put what was kept so far where detectors read it: for each fold, and whole.

        Returns:
            Category and fold of which nothing was kept of the set that goes on, if there are
            such. A control that lacks one is left out, and said to be.
        """
        folds = [*(self.folds.folders if self.folds else ())]
        stopped = None
        for name in self.names:
            place = self.folder(number) / "sets" / name
            if place.exists():
                continue
            lacking = make_set(place, self.kept(name, number), folds, self.categories)
            if lacking is None:
                continue
            if name == self.names[0]:
                stopped = f"{name} of {lacking}"
            else:
                print_note(f"round {number}: no drawing of {name} of {lacking}; left out")
        return stopped

    def result(self, number: int) -> dict[str, Any]:
        """Figures of a round's sources, and the gain of the set that goes on."""
        file = self.folder(number) / "result.json"
        if file.exists():
            return dict(_read(file))
        assert self.folds is not None
        sources = dict.fromkeys(
            ("real", self.before(number), *(self.source(n, number) for n in self.made(number)))
        )
        jobs = [job for source in sources for job in self.folds.jobs(source)]
        rows = summarise(jobs, self.config.out, "strict")
        figures = {}
        for source in sources:
            regions = [r for _, own in self.regions(source).values() for r in own]
            counts = Counter(region.kind for region in regions)
            figures[source] = {
                **{
                    kind: counts[kind] for kind in ("found", "missed", "false alarm", "suspect")
                },
                **dict(zip(METRICS, rows[source].values.round(6).tolist(), strict=True)),
            }
        own = rows[self.source(self.names[0], number)]
        against = {
            source: gain(own, rows[source]) for source in sources if rows[source] is not own
        }
        result = {"figures": figures, "gains": against}
        _write(file, result)
        return result

    def _judge(self, number: int, name: str) -> list[dict[str, Any]]:
        folds = self._folds_of(number, name)
        thresholds = {c: threshold for c, (threshold, _) in self.misses(number).items()}
        drawn = self.folder(number) / "drawn" / name
        entries = []
        loaded: dict[tuple[str, int], Any] = {}
        for line in self._lines(number, name):
            if self.folds is None:
                entries.append(self._entry(line, folds, 0.0, "kept"))
                continue
            key = line["category"], folds[line["first_seed"]]
            if key not in loaded:
                loaded[key] = self.folds.detectors(self.before(number), *key)
            scores = self.folds.score(loaded[key], drawn / line["image"])
            mask = read_mask(drawn / line["mask"], (scores.shape[1], scores.shape[0]))
            one = admission.judged(
                line["image"],
                scores,
                mask,
                thresholds[line["category"]],
                line["changed_px"] / line["requested_px"],
            )
            entries.append(self._entry(line, folds, one.covered, one.verdict))
        return entries

    def _folds_of(self, number: int, planned: str) -> dict[int, int]:
        """The fold that holds the reference of each drawing of a plan out, by seed."""
        return {one.seed: one.region.fold for one in self.plan(number, planned)}

    @staticmethod
    def _entry(
        line: Mapping[str, Any], folds: Mapping[int, int], covered: float, verdict: str
    ) -> dict[str, Any]:
        return {
            "image": line["image"],
            "mask": line["mask"],
            "kind": f"{line['category']}/{line['defect']}",
            "seed": line["first_seed"],
            "fold": folds[line["first_seed"]],
            "covered": covered,
            "verdict": verdict,
        }

    def _lines(self, number: int, name: str) -> list[dict[str, Any]]:
        file = self.folder(number) / "drawn" / name / MANIFEST_NAME
        if not file.exists():  # Nothing was planned.
            return []
        return [json.loads(line) for line in file.read_text().splitlines()]

    def _good(self, category: str, regions: Sequence[Region]) -> dict[int, list[str]]:
        """Names of good images by the fold that holds them out."""
        if self.folds is None:
            normals = self.real.normals(category)
            return {0: [self.real.name_of(category, file) for file in normals]}
        return {
            fold: [
                name
                for name in own.fold.test
                if name.startswith(f"{category}/") and name not in self._masked(category)
            ]
            for fold, own in self.folds.folders.items()
            if own.fold is not None
        }

    def _masked(self, category: str) -> Mapping[str, Path]:
        """Mask files of a category's training defects by their images' names."""
        if category not in self._masks:
            self._masks[category] = {
                self.real.name_of(category, row.image): row.mask
                for row in training_images(self.real, category)
            }
        return self._masks[category]

    def image_file(self, name: str) -> Path:
        """The file of an image by its name."""
        category, _, rest = name.partition("/")
        return self.real.folders[category] / rest

    def _mask(self, name: str) -> Any:
        file = self._masked(name.split("/")[0])[name]
        return read_mask(file, image_size(self.image_file(name)))


def gain(own: Row, other: Row) -> dict[str, Any]:
    """Difference in pixel AP with its paired 95 % interval."""
    at = METRICS.index("pixel_ap")
    low, high = interval(own.resamples - other.resamples)[:, at].tolist()
    value = float(own.values[at] - other.values[at])
    return {"pixel_ap": round(value, 6), "low": round(low, 6), "high": round(high, 6)}


def _records(found: Mapping[str, tuple[float, Sequence[Region]]]) -> dict[str, Any]:
    return {
        category: {"threshold": threshold, "regions": [region.record() for region in regions]}
        for category, (threshold, regions) in found.items()
    }


def _of_records(saved: Mapping[str, Any]) -> dict[str, tuple[float, list[Region]]]:
    return {
        category: (own["threshold"], [Region.of_record(one) for one in own["regions"]])
        for category, own in saved.items()
    }


def _write(file: Path, value: Any) -> None:
    storage.write(file, json.dumps(value, indent=1).encode())


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        raise UserError(
            f"{file}: is damaged; remove it, and the same command goes on"
        ) from error

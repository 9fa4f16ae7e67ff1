"""A comparison of sources: which trainings it plans, on which images."""

import dataclasses
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Literal, TypeVar

from acontrol.data.left_out import print_notes
from acontrol.data.mvtec import MvtecFolder, open_folder
from acontrol.data.overlap import refuse_overlap
from acontrol.data.split import in_words, read_split
from acontrol.errors import UserError, nearest
from acontrol.evaluation import openings
from acontrol.evaluation.budget import DetectorName, Reading
from acontrol.evaluation.dataset import CLEAN, CONTROLS, CheckedData, Folders, check
from acontrol.evaluation.folds import folds_of
from acontrol.evaluation.leaks import job_of, refuse_seen_tests
from acontrol.evaluation.results import (
    TrainingJob,
    method_of,
    of_adapter,
)
from acontrol.evaluation.settings import ComparisonConfig
from acontrol.messages import counted, print_note
from acontrol.runs.inputs import DataInput

Budget = TypeVar("Budget", bound=Reading)


def named_folders(options: Sequence[str]) -> dict[str, Path]:
    """Folders by name, from NAME=DIR, or DIR with the folder's own name.

    NAME=DIR1,DIR2 are sets of one method from different adapters: NAME and NAME@2.

    Raises:
        UserError: If a folder does not exist, or a name is reserved or used twice.
    """
    folders: dict[str, Path] = {}
    for text in options:
        name, divided, rest = text.partition("=")
        if divided and not rest:
            raise UserError(f"--synthetic {text}: names no folder; write {name}=DIR")
        whole = Path(rest if divided else text).expanduser()
        several = divided and "," in rest and not whole.exists()
        paths = [Path(part).expanduser() for part in rest.split(",")] if several else [whole]
        name = name if divided else whole.resolve().name
        if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*", name):
            raise UserError(
                f"--synthetic {text}: {name!r} is not a name of letters, digits, _ . and -; "
                "name it, NAME=DIR"
            )
        if name in CONTROLS or name in CLEAN:
            raise UserError(
                f"--synthetic {text}: {name} is a source of its own; choose another name"
            )
        if name in folders:
            raise UserError(
                f"--synthetic {text}: two sources are named {name}; name them apart, NAME=DIR"
            )
        for number, path in enumerate(paths, start=1):
            open_folder(path)
            folders[of_adapter(name, number)] = path.resolve()
    return folders


def source_names(
    option: str | None, controls: Sequence[str], synthetic: Sequence[str]
) -> list[str]:
    """Comma-separated names, by default all: each synthetic folder alone and with "real".

    A source stands for one of each adapter.

    Raises:
        UserError: If a name is unknown or given twice.
    """
    methods = [*dict.fromkeys(method_of(name) for name in synthetic)]
    clean = [name for name in CLEAN if name in methods]
    own = [name for name in methods if name not in clean]
    if option is None:
        mixtures = [source for name in own for source in (name, f"real+{name}")]
        if clean:
            mixtures += ["clean-as-defect", *(f"{name}+clean-as-normal" for name in own)]
        return _each_adapter([*controls, *mixtures], synthetic)
    names = [name.strip() for name in option.split(",")]
    parts = [*controls, *methods]
    for name in names:
        for part in name.split("+"):
            if part not in parts or (part == "none" and name != "none"):
                raise UserError(
                    f"--sources: no source {name!r}; {nearest(name, parts)}; and mixtures "
                    "such as real+NAME"
                )
        if names.count(name) > 1:
            raise UserError(f"--sources: {name} is named twice")
    return _each_adapter(names, synthetic)


def _each_adapter(sources: Sequence[str], synthetic: Sequence[str]) -> list[str]:
    """Each source once for every adapter of its folders, those of the first as named."""
    found = []
    for source in sources:
        parts = source.split("+")
        adapters = max(
            sum(method_of(name) == part for name in synthetic) or 1 for part in parts
        )
        for number in range(1, adapters + 1):
            own = [of_adapter(part, number) for part in parts]
            found.append(
                "+".join(
                    name if name in synthetic else part
                    for name, part in zip(own, parts, strict=True)
                )
            )
    return found


def chosen_categories(folder: MvtecFolder, names: Sequence[str]) -> tuple[str, ...]:
    """The categories to compare on, by default all.

    Raises:
        UserError: If a name is unknown or given twice.
    """
    for name in names:
        folder.defect_types(name)
        if names.count(name) > 1:
            raise UserError(f"--category: {name} is named twice")
    return tuple(names) or folder.categories


@dataclass(frozen=True)
class Plan(Generic[Budget]):
    """What a command compares.

    Attributes:
        config: Settings of the command.
        budget: Budget of a training, with --pairs.
        folders: Where images are, without those that --new-pieces leaves out.
        jobs: All trainings.
        data: Digests of the images by what a training is tested on and source.
        note: Sentences on near duplicates in the test images.
        folds: Where images of each fold of a cross-validation are, from 1.
        within: Another command's results that these are part of, if they are.
    """

    config: ComparisonConfig
    budget: Budget
    folders: Folders
    jobs: tuple[TrainingJob, ...]
    data: Mapping[str, Mapping[str, str]]
    note: str
    folds: Mapping[int, Folders]
    within: Path | None = None

    @property
    def out(self) -> Path | None:
        """Folder for results; None for a dry run."""
        return None if self.config.dry_run else self.config.out and self.config.out.resolve()

    def about(self, budget_name: str, network: str = "", budget: Reading | None = None) -> str:
        """What a report's readers must know of budget, by default the plan's, and data."""
        categories = ", ".join(dict.fromkeys(job.category for job in self.jobs))
        return (
            f"Budget {budget_name}: {(budget or self.budget).describe()}{network}. Data "
            f"{self.folders.root.name}, categories: {categories}; seeds: {self.config.seeds}."
            f"{self._adapters_note()}{self.split_note}{self._opened_note()}{self.note}"
        )

    def open_test(self, command: str) -> None:
        """Record that the test images are opened, if a training is missing.

        Raises:
            UserError: If the record cannot be written.
        """
        if not self.folds:
            print(f"The test images have been opened {self._openings(command)}", flush=True)

    def _adapters_note(self) -> str:
        """A sentence on methods with several adapters."""
        counts = Counter(map(method_of, self.folders.synthetic))
        several = [f"{name} {number}" for name, number in counts.items() if number > 1]
        if not several:
            return ""
        return f" Adapters, resampled like seeds: {', '.join(several)}."

    def _opened_note(self) -> str:
        """A sentence on the use of the test images."""
        if self.folds:
            return (
                f" Cross-validated: {len(self.folds)} folds of whole pieces within the "
                "training part; no test image was read."
            )
        return f" The test images have been opened {self._openings()}."

    def _openings(self, command: str | None = None) -> str:
        """How often the test images have been opened; a command's name records it."""
        assert self.out is not None
        real = open_folder(self.folders.root, split_file=self.folders.split_file)
        file = openings.file_of(self.folders.split_file, self.within or self.out)
        return openings.times_opened(real, file, self.out, self.jobs, self.budget, command)

    def data_input(self) -> DataInput:
        """The real test data, for MLflow."""
        real = open_folder(self.folders.root, split_file=self.folders.split_file)
        categories = dict.fromkeys(job.category for job in self.jobs)
        part: Literal["train", "test"] = "train" if self.folds else "test"
        return DataInput.of_folder(real, part, "evaluation", [*categories])

    @property
    def split_note(self) -> str:
        """A sentence on the split file, if there is one."""
        if self.folders.split_file is None:
            return ""
        return f" Trained and tested by {in_words(read_split(self.folders.split_file).digest)}."


def plan_comparison(
    config: ComparisonConfig,
    budget: Budget,
    controls: Sequence[str],
    categories: Sequence[str],
    base: Sequence[str],
    detectors: Sequence[DetectorName] = ("unet",),
    drawn: Mapping[str, Path] | None = None,
) -> Plan[Budget]:
    """Plan and print all trainings, and check their images.

    ``controls`` are the sources that need no generator, ``base`` the parts of the data that all
    trainings see, the test images first. A memory bank has one source, `none`. ``drawn`` are
    synthetic folders besides --synthetic's, in --out; those that are still to be drawn are
    counted, not checked.

    Raises:
        UserError: If a setting is wrong, an image is bad, or a test image is trained on.
    """
    synthetic = named_folders(config.synthetic)
    if config.clean is not None:
        open_folder(config.clean)
        synthetic |= dict.fromkeys(CLEAN, config.clean.resolve())
    refuse_overlap(config.out, "--out", {"--real": config.real, **synthetic})
    drawn = drawn or {}
    synthetic |= {name: path for name, path in drawn.items() if path.exists()}
    if config.pairs is not None:
        budget = budget.model_copy(update={"pairs": config.pairs})
    sources = source_names(config.sources, controls, [*dict.fromkeys([*synthetic, *drawn])])
    if config.out is None and not config.dry_run:
        raise UserError("--out DIR is needed: where results go")
    if detectors == ["bank"]:
        sources = ["none"]
    num_folds = config.cross_validate or 0
    jobs = tuple(
        TrainingJob(category, source, seed, detector, fold)
        for category in categories
        for fold in (range(1, num_folds + 1) if num_folds else (0,))
        for seed in range(config.seeds)
        for detector in detectors
        for source in (["none"] if detector == "bank" else sources)
    )
    sources = [*dict.fromkeys(job.source for job in jobs)]
    print(f"Budget: {budget.describe()}")
    of = "" if len(detectors) == 1 else f" of {', '.join(detectors)} (bank: none alone)"
    print(
        f"{counted(len(jobs), 'training')}{of}: "
        f"{counted(len(categories), 'category', 'categories')} x "
        f"{counted(len(sources), 'source')} ({', '.join(sources)}) x "
        f"{counted(config.seeds, 'seed')}{f' x {num_folds} folds' if num_folds else ''}",
        flush=True,
    )
    missing = drawn.keys() - synthetic.keys()
    sources = [source for source in sources if missing.isdisjoint(source.split("+"))]
    print_notes(open_folder(config.real), categories)
    for name, path in synthetic.items():
        if name not in drawn:  # Those are as `generate` wrote them.
            print_notes(open_folder(path))
    folders = Folders(
        config.real.resolve(),
        synthetic,
        budget.size,
        budget.pairs,
        split_file=config.split_file and config.split_file.resolve(),
        groups=config.groups and config.groups.resolve(),
    )
    real = open_folder(folders.root, split_file=folders.split_file)
    for name, path in synthetic.items():
        refuse_seen_tests(f"--synthetic {name}", job_of(open_folder(path)), real, categories)
    folds = _folds(config, folders, real, categories)
    units = _units(folds or {0: folders}, categories)
    checked = {job.unit: check(own, job.category, sources, base) for job, own in units}
    note = note_near_duplicates(checked)
    if note and config.new_pieces:
        left_out = frozenset(file for data in checked.values() for file in data.near_duplicates)
        folders, *_ = _without(left_out, [folders])
        folds = dict(zip(folds, _without(left_out, [*folds.values()]), strict=True))
        units = _units(folds or {0: folders}, categories)
        checked = {job.unit: check(own, job.category, sources, base) for job, own in units}
        shown = counted(
            len(left_out),
            "test image that shows a trained piece again is",
            "test images that show a trained piece again are",
        )
        note = f" {shown} left out."
        print(f"Left out: these, {len(left_out)} in all", flush=True)
    elif config.new_pieces:
        print(
            "Left out: nothing; no test image looks like another photograph of a trained "
            "piece, or none can be compared (under 64 px, or where all pieces look alike)",
            flush=True,
        )
    digests = {unit: data.digests for unit, data in checked.items()}
    if config.groups is not None:
        note += " Test images of one group are resampled together."
    return Plan(config, budget, folders, jobs, digests, note, folds)


def _folds(
    config: ComparisonConfig, folders: Folders, real: MvtecFolder, categories: Sequence[str]
) -> dict[int, Folders]:
    """Where images of each fold are; empty without folds."""
    if config.cross_validate is None:
        return {}
    return folds_in(folders, real, categories, config.cross_validate, config.groups)


def folds_in(
    folders: Folders,
    real: MvtecFolder,
    categories: Sequence[str],
    number: int,
    groups: Path | None = None,
) -> dict[int, Folders]:
    """Where images of each fold are, from 1, without the test images.

    Raises:
        UserError: As `folds_of` does.
    """
    tested = [real.normals(category, "test") for category in categories]
    tested += [
        tuple(row.image for row in real.labelled("test", category)) for category in categories
    ]
    left_out = frozenset(path for paths in tested for path in paths)
    splits = folds_of(real, categories, number, groups)
    return {
        fold: dataclasses.replace(folders, left_out=left_out, fold=split)
        for fold, split in enumerate(splits, start=1)
    }


def _units(
    folds: Mapping[int, Folders], categories: Sequence[str]
) -> list[tuple[TrainingJob, Folders]]:
    """A training of each category and fold, to name what it is tested on."""
    return [
        (TrainingJob(category, "none", 0, fold=fold), own)
        for fold, own in folds.items()
        for category in categories
    ]


def _without(left_out: frozenset[Path], parts: Sequence[Folders]) -> list[Folders]:
    return [dataclasses.replace(own, left_out=own.left_out | left_out) for own in parts]


def note_near_duplicates(checked: Mapping[str, CheckedData]) -> str:
    """Print which test images show trained pieces again, and return sentences on them."""
    note = ""
    for category, data in checked.items():
        if data.near_duplicates:
            count = len(data.near_duplicates)
            sentence = (
                f" Of {category}'s {counted(data.num_test, 'test image')} {count} "
                f"{'looks' if count == 1 else 'look'} like other photographs of pieces that "
                "are trained on: too good a result for new pieces (--new-pieces leaves them "
                "out)."
            )
            test, training = next(iter(data.near_duplicates.items()))
            print_note(f"{sentence.strip()} For instance {test} and {training}")
            note += sentence
    return note

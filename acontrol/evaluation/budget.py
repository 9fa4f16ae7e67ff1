"""How much networks are trained, the same for every source of defects."""

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from acontrol.config import Settings
from acontrol.messages import counted

DetectorName = Literal["unet", "draem", "head", "bank"]
ON_FEATURES = ("head", "bank")  # Those that stand on EfficientNet-Lite0.


class Reading(Settings):
    """What is read."""

    size: int = Field(multiple_of=32, ge=32, description="Side of images, in pixels.")
    pairs: int = Field(ge=1, description="Maximum number of synthetic pairs per defect.")

    def describe(self) -> str:
        """One line for a table's head."""
        return f"{self.size} px, at most {self.pairs} pairs a defect"


class Schedule(Reading):
    """Budget of a training."""

    epochs: int = Field(ge=1, description="The paper's protocol tests after each.")
    samples: int = Field(ge=1, description="Images per epoch.")
    batch_size: int = Field(ge=2, multiple_of=2, description="Images per step.")
    learning_rate: float = Field(gt=0, description="Adam's; times 0.2 after 80 and 90 %.")

    @property
    def steps(self) -> int:
        """Steps of a training."""
        return self.epochs * self.epoch_steps

    @property
    def epoch_steps(self) -> int:
        """Steps of an epoch; the last batch is filled up."""
        return -(-self.samples // self.batch_size)

    def describe(self) -> str:
        """One line for a table's head."""
        return (
            f"{self.size} px, {counted(self.epochs, 'epoch')} of "
            f"{counted(self.samples, 'sample')}, batch {self.batch_size}, "
            f"Adam {self.learning_rate:g}, at most {counted(self.pairs, 'pair')} per defect"
        )


class Drawing(Settings):
    """How a detector's training images are drawn, the same for every source.

    A result records only what differs from the defaults, which are the published protocol.
    """

    augment: bool = Field(
        False, description="Flips, right-angle rotations and brightness of every image."
    )
    ratio: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Share of a mixture's first source; by default its sources are equal.",
    )

    tile: int | None = Field(
        None, multiple_of=32, ge=32, description="Side of crops and tiles, in pixels."
    )
    tile_scale: float = Field(1.0, gt=0, le=4, description="Scale of images cut into tiles.")

    def describe_drawing(self) -> str:
        """What differs from the defaults, as the end of a line."""
        text = ""
        if self.tile is not None:
            text = (
                f"; crops of {self.tile} px at scale {self.tile_scale:g}, those of images with "
                "defects around these, tested on whole images by tiles"
            )
        text += "; flips, right-angle rotations, brightness" if self.augment else ""
        if self.ratio is not None:
            text += f"; mixtures: {self.ratio:g} of their first source"
        return text


class Budget(Schedule, Drawing):
    """Budget of a localization detector; half of an epoch's images have a defect."""

    width: int = Field(ge=1, description="Channels of the U-Net's first block, or the head's.")

    def describe(self) -> str:
        """One line for a table's head."""
        text = super().describe().replace(" px,", f" px, width {self.width},", 1)
        if self.tile is not None:
            text = text.removeprefix(f"{self.size} px, ")
        return f"{text}{self.describe_drawing()}"


class BankBudget(Reading, Drawing):
    """Budget of a memory bank, which sees good images alone."""

    images: int = Field(ge=2, description="Good images it is made of, at most.")
    patches: int = Field(ge=2, description="Patches that are kept, at random.")

    @property
    def epochs(self) -> int:
        """It is made once."""
        return 1

    def describe(self) -> str:
        """One line for a table's head."""
        size = f"{self.size} px, " if self.tile is None else ""
        return (
            f"{size}{self.patches} random patches of at most {self.images} good "
            f"images{self.describe_drawing()}"
        )


DetectorBudget = Budget | BankBudget


BUDGETS = {
    # As published: DRAEM's discriminative network in AnomalyDiffusion's scripts.
    "paper": Budget(
        size=256, width=64, epochs=200, samples=500, batch_size=8, learning_rate=1e-4, pairs=500
    ),
    # 1,500 steps at the published rate: about eleven minutes a training on one CPU core.
    "small": Budget(
        size=128, width=16, epochs=6, samples=2000, batch_size=8, learning_rate=1e-4, pairs=100
    ),
    # For trying commands; its results mean nothing.
    "smallest": Budget(
        size=32, width=4, epochs=2, samples=160, batch_size=4, learning_rate=1e-2, pairs=10
    ),
}

# Of the detectors on frozen features, at the size of the budget of that name.
HEAD_BUDGETS = {
    # 400 steps: about a minute a training on one CPU core.
    "paper": Budget(
        size=256, width=32, epochs=1, samples=3200, batch_size=8, learning_rate=1e-3, pairs=500
    ),
    "small": Budget(
        size=128, width=32, epochs=1, samples=3200, batch_size=8, learning_rate=1e-3, pairs=100
    ),
    "smallest": Budget(
        size=32, width=8, epochs=1, samples=80, batch_size=4, learning_rate=1e-2, pairs=10
    ),
}
BANK_BUDGETS = {
    "paper": BankBudget(size=256, images=500, patches=10_000, pairs=500),
    "small": BankBudget(size=128, images=500, patches=10_000, pairs=100),
    "smallest": BankBudget(size=32, images=10, patches=100, pairs=10),
}


def detector_budgets(
    name: str, detectors: list[DetectorName], changes: Mapping[str, object]
) -> dict[DetectorName, DetectorBudget]:
    """The budget of each detector, with these changes of all."""
    tables: dict[DetectorName, Mapping[str, DetectorBudget]] = {
        "unet": BUDGETS,
        "draem": BUDGETS,
        "head": HEAD_BUDGETS,
        "bank": BANK_BUDGETS,
    }
    return {
        detector: tables[detector][name].model_copy(update=dict(changes))
        for detector in detectors
    }


CLASSIFIER_BUDGETS = {
    # Published: 30 epochs over all generated images, however many. Here the length is the same
    # for every source, about that of four defects' 500 images.
    "paper": Schedule(
        size=256, epochs=30, samples=2000, batch_size=8, learning_rate=1e-4, pairs=500
    ),
    # 400 steps: a few minutes a training on one CPU core.
    "small": Schedule(
        size=128, epochs=4, samples=800, batch_size=8, learning_rate=1e-4, pairs=100
    ),
    # For trying commands; its results mean nothing.
    "smallest": Schedule(
        size=32, epochs=1, samples=8, batch_size=4, learning_rate=1e-3, pairs=10
    ),
}

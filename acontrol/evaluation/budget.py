"""How much networks are trained, the same for every source of defects."""

from pydantic import Field

from acontrol.config import Settings
from acontrol.messages import counted


class Schedule(Settings):
    """Budget of a training."""

    size: int = Field(multiple_of=32, ge=32, description="Side of images, in pixels.")
    epochs: int = Field(ge=1, description="The paper's protocol tests after each.")
    samples: int = Field(ge=1, description="Images per epoch.")
    batch_size: int = Field(ge=2, multiple_of=2, description="Images per step.")
    learning_rate: float = Field(gt=0, description="Adam's; times 0.2 after 80 and 90 %.")
    pairs: int = Field(ge=1, description="Maximum number of synthetic pairs per defect.")

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


class Budget(Schedule):
    """Budget of a localization detector; half of an epoch's images have a defect."""

    width: int = Field(ge=1, description="Channels of the U-Net's first block.")

    def describe(self) -> str:
        """One line for a table's head."""
        return super().describe().replace(" px,", f" px, width {self.width},", 1)


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

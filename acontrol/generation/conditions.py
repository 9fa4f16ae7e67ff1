"""Text and C' of a plan, each computed once however many images need it."""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence

import torch
from PIL import Image
from torch import Tensor

from acontrol.data.images import read_image, read_mask
from acontrol.generation.planned import Planned, Reference
from acontrol.generation.settings import Sampling
from acontrol.pipelines.anomaly_control import AnomalyControlPipeline, Conditions

LIMIT = 512  # References kept, each 1.6 MB at full size in half precision.


class ConditionCache:
    """Keeps what was computed for the references and texts met last.

    Each is computed in a batch of its own: in a larger one its neighbours could change the
    last bit, and then a continued job would not draw what an uninterrupted one does.
    """

    def __init__(self, pipeline: AnomalyControlPipeline, limit: int = LIMIT):
        """Take the pipeline that computes."""
        self.pipeline = pipeline
        self.limit = limit
        self.computed = 0
        self._kept: OrderedDict[Hashable, Tensor] = OrderedDict()
        self._empty: Conditions | None = None

    def of(self, batch: Sequence[Planned], sampling: Sampling) -> Conditions:
        """The conditions of a batch."""
        text = [self._text(one.prompt) for one in batch]
        semantic = [self._semantic(one.reference, sampling) for one in batch]
        if self._empty is None:
            self._empty = self.pipeline.conditions(text[0], semantic[0])
        empty = self._empty
        return Conditions(
            torch.cat(text), torch.cat(semantic), empty.empty_text, empty.empty_semantic
        )

    def _text(self, prompt: str) -> Tensor:
        return self._once(prompt, lambda: self.pipeline.encode_text([prompt]))

    def _semantic(self, reference: Reference, sampling: Sampling) -> Tensor:
        asea = self.pipeline.card.asea
        changed = {"steps": sampling.asea_steps, "step_size": sampling.asea_step_size}
        asea = asea.model_copy(update={k: v for k, v in changed.items() if v is not None})

        def compute() -> Tensor:
            image = Image.fromarray(read_image(reference.image))
            mask = Image.fromarray(read_mask(reference.mask, image.size))
            return self.pipeline.encode_reference([image], [mask], [reference.phrase], asea)

        return self._once((reference, asea.steps, asea.step_size), compute)

    def _once(self, key: Hashable, compute: Callable[[], Tensor]) -> Tensor:
        if key not in self._kept:
            self._kept[key] = compute()
            self.computed += 1
            if len(self._kept) > self.limit:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]

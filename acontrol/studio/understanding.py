"""What ASEA does to a reference: where the anomaly's words look, before and after."""

import base64
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from acontrol.data.images import encode_png, read_image
from acontrol.data.mvtec import LabelledImage
from acontrol.method.anomaly_map import energy, region_on_grid
from acontrol.method.asea import guide
from acontrol.method.qformer import QFormerPass
from acontrol.pipelines.anomaly_control import AnomalyControlPipeline
from acontrol.pipelines.inputs import vlm_inputs
from acontrol.reporting import outlined

SHOWN_PX = 256


@torch.no_grad()
def understand(
    pipeline: AnomalyControlPipeline, reference: LabelledImage, steps: int
) -> dict[str, Any]:
    """The attention of a reference's words over its image (the paper's Figure 4).

    The image is whole, whatever ``csm.outside`` says: with the rest greyed there would be
    nothing for ASEA to turn attention away from.

    Args:
        pipeline: With the model.
        reference: The labelled image.
        steps: T_g, the steps of ASEA.

    Returns:
        PNGs in base64, ``image`` with the defect outlined, ``before`` and ``after``, and
        ``energies``, E before the first step and after each.
    """
    semantics = pipeline.semantics
    pixels = Image.fromarray(read_image(reference.image))
    mask = Image.fromarray(reference.read_mask())
    images, masks = vlm_inputs([pixels], [mask], semantics.image_px, pipeline.card)
    masks = masks.to(semantics.device)
    text = semantics.read([reference.phrase])
    settings = pipeline.card.asea.model_copy(update={"steps": steps, "stop_energy": None})
    visual = semantics.embed_image(images)
    region = region_on_grid(masks, semantics.grid)

    def attend(embedding: Tensor) -> Tensor:
        return _pass(pipeline, text, settings, visual).finish(embedding)[1]

    qformer = _pass(pipeline, text, settings, visual)
    guided, energies = guide(qformer, visual, region, settings)
    before, after = attend(visual), attend(guided)
    curve = [*energies[0].tolist(), float(energy(after, region)[0])]
    view = Image.fromarray(
        ((images[0].permute(1, 2, 0).cpu().numpy() + 1) * 127.5).round().astype(np.uint8)
    ).resize((SHOWN_PX, SHOWN_PX), Image.Resampling.BICUBIC)
    shown = Image.fromarray(masks[0, 0].cpu().numpy() > 0.5).resize(view.size)
    top = float(torch.maximum(before.max(), after.max()))
    return {
        "image": _base64(outlined(view, shown)),
        "before": _base64(_overlay(view, before[0], semantics.grid, top)),
        "after": _base64(_overlay(view, after[0], semantics.grid, top)),
        "energies": [round(value, 6) for value in curve],
    }


def _pass(pipeline: AnomalyControlPipeline, text: Any, settings: Any, visual: Tensor) -> Any:
    return QFormerPass(
        pipeline.semantics.vlm,
        1,
        text,
        method=settings.map,
        first=settings.solver == "first",
        values=visual if settings.target == "keys" else None,
    )


def _overlay(view: Image.Image, attention: Tensor, grid: int, top: float) -> Image.Image:
    """Attention as warm light over the darkened image."""
    share = (attention.reshape(grid, grid).float().cpu().numpy() / max(top, 1e-12)).clip(0, 1)
    level = Image.fromarray(share.astype(np.float32)).resize(
        view.size, Image.Resampling.BILINEAR
    )
    weight = np.asarray(level)[..., None]
    base = np.asarray(view, dtype=np.float32) * 0.45
    warm = np.array([255, 176, 32], dtype=np.float32)
    return Image.fromarray((base * (1 - weight) + warm * weight).clip(0, 255).astype(np.uint8))


def _base64(image: Image.Image) -> str:
    return base64.b64encode(encode_png(image)).decode()

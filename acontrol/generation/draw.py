"""Draw one defect from Python: what launch.generate does with an image, in one call."""

import tempfile
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from acontrol.config.sampling import Solver
from acontrol.data.images import encode_png, image_size, read_mask
from acontrol.data.pixels import image_pixels, mask_pixels
from acontrol.data.prompts import target_text
from acontrol.generation.adapter import AdapterMethod
from acontrol.generation.gate import DefectScorer
from acontrol.generation.plan import PlannedImage, Reference
from acontrol.generation.sampler import Generator
from acontrol.generation.settings import Gate, OutputSettings, Sampling
from acontrol.masks.sampler import PlacedMask
from acontrol.pipelines.anomaly_control import AnomalyControlPipeline

Picture = Image.Image | str | Path


def draw_defect(
    pipeline: AnomalyControlPipeline,
    image: Picture,
    mask: Picture,
    *,
    reference_image: Picture,
    reference_mask: Picture,
    reference_phrase: str,
    product: str | None = None,
    prompt: str | None = None,
    seed: int = 0,
    steps: int = 30,
    guidance_scale: float = 7.5,
    scale: float | None = None,
    crop: float | None = None,
    start: Literal["noise", "reference", "clean"] = "noise",
    strength: float = 1.0,
    solver: Solver = "ddim",
    detail: bool = False,
    blend: Literal["feather", "poisson", "hard"] = "feather",
) -> Image.Image:
    """Draw a defect inside a mask; every pixel outside it stays as it is.

    Crops as the adapter was trained, composites with a soft edge and limits the colour, by the
    code of launch.generate: the same request and seed give the same bytes.

    Args:
        pipeline: From ``acontrol.load_pipeline``.
        image: A normal image, of any size; a picture or its file.
        mask: Where to draw, of the same size: black, and one other level inside.
        reference_image: An image that shows the defect.
        reference_mask: Where it shows it.
        reference_phrase: The defect in words, as "a crack".
        product: The image's product, for the target text "a photo of PRODUCT with PHRASE".
        prompt: The target text itself, instead.
        seed: Of the noise; as a request's ``seed``.
        steps: Denoising steps.
        guidance_scale: Classifier-free guidance.
        scale: Gamma of Eq. (5); by default the one trained with.
        crop: Side of the square that is drawn, in sizes of the defect; 0 is the whole image.
            By default as trained.
        start: What lies under the noise: nothing, the reference's defect warped into the
            mask, or the normal image.
        strength: With ``start``, the share of the steps that are done: below 1 its structure
            stays.
        solver: DDIM, or one that needs fewer ``steps``.
        detail: Keep grain that the base is too coarse for, of what lies under the drawing.
        blend: The mask's edge.

    Returns:
        The image, as large as ``image``.

    Raises:
        ValueError: If not exactly one of ``product`` and ``prompt`` is given, a setting is out
            of range, or the words or a picture cannot be read.
        UserError: If a file cannot be read, or a mask is empty or not of its image's size.
    """
    if (product is None) == (prompt is None):
        raise ValueError("give either product or prompt")
    sampling = Sampling(
        steps=steps,
        guidance_scale=guidance_scale,
        scale=scale,
        crop=crop,
        start=start,
        strength=strength,
        solver=solver,
        detail=detail,
    )
    sampling.check()
    pipeline.semantics.read([reference_phrase])
    with tempfile.TemporaryDirectory(prefix="acontrol-draw-") as scratch:
        # Through files, as everything else: one reader, the same refusals.
        files = {
            name: _file(Path(scratch, f"{name}.png"), picture)
            for name, picture in (
                ("image", image),
                ("mask", mask),
                ("reference_image", reference_image),
                ("reference_mask", reference_mask),
            )
        }
        pixels = np.asarray(read_mask(files["mask"], image_size(files["image"])))
        planned = PlannedImage(
            name=(product or "image", "defect", "000"),
            normal=files["image"],
            reference=Reference(
                files["reference_image"], files["reference_mask"], reference_phrase
            ),
            mask=PlacedMask.of("file", None, pixels),
            prompt=prompt or target_text(product or "", reference_phrase),
            seed=seed,
            sampling=sampling,
        )
        scorer = DefectScorer(pipeline.vlm, lambda defect_type: ())
        output = OutputSettings(blend=blend)
        generator = Generator(AdapterMethod(pipeline), scorer, Gate(gate="off"), output)
        (drawn,) = generator.generate_batch([planned])
    return Image.fromarray(drawn.image)


def _file(place: Path, picture: Picture) -> Path:
    """The picture's file, written if it has none."""
    if not isinstance(picture, Image.Image):
        return Path(picture).expanduser()
    read = mask_pixels if "mask" in place.name else image_pixels
    place.write_bytes(encode_png(Image.fromarray(read(picture))))
    return place

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from PIL import Image, ImageDraw
from scipy import ndimage

from acontrol.config import AdapterCard, AseaConfig, CsmConfig, SgaConfig
from acontrol.method.sga import SemanticAdapter
from acontrol.networks.load import BaseModels
from acontrol.pipelines.anomaly_control import AnomalyControlPipeline

SIZES = [(64, 64), (90, 50), (40, 72)]  # width, height: the card's own, wider and higher


@pytest.fixture
def make(base: BaseModels, adapter: SemanticAdapter, card: Callable[..., AdapterCard]) -> Any:
    """Make a pipeline on the test's own base; keywords change the card."""

    def make_one(adapter: SemanticAdapter = adapter, **changes: Any) -> AnomalyControlPipeline:
        adapter.register_to_config(card=card(**changes).model_dump(mode="json"))
        pipeline = AnomalyControlPipeline.from_base(base, adapter)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    return make_one


Make = Callable[..., AnomalyControlPipeline]


def noise_image(size: tuple[int, int], seed: int) -> Image.Image:
    levels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(levels)


def ellipse(size: tuple[int, int], mode: str = "L", value: Any = 255) -> Image.Image:
    mask = Image.new(mode, size)
    width, height = size
    ImageDraw.Draw(mask).ellipse(
        (width // 4, height // 3, width // 2, height - height // 4), fill=value
    )
    return mask


def request(count: int = 3) -> dict[str, Any]:
    """Arguments for drawing on ``count`` images of different sizes."""
    references = [(64, 64), (50, 30), (80, 100)][:count]
    return {
        "prompt": ["a wood with a crack", "dark metal", "a photo of tile with spots"][:count],
        "reference_image": [noise_image(size, 10 + n) for n, size in enumerate(references)],
        "reference_mask": [ellipse(size) for size in references],
        "reference_phrase": ["a crack", "large dark stain", "spots"][:count],
        "image": [noise_image(size, 20 + n) for n, size in enumerate(SIZES[:count])],
        "mask_image": [ellipse(size) for size in SIZES[:count]],
    }


def draw(pipeline: AnomalyControlPipeline, seed: int = 0, **changes: Any) -> list[np.ndarray]:
    arguments = {**request(), "num_inference_steps": 3, **changes}
    count = len(arguments["prompt"])
    arguments.setdefault(
        "generator", [torch.Generator().manual_seed(seed + n) for n in range(count)]
    )
    images = pipeline(**arguments).images
    assert all(image.mode == "RGB" for image in images)
    return [np.array(image) for image in images]


def inside(number: int) -> np.ndarray:
    return np.array(ellipse(SIZES[number])) > 0


def same(one: list[np.ndarray], other: list[np.ndarray]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_pixels_change_inside_the_mask_alone(make: Make) -> None:
    images = draw(make())
    normals = [np.array(image) for image in request()["image"]]
    for number, (image, normal) in enumerate(zip(images, normals, strict=True)):
        where = inside(number)
        assert image.shape == normal.shape
        assert np.array_equal(image[~where], normal[~where])
        assert (image[where] != normal[where]).any(axis=-1).mean() > 0.5


def test_on_a_grey_image_grey_is_drawn(make: Make) -> None:
    pipeline = make()
    normals = [image.convert("L") for image in request()["image"]]
    for number, image in enumerate(draw(pipeline, image=normals)):
        assert (image == image[..., :1]).all()
        assert (image[inside(number)] != np.array(normals[number])[inside(number), None]).any()


def test_without_composite_the_outside_went_through_the_vae(make: Make) -> None:
    pipeline = make()
    images, leaked = draw(pipeline), draw(pipeline, composite=False)
    for number, (image, leak) in enumerate(zip(images, leaked, strict=True)):
        where = inside(number)
        assert image.shape == leak.shape
        deep = ndimage.distance_transform_edt(where) > 4  # Within, the drawing fades in.
        assert deep.any()
        assert np.array_equal(image[deep], leak[deep])
        assert not np.array_equal(image[~where], leak[~where])


def test_latents_outside_the_mask_are_the_normal_images(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = make()
    seen = []
    decode = pipeline.vae.decode

    def spy(latents: torch.Tensor) -> Any:
        seen.append(latents)
        return decode(latents)

    monkeypatch.setattr(pipeline.vae, "decode", spy)
    arguments = {name: value[:1] for name, value in request(1).items()}
    draw(pipeline, **arguments)
    (result,) = seen
    pixels = torch.from_numpy(np.array(arguments["image"][0])).permute(2, 0, 1) / 127.5 - 1
    with torch.no_grad():
        kept = pipeline.vae.encode(pixels[None]).latent_dist.mean
    touched = torch.from_numpy(inside(0)).reshape(16, 4, 16, 4).any(3).any(1)
    torch.testing.assert_close(
        result[0][:, ~touched], kept[0][:, ~touched], rtol=1e-5, atol=1e-5
    )
    assert ((result - kept)[0].abs().amax(dim=0)[touched] > 1e-3).all()


def test_between_steps_the_outside_is_the_normal_image_at_that_noise(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = make()
    seen = []
    forward = pipeline.unet.forward

    def spy(sample: torch.Tensor, timestep: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append((sample, int(timestep)))
        return forward(sample, timestep, *args, **kwargs)

    monkeypatch.setattr(pipeline.unet, "forward", spy)
    arguments = {name: value[:1] for name, value in request(1).items()}
    draw(pipeline, seed=8, guidance_scale=1.0, **arguments)
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(8))
    pixels = torch.from_numpy(np.array(arguments["image"][0])).permute(2, 0, 1) / 127.5 - 1
    with torch.no_grad():
        kept = pipeline.vae.encode(pixels[None]).latent_dist.mean
    kept = kept * pipeline.vae.config.scaling_factor
    touched = torch.from_numpy(inside(0)).reshape(16, 4, 16, 4).any(3).any(1)
    assert [t for _, t in seen] == [667, 334, 1]
    assert torch.equal(seen[0][0][..., touched], noise[..., touched])
    for sample, t in seen:
        share = pipeline.scheduler.alphas_cumprod[t]
        expected = share.sqrt() * kept + (1 - share).sqrt() * noise
        torch.testing.assert_close(
            sample[..., ~touched], expected[..., ~touched], rtol=1e-4, atol=1e-5
        )


def test_a_seed_gives_the_same_bytes(make: Make) -> None:
    pipeline = make()
    first = draw(pipeline, seed=5)
    torch.manual_seed(99)
    assert same(first, draw(pipeline, seed=5))
    other = draw(pipeline, seed=6)
    for one, two in zip(first, other, strict=True):
        assert not np.array_equal(one, two)


def test_an_image_alone_agrees_with_the_batch(make: Make) -> None:
    pipeline = make()
    whole = draw(pipeline, seed=3)
    for number in range(3):
        alone = {name: value[number : number + 1] for name, value in request().items()}
        (image,) = draw(pipeline, seed=3 + number, **alone)
        assert np.abs(image.astype(int) - whole[number].astype(int)).max() <= 2


def test_from_nothing_images_have_the_cards_resolution(make: Make) -> None:
    images = draw(make(resolution=48), image=None, mask_image=None)
    assert [image.shape for image in images] == [(48, 48, 3)] * 3
    assert not np.array_equal(images[0], images[1])


def other_reference() -> dict[str, Any]:
    arguments = request()
    return {
        "reference_image": [
            noise_image(image.size, 77) for image in arguments["reference_image"]
        ],
        "reference_phrase": ["a hole", "a dent", "a hole"],
        "reference_mask": [
            one.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            for one in arguments["reference_mask"]
        ],
    }


def test_at_scale_zero_the_reference_says_nothing(make: Make) -> None:
    pipeline = make()
    assert same(
        draw(pipeline, semantic_scale=0.0),
        draw(pipeline, semantic_scale=0.0, **other_reference()),
    )
    # The card's scale is the default.
    assert same(draw(pipeline), draw(pipeline, semantic_scale=1.0))
    assert same(draw(pipeline, semantic_scale=0.0), draw(make(sga=SgaConfig(scale=0))))


@pytest.mark.parametrize("field", ["reference_image", "reference_phrase", "reference_mask"])
def test_the_reference_matters(make: Make, field: str) -> None:
    # A large step, so that the mask is felt in 8 bits.
    pipeline = make(asea=AseaConfig(steps=2, step_size=0.5))
    changed = draw(pipeline, **{field: other_reference()[field]})
    for one, two in zip(draw(pipeline), changed, strict=True):
        assert not np.array_equal(one, two)


def test_the_prompt_matters(make: Make) -> None:
    pipeline = make()
    changed = draw(pipeline, prompt=["hole", "leather", "an orange pill"])
    for one, two in zip(draw(pipeline), changed, strict=True):
        assert not np.array_equal(one, two)


def test_a_reference_view_is_the_cards(make: Make) -> None:
    assert not same(draw(make()), draw(make(reference_view="region")))


def test_how_c_is_made_is_read_from_the_card(make: Make) -> None:
    pipeline = make(csm=CsmConfig(text=False), asea=AseaConfig(steps=0))
    assert pipeline.semantics.csm.text is False
    phrases = other_reference()["reference_phrase"]
    assert same(draw(pipeline), draw(pipeline, reference_phrase=phrases))
    assert not same(draw(pipeline), draw(make()))


def test_guidance_is_classifier_free(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = make()
    sizes, predictions = [], []
    forward = pipeline.unet.forward

    def spy(sample: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        result = forward(sample, *args, **kwargs)
        sizes.append(len(sample))
        predictions.append(result.sample)
        return result

    monkeypatch.setattr(pipeline.unet, "forward", spy)
    plain = draw(pipeline, guidance_scale=1.0)
    assert sizes == [3] * 3  # The unconditional pass is left out.
    conditional = predictions[0]
    sizes.clear(), predictions.clear()
    guided = draw(pipeline, guidance_scale=7.5)
    assert sizes == [6] * 3
    assert not same(plain, guided)
    # First the unconditional half, then the conditional one.
    torch.testing.assert_close(predictions[0][3:], conditional, rtol=1e-3, atol=1e-4)
    # The unconditional half knows neither prompt nor reference.
    first = predictions[0]
    predictions.clear()
    draw(pipeline, guidance_scale=7.5, prompt=["hole"] * 3, **other_reference())
    assert torch.equal(predictions[0][:3], first[:3])
    assert not torch.equal(predictions[0][3:], first[3:])


def test_a_step_moves_by_the_guided_prediction(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = make()
    halves, steps = [], []
    forward, step = pipeline.unet.forward, DDIMScheduler.step

    def spy_unet(*args: Any, **kwargs: Any) -> Any:
        result = forward(*args, **kwargs)
        halves.append(result.sample.chunk(2))
        return result

    def spy_step(self: DDIMScheduler, noise_pred: torch.Tensor, *args: Any) -> Any:
        steps.append(noise_pred)
        return step(self, noise_pred, *args)

    monkeypatch.setattr(pipeline.unet, "forward", spy_unet)
    monkeypatch.setattr(DDIMScheduler, "step", spy_step)
    draw(pipeline, guidance_scale=3.0)
    for (without, conditional), noise_pred in zip(halves, steps, strict=True):
        expected = 3 * conditional - 2 * without
        torch.testing.assert_close(noise_pred, expected, rtol=1e-4, atol=1e-5)


def test_the_sampler_is_ddim_on_the_bases_schedule(make: Make) -> None:
    pipeline = make()
    config = pipeline.scheduler.config
    assert isinstance(pipeline.scheduler, DDIMScheduler)
    assert (config.beta_start, config.beta_end) == (0.00085, 0.012)
    assert config.beta_schedule == "scaled_linear"
    assert config.clip_sample is False
    assert config.set_alpha_to_one is False  # As SD1.5's own: the last step ends at t = 0.
    assert config.prediction_type == "epsilon"


@pytest.mark.parametrize(("mode", "value"), [("L", 1), ("1", 1), ("RGB", (0, 0, 1))])
def test_any_value_over_zero_is_mask(make: Make, mode: str, value: Any) -> None:
    pipeline = make()
    masks = [ellipse(size, mode, value) for size in SIZES]
    references = [ellipse(image.size, mode, value) for image in request()["reference_image"]]
    assert same(draw(pipeline), draw(pipeline, mask_image=masks, reference_mask=references))


@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_references_of_any_mode(make: Make, mode: str) -> None:
    images = [image.convert(mode) for image in request()["reference_image"]]
    plain = [image.convert("RGB") for image in images]
    pipeline = make()
    assert same(draw(pipeline, reference_image=images), draw(pipeline, reference_image=plain))


@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_normal_images_of_any_mode(make: Make, mode: str) -> None:
    images = [image.convert(mode) for image in request()["image"]]
    plain = [image.convert("RGB") for image in images]
    pipeline = make()
    assert same(draw(pipeline, image=images), draw(pipeline, image=plain))


def test_arguments_are_left_as_they_are(make: Make) -> None:
    arguments = request()
    before = [image.tobytes() for name in ("image", "mask_image") for image in arguments[name]]
    draw(make(), **arguments)
    after = [image.tobytes() for name in ("image", "mask_image") for image in arguments[name]]
    assert before == after


def test_a_pixel_of_mask_is_drawn_on_a_large_image(make: Make) -> None:
    size = (300, 200)
    normal, mask = noise_image(size, 1), Image.new("L", size)
    mask.putpixel((123, 45), 255)
    arguments = {name: value[:1] for name, value in request(1).items()}
    (image,) = draw(make(), **{**arguments, "image": [normal], "mask_image": [mask]})
    changed = (image != np.array(normal)).any(axis=-1)
    assert image.shape == (200, 300, 3)
    assert changed.sum() <= 1
    assert not changed[np.array(mask) == 0].any()


@pytest.mark.parametrize("mode", ["queries", "pooled"])
def test_a_pipeline_survives_its_folder(
    make: Make, base: BaseModels, tmp_path: Path, mode: str
) -> None:
    torch.manual_seed(3)
    adapter = SemanticAdapter.from_unet(base.unet, 64, mode=mode)
    pipeline = make(adapter, csm=CsmConfig(mode=mode), resolution=48)
    pipeline.save_pretrained(tmp_path)
    assert not list(tmp_path.rglob("*.bin"))
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["adapter"] == ["acontrol.method.sga", "SemanticAdapter"]
    back = AnomalyControlPipeline.from_pretrained(tmp_path)
    back.set_progress_bar_config(disable=True)
    assert back.card == pipeline.card
    assert same(draw(back, seed=4), draw(pipeline, seed=4))


def short(name: str) -> dict[str, Any]:
    return {name: request()[name][:2]}


def with_second(name: str, value: Image.Image) -> dict[str, Any]:
    values = request()[name]
    return {name: [values[0], value, values[2]]}


def generators(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(number) for number in range(count)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask_image": None}, "image and mask_image go together"),
        ({"image": None}, "image and mask_image go together"),
        (short("reference_image"), "need a list of 3 reference_image"),
        (short("reference_mask"), "need a list of 3 reference_mask"),
        (short("reference_phrase"), "need a list of 3 reference_phrase"),
        (short("image"), "need a list of 3 image"),
        (short("mask_image"), "need a list of 3 mask_image"),
        ({"reference_phrase": "pit"}, "need a list of 3 reference_phrase"),
        ({"prompt": "pit"}, "need a list of 3 prompt"),
        # Diffusers takes one generator for all three images, and ignores a fourth.
        ({"generator": generators(1)}, "need a list of 3 generator"),
        ({"generator": generators(2)}, "need a list of 3 generator"),
        ({"generator": generators(4)}, "need a list of 3 generator"),
        (
            with_second("reference_mask", ellipse((51, 30))),
            r"an image of \(50, 30\) has a mask of \(51, 30\)",
        ),
        (
            with_second("mask_image", ellipse((50, 90))),
            r"an image of \(90, 50\) has a mask of \(50, 90\)",
        ),
        (with_second("reference_mask", Image.new("L", (50, 30))), "mask is empty"),
        (with_second("mask_image", Image.new("1", (90, 50))), "mask is empty"),
        # An opaque alpha channel is not a mask.
        (
            with_second("mask_image", Image.new("RGBA", (90, 50), (0, 0, 0, 255))),
            "mask is empty",
        ),
        ({"reference_phrase": ["a crack", "", "hole"]}, "gives no token"),
        ({"semantic_scale": -0.5}, "semantic_scale"),
        ({"num_inference_steps": 501}, "must be 1 to 500, got 501"),
    ],
)
def test_bad_arguments_are_refused(make: Make, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw(make(), **changes)


def test_sixteen_bits_are_read_as_eight_are(make: Make) -> None:
    def deep(image: Image.Image) -> Image.Image:
        return Image.fromarray(np.asarray(image, np.uint16) * np.uint16(257))

    pipeline, names = make(), ("image", "reference_image")
    grey = {name: [image.convert("L") for image in request()[name]] for name in names}
    wide = {name: [deep(image) for image in images] for name, images in grey.items()}
    assert same(draw(pipeline, **grey), draw(pipeline, **wide))


def test_a_mask_of_classes_is_refused_by_name(make: Make) -> None:
    mask = ellipse((50, 30))
    mask.putpixel((0, 0), 128)
    with pytest.raises(ValueError, match=r"reference_mask 1: .* 3 grey values"):
        draw(make(), **with_second("reference_mask", mask))

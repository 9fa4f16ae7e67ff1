import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionInpaintPipeline, StableDiffusionPipeline
from PIL import Image, ImageDraw
from scipy import ndimage

import acontrol
from acontrol.config import (
    AdapterCard,
    AseaConfig,
    BaseConfig,
    DataConfig,
    DropoutConfig,
    RunConfig,
)
from acontrol.data.features import FeatureBatch
from acontrol.data.stream import Batch
from acontrol.errors import UserError
from acontrol.interop.begin import load_init
from acontrol.interop.install import image_embeds
from acontrol.method.diffusion import draw
from acontrol.method.model import AnomalyControl
from acontrol.method.sga import SemanticAdapter
from acontrol.networks.inpainting import concat_inpainting_inputs, is_inpainting, mask_out
from acontrol.networks.load import BaseModels, load_base
from acontrol.networks.locate import digest
from acontrol.pipelines.anomaly_control import AnomalyControlPipeline
from acontrol.pipelines.loading import load_pipeline
from tests.networks.nine_channels import write_inpainting_base

MakeCard = Callable[..., AdapterCard]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inpainting_base(tmp_path_factory.mktemp("nine") / "base")


@pytest.fixture
def nine(folder: Path) -> BaseModels:
    """A tiny base of nine channels, this test's own."""
    return load_base(BaseConfig(path=str(folder)))


@pytest.fixture
def nine_adapter(nine: BaseModels, card: MakeCard) -> SemanticAdapter:
    torch.manual_seed(5)
    entries = card(inpainting=True).model_dump(mode="json")
    made = SemanticAdapter.from_unet(nine.unet, 64, card=entries)
    torch.nn.init.normal_(made.proj.weight, std=0.3)
    return made


@pytest.fixture
def pipeline(nine: BaseModels, nine_adapter: SemanticAdapter) -> AnomalyControlPipeline:
    made = AnomalyControlPipeline.from_base(nine, nine_adapter)
    made.set_progress_bar_config(disable=True)
    return made


def noise_image(seed: int) -> Image.Image:
    levels = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    return Image.fromarray(levels)


def square(left: int, top: int, right: int, bottom: int) -> Image.Image:
    mask = Image.new("1", (64, 64))
    ImageDraw.Draw(mask).rectangle((left, top, right - 1, bottom - 1), fill=1)
    return mask


REQUEST: dict[str, Any] = {
    "prompt": ["a wood with a crack"],
    "reference_image": [noise_image(1)],
    "reference_mask": [square(10, 12, 40, 31)],
    "reference_phrase": ["a crack"],
}
# On the latents' own grid of four pixels, so that all ways of shrinking it agree.
PLACE = {"image": [noise_image(2)], "mask_image": [square(16, 8, 40, 36)]}


def pixels(pipe: AnomalyControlPipeline, **changes: Any) -> np.ndarray:
    settings = {
        "num_inference_steps": 3,
        "generator": [torch.Generator().manual_seed(7)],
        **REQUEST,
        **PLACE,
        **changes,
    }
    return np.asarray(pipe(**settings).images[0])


def test_the_kind_is_read_from_the_unet(nine: BaseModels, tiny_base: BaseModels) -> None:
    assert is_inpainting(nine.unet)
    assert not is_inpainting(tiny_base.unet)


def test_a_unet_of_another_kind_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "base")
    config = tmp_path / "base" / "unet" / "config.json"
    config.write_text(config.read_text().replace('"in_channels": 9', '"in_channels": 5'))
    file = tmp_path / "base" / "unet" / "diffusion_pytorch_model.safetensors"
    from safetensors.torch import load_file, save_file

    weights = load_file(file)
    weights["conv_in.weight"] = weights["conv_in.weight"][:, :5].contiguous()
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(UserError, match="takes 5 channels; need 4, or 9 for inpainting"):
        load_base(BaseConfig(path=str(tmp_path / "base")))


def test_the_digest_knows_the_kind(folder: Path) -> None:
    # So precomputed features of the one are never read for the other.
    assert digest(BaseConfig(path=str(folder))) != digest(BaseConfig())


def test_the_masked_pixels_are_grey() -> None:
    image = torch.randn(2, 3, 4, 5)
    mask = torch.zeros(2, 1, 4, 5)
    mask[0, :, 1, 2] = 1
    result = mask_out(image, mask)
    assert (result[0, :, 1, 2] == 0).all()
    assert torch.equal(result[1], image[1])
    stacked = concat_inpainting_inputs(
        torch.ones(2, 4, 4, 5), mask, torch.full((2, 4, 4, 5), 2.0)
    )
    assert stacked.shape == (2, 9, 4, 5)
    assert torch.equal(stacked[:, 4:5], mask)


@pytest.fixture
def model(nine: BaseModels, nine_adapter: SemanticAdapter) -> AnomalyControl:
    config = RunConfig(
        seed=11,
        data=DataConfig(resolution=48),
        asea=AseaConfig(steps=1),
        dropout=DropoutConfig(text=0, semantic=0, both=0),
    )
    return AnomalyControl(nine, nine_adapter, config)


def test_training_sees_mask_and_surroundings(
    model: AnomalyControl, batch: Callable[..., Batch], monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = batch(3)
    seen: list[torch.Tensor] = []
    forward = model.unet.forward

    def spy(sample: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append(sample)
        return forward(sample, *args, **kwargs)

    monkeypatch.setattr(model.unet, "forward", spy)
    losses = model(samples)
    (sample,) = seen
    # Written out.
    drawn = draw(11, samples.positions, (4, 12, 12), 1000, moments=8)
    scale = model.vae.config.scaling_factor
    with torch.no_grad():
        whole = model.vae.encode(samples.image).latent_dist
        empty = model.vae.encode(samples.image * (samples.mask < 0.5)).latent_dist
    latents = (whole.mean + whole.std * drawn.posterior_noise[:, :4]) * scale
    around = (empty.mean + empty.std * drawn.posterior_noise[:, 4:]) * scale
    noisy = model.scheduler.add_noise(latents, drawn.noise, drawn.timesteps)
    touched = torch.nn.functional.max_pool2d(samples.mask, 4)
    torch.testing.assert_close(sample, torch.cat([noisy, touched, around], dim=1))
    assert set(touched.unique().tolist()) == {0.0, 1.0}
    # The loss is that of the noise on four channels, and reaches the adapter alone.
    losses.loss.backward()
    assert losses.per_sample.shape == (3,)
    assert {
        name for name, parameter in model.named_parameters() if parameter.grad is not None
    } == {"adapter.proj.weight"}


def test_precomputed_features_train_alike(
    model: AnomalyControl, batch: Callable[..., Batch]
) -> None:
    samples = batch(3)
    features = model.encoder(samples)
    assert features.latent_mean.shape == (3, 8, 12, 12)
    values = {
        field.name: getattr(features, field.name) for field in dataclasses.fields(features)
    }
    kept = FeatureBatch(**values, positions=samples.positions, keys=samples.keys)
    torch.testing.assert_close(model(kept).per_sample, model(samples).per_sample)


def test_a_plain_base_draws_as_before() -> None:
    # The second half of the moments' noise changes nothing of what others draw.
    one = draw(1, [5], (4, 6, 6), 1000)
    same = draw(1, [5], (4, 6, 6), 1000, moments=4)
    assert torch.equal(one.posterior_noise, same.posterior_noise)
    assert torch.equal(one.timesteps, same.timesteps)


def stock(base: BaseModels, kind: Any) -> Any:
    scheduler = DDIMScheduler.from_config(
        base.scheduler.config, clip_sample=False, set_alpha_to_one=False
    )
    pipe = kind(
        vae=base.vae,
        text_encoder=base.text_encoder,
        tokenizer=base.tokenizer,
        unet=base.unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_our_pixels_are_stock_inpaintings(
    folder: Path, pipeline: AnomalyControlPipeline
) -> None:
    drawn = pixels(pipeline, composite=False)
    pipe = stock(load_base(BaseConfig(path=str(folder))), StableDiffusionInpaintPipeline)
    acontrol.install(pipe, pipeline.adapter)
    tokens = pipeline.reference_tokens(
        REQUEST["reference_image"], REQUEST["reference_mask"], REQUEST["reference_phrase"]
    )
    image, mask = PLACE["image"][0], PLACE["mask_image"][0]
    # The latents of the masked image are drawn there, and are their mean here.
    levels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 127.5 - 1
    inside = torch.from_numpy(np.array(mask))[None, None]
    with torch.no_grad():
        around = pipeline.vae.encode(levels * ~inside).latent_dist.mean
    result = pipe(
        REQUEST["prompt"],
        image=image,
        mask_image=mask,
        masked_image_latents=around * pipeline.vae.config.scaling_factor,
        ip_adapter_image_embeds=image_embeds(pipeline.adapter, tokens),
        height=64,
        width=64,
        num_inference_steps=3,
        guidance_scale=7.5,
        generator=torch.Generator().manual_seed(7),
    ).images[0]
    assert np.abs(np.asarray(result).astype(int) - drawn).max() <= 1


def test_the_surroundings_are_seen_and_kept(pipeline: AnomalyControlPipeline) -> None:
    drawn = pixels(pipeline)
    where = np.asarray(PLACE["mask_image"][0])
    normal = np.asarray(PLACE["image"][0])
    assert np.array_equal(drawn[~where], normal[~where])
    elsewhere = pixels(pipeline, image=[noise_image(9)])
    assert not np.array_equal(elsewhere[where], drawn[where])
    # What is under the mask is not: but for the fade, nothing of the old may shine through.
    deep = ndimage.distance_transform_edt(where) >= 3
    covered = normal.copy()
    covered[where] = 255 - covered[where]
    again = pixels(pipeline, image=[Image.fromarray(covered)])
    assert np.array_equal(again[deep], drawn[deep])
    assert deep.any()


def test_without_an_image_all_is_drawn(pipeline: AnomalyControlPipeline) -> None:
    drawn = pixels(pipeline, image=None, mask_image=None)
    assert drawn.shape == (64, 64, 3)
    whole = {"image": [noise_image(4)], "mask_image": [square(0, 0, 64, 64)]}
    assert np.array_equal(drawn, pixels(pipeline, **whole))


def test_adapters_of_the_two_kinds_stay_apart(
    nine: BaseModels,
    base: BaseModels,
    nine_adapter: SemanticAdapter,
    adapter: SemanticAdapter,
    tmp_path: Path,
) -> None:
    with pytest.raises(ValueError, match="on a plain base and this is an inpainting one"):
        AnomalyControlPipeline.from_base(nine, adapter)
    with pytest.raises(ValueError, match="on an inpainting base and this is a plain one"):
        AnomalyControlPipeline.from_base(base, nine_adapter)
    with pytest.raises(ValueError, match="on an inpainting base and this is a plain one"):
        acontrol.install(stock(base, StableDiffusionPipeline), nine_adapter)
    adapter.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="on a plain base, and this run has an inpainting base"):
        load_init(nine_adapter, str(tmp_path))


def test_a_folder_of_the_other_kind_is_refused(
    folder: Path, adapter: SemanticAdapter, card: MakeCard, tmp_path: Path
) -> None:
    entries = card(base_digest=digest(BaseConfig())).model_dump(mode="json")
    adapter.register_to_config(card=entries)
    adapter.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="is not the one"):
        load_pipeline(str(tmp_path), base_path=str(folder))

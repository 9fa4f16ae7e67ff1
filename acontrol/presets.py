"""Named runs. A preset is a complete config; the command line changes single settings."""

from acontrol.config import (
    AseaConfig,
    BaseConfig,
    CheckpointConfig,
    CsmConfig,
    DataConfig,
    OptimConfig,
    RunConfig,
    RuntimeConfig,
    SamplesConfig,
)
from acontrol.errors import UserError, nearest

# Commits of the public checkpoints. The inpainting one has safetensors only in float16.
SD15 = BaseConfig(
    path="stable-diffusion-v1-5/stable-diffusion-v1-5",
    revision="451f4fe16113bff5a5d2269ed5ad43b0592e9a14",
    vlm_path="Salesforce/blip2-itm-vit-g",
    vlm_revision="520bf73fd0ef6ccce791cd3f06908040aef2d8cc",
)
SD15_INPAINTING = SD15.model_copy(
    update={
        "path": "stable-diffusion-v1-5/stable-diffusion-inpainting",
        "revision": "8a4288a76071f7280aedbdb3253bdb9e9d5d84bb",
        "variant": "fp16",
    }
)

TWO_PASSES = OptimConfig(accumulation=2)
BFLOAT16 = RuntimeConfig(precision="bfloat16")

PRESETS: dict[str, RunConfig] = {
    # The built-in base at 64 px: offline, on a laptop's CPU, in minutes. The reference shows
    # the magnified defect, since 8 x 8 patches see little of a small one, and the loss is
    # weighted: without, so small a U-Net does not follow C'. Nothing but the defect is read,
    # which selects better here than ASEA, whose best setting --asea.steps 5 turns on
    # (docs/results.md).
    "tiny": RunConfig(
        csm=CsmConfig(outside="grey"),
        asea=AseaConfig(steps=0, target="keys", step_size=0.3, stop_energy=0.05),
        data=DataConfig(resolution=64, reference_view="region"),
        base=BaseConfig(path="tiny"),
        optim=OptimConfig(
            steps=60, batch_size=8, learning_rate=2e-3, loss_weighting="late", mask_weight=8.0
        ),
        checkpoint=CheckpointConfig(every=5),
        samples=SamplesConfig(every=20, guidance_scale=4.0),
    ),
    # The paper: SD1.5 and BLIP-2, AdamW 1e-4 / 0.01 as IP-Adapter, 30K steps (Sec. 4.1).
    # Batch size and resolution are not stated; these are the authors' code's (8 x 2, 512 px).
    # In bfloat16 and two passes a step, a 24 GB card has room for it.
    "mvtec-sd15": RunConfig(base=SD15, optim=TWO_PASSES, runtime=BFLOAT16),
    # The same on the base of the authors' code: nine input channels, of which five are the
    # mask and the masked image.
    "mvtec-sd15-inpainting": RunConfig(
        base=SD15_INPAINTING, optim=TWO_PASSES, runtime=BFLOAT16
    ),
}


def preset(name: str) -> RunConfig:
    """The named run.

    Raises:
        UserError: If there is no such preset.
    """
    if name not in PRESETS:
        raise UserError(f"no preset {name!r}; {nearest(name, PRESETS)}")
    return PRESETS[name]

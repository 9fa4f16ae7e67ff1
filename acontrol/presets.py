"""Named runs. A preset is a whole config; the command line changes single settings."""

from acontrol.config import (
    BaseConfig,
    CheckpointConfig,
    DataConfig,
    OptimConfig,
    RunConfig,
    SamplesConfig,
    UserError,
)

PRESETS: dict[str, RunConfig] = {
    # The built-in base at 64 px: offline, on a laptop's CPU, in minutes. Its reference shows
    # the magnified defect, since 8 x 8 patches see little of a small one, and its loss is
    # weighted, without which so small a U-Net does not follow C' (docs/results.md).
    "tiny": RunConfig(
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
    "mvtec-sd15": RunConfig(
        base=BaseConfig(
            path="stable-diffusion-v1-5/stable-diffusion-v1-5",
            vlm_path="Salesforce/blip2-itm-vit-g",
        ),
    ),
}


def preset(name: str) -> RunConfig:
    """The named run.

    Raises:
        UserError: If there is no preset of this name.
    """
    if name not in PRESETS:
        raise UserError(f"unknown preset {name!r}; choose one of: {', '.join(PRESETS)}")
    return PRESETS[name]

"""How long does a training step take, compared with the public IP-Adapter trainer?

    python -m benchmarks.bench_step [--batch 16] [--rounds 11] [--device cpu] [--full-size]

    P0   all online: VAE, text encoder, BLIP-2 with ASEA in plain autograd; .item() a step
    P1   the same with latents, text and C' precomputed
    P1t  P1 without .item()

P0 to P1t are plain diffusers (its own IP-Adapter attention) and accelerate. Ours: online and on
precomputed features, and on features with DeepSpeed's engine. A step with
``runtime.skip_dropped`` takes as long, and stands for 1 / (1 - the dropped share) as many
samples. Weights, samples and noise are the same everywhere, and the losses are compared before
anything is timed. Writes benchmarks/results/DATE_step_HARDWARE.{json,md}.
"""

import argparse
import copy
import os
import socket
import statistics
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers.models.attention_processor import AttnProcessor2_0, IPAdapterAttnProcessor2_0
from torch import Tensor, nn

from acontrol.config import (
    BaseConfig,
    DataConfig,
    DropoutConfig,
    OptimConfig,
    RunConfig,
    RuntimeConfig,
    ZeroConfig,
)
from acontrol.data.features import NAMES, FeatureBatch, Features
from acontrol.data.stream import Batch
from acontrol.method.anomaly_map import region_on_grid
from acontrol.method.condition_dropout import chances, dropped_conditions
from acontrol.method.diffusion import draw
from acontrol.method.encoder import embed_text
from acontrol.method.model import AnomalyControl
from acontrol.method.sga import SemanticAdapter, cross_attention_layers
from acontrol.networks.compilation import Extent, compile_for_training
from acontrol.networks.load import BaseModels, load_base, quieten
from acontrol.train.engine import AdapterEngine
from benchmarks import naive_asea
from benchmarks.full_size import random_sd15
from benchmarks.report import interleaved, write_report


class IpAdapterTrainer:
    """One step as the public trainers take it: a list of layers, MSE, AdamW."""

    def __init__(self, base: BaseModels, adapter: SemanticAdapter, *, read_loss: bool):
        """Copy the U-Net, with diffusers' attention and the adapter's weights."""
        self.base, self.read_loss = base, read_loss
        self.unet = copy.deepcopy(base.unet)
        widths = dict(cross_attention_layers(self.unet))
        pairs = iter(adapter.matrices())
        processors: dict[str, nn.Module | AttnProcessor2_0] = {}
        for name in self.unet.attn_processors:
            if name not in widths:
                processors[name] = AttnProcessor2_0()
                continue
            processor = IPAdapterAttnProcessor2_0(
                widths[name], adapter.proj.in_features, num_tokens=(1,), scale=1.0
            )
            for linear, matrix in zip(
                (processor.to_k_ip[0], processor.to_v_ip[0]), next(pairs), strict=True
            ):
                linear.weight.data = matrix.detach().clone()
            processors[name] = processor.to(base.unet.device)
        self.unet.set_attn_processor(dict(processors))  # It empties its argument.
        self.layers = nn.ModuleList(
            layer for layer in processors.values() if isinstance(layer, nn.Module)
        ).requires_grad_(True)
        self.accelerator = Accelerator(cpu=base.unet.device.type == "cpu")
        optimizer = torch.optim.AdamW(self.layers.parameters(), lr=1e-4, weight_decay=0.01)
        self.optimizer = self.accelerator.prepare(optimizer)

    def __call__(
        self, latents: Tensor, noise: Tensor, timesteps: Tensor, text: Tensor, tokens: Tensor
    ) -> Tensor:
        """A whole step from latents, text and C'."""
        noisy = self.base.scheduler.add_noise(latents, noise, timesteps)
        dtype = self.unet.dtype
        with torch.autocast(latents.device.type, dtype, enabled=dtype != torch.float32):
            noise_pred = self.unet(
                noisy.to(dtype), timesteps, (text.to(dtype), [tokens])
            ).sample
        loss = F.mse_loss(noise_pred.float(), noise.float())
        self.accelerator.backward(loss)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.read_loss:
            self.accelerator.gather(loss).mean().item()
        return loss.detach()


class Bench:
    """One batch, and every way to take a step on it."""

    def __init__(self, base: BaseModels, batch: Batch, config: RunConfig, device: str):
        """Encode the batch once."""
        self.base, self.batch, self.config, self.device = base, batch, config, device
        torch.manual_seed(0)
        self.adapter = SemanticAdapter.from_unet(
            base.unet, base.vlm.config.qformer_config.hidden_size
        ).to(device)
        model = AnomalyControl(base, copy.deepcopy(self.adapter), config)
        self.features: Features = model.encoder(batch)
        self.model = model
        channels, factor = base.latent_shape
        side = config.data.resolution // factor
        self.drawn = draw(config.seed, batch.positions, (channels, side, side), 1000)
        chance = chances(config.seed, batch.positions)
        drop_text, drop_semantic = dropped_conditions(chance, config.dropout)
        self.drop_text, self.drop_semantic = drop_text.to(device), drop_semantic.to(device)
        self.empty = embed_text(base.text_encoder, base.tokenizer, [""])

    def unet_inputs(self, features: Features) -> tuple[Tensor, ...]:
        """Latents, noise, timesteps, text and C' of a step."""
        noise = self.drawn.posterior_noise.to(self.device)
        latents = (features.latent_mean + features.latent_std * noise).float()
        latents = latents * self.base.vae.config.scaling_factor
        text = torch.where(self.drop_text[:, None, None], self.empty, features.text)
        tokens = features.tokens * ~self.drop_semantic[:, None, None]
        steps = self.drawn.timesteps.to(self.device)
        return latents, self.drawn.noise.to(self.device), steps, text, tokens

    @torch.no_grad()
    def plainly(self) -> Features:
        """The frozen networks' part with ASEA as a plain autograd loop."""
        encoder, batch = self.model.encoder, self.batch
        image = batch.image.to(self.base.vae.device, self.base.vae.dtype)
        posterior = self.base.vae.encode(image).latent_dist
        text = embed_text(self.base.text_encoder, self.base.tokenizer, batch.caption)
        visual = encoder.semantics.embed_image(batch.reference_image)
        words = encoder.semantics.read(batch.reference_phrase)
        region = region_on_grid(batch.reference_mask.to(self.device), encoder.semantics.grid)
        vlm, asea = self.plain_vlm, self.config.asea
        embedding, energies = naive_asea.guide(
            lambda moved: naive_asea.attend(vlm, moved, words)[1], visual, region, asea
        )
        tokens, _ = naive_asea.attend(vlm, embedding, words)
        return Features(
            posterior.mean,
            posterior.std,
            self.features.latent_mask,
            text,
            tokens,
            energies[:, 0],
            energies[:, -1],
        )

    @property
    def plain_vlm(self) -> nn.Module:
        """A copy, since recording attention slows a Q-Former down for good."""
        if not hasattr(self, "_plain_vlm"):
            self._plain_vlm = copy.deepcopy(self.base.vlm)
        return self._plain_vlm

    def ours(
        self,
        *,
        features: bool,
        engine: bool = False,
        extent: Extent | None = None,
    ) -> Callable[[], Any]:
        """A step of this library, its U-Net compiled if ``extent`` says so.

        Raises:
            RuntimeError: If it does not compile.
        """
        adapter = copy.deepcopy(self.adapter)
        model = AnomalyControl(self.base, adapter, self.config)
        if extent is not None:
            backend = "inductor" if self.device == "cuda" else "aot_eager"
            reason = compile_for_training(model, extent, len(self.batch.keys), backend)
            if reason is not None:
                raise RuntimeError(reason)
        batch: Batch | FeatureBatch = self.batch
        if features:
            values = {name: getattr(self.features, name) for name in NAMES}
            batch = FeatureBatch(**values, positions=self.batch.positions, keys=self.batch.keys)
        if engine:
            deepspeed = AdapterEngine(adapter, self.config, None)

            def step() -> Tensor:
                loss = model(batch, deepspeed.project).loss
                deepspeed.backward(loss, last=True)
                deepspeed.mean([loss.detach()])
                deepspeed.step()
                return loss.detach()

            return step
        optimizer = torch.optim.AdamW(adapter.parameters(), lr=1e-4, weight_decay=0.01)

        def bare() -> Tensor:
            loss = model(batch).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            return loss.detach()

        return bare

    def cases(self) -> dict[str, Callable[[], Any]]:
        """Every row by name."""
        online, reading, timed = (
            IpAdapterTrainer(self.base, self.adapter, read_loss=read)
            for read in (True, True, False)
        )
        inputs = self.unet_inputs(self.features)
        return {
            "P0": lambda: online(*self.unet_inputs(self.plainly())),
            "P1": lambda: reading(*inputs),
            "P1t": lambda: timed(*inputs),
            "ours, online": self.ours(features=False),
            "ours, features": self.ours(features=True),
            "ours, features, DeepSpeed": self.ours(features=True, engine=True),
        }


def random_batch(count: int, resolution: int, reference_px: int) -> Batch:
    """Noise in the shape of samples: the content does not change the time."""
    generator = torch.Generator().manual_seed(0)

    def image(side: int) -> Tensor:
        return torch.rand(count, 3, side, side, generator=generator) * 2 - 1

    def mask(side: int) -> Tensor:
        covered = torch.zeros(count, 1, side, side)
        covered[:, :, side // 4 : side // 2, side // 4 : side // 2] = 1
        return covered

    return Batch(
        image=image(resolution),
        mask=mask(resolution),
        caption=["a photo of wood with a crack"] * count,
        reference_image=image(reference_px),
        reference_mask=mask(reference_px),
        reference_phrase=["a crack"] * count,
        positions=list(range(count)),
        keys=["" for _ in range(count)],
    )


def join_alone() -> None:
    """Join a process group of one, which DeepSpeed needs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    values = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "LOCAL_SIZE": 1}
    os.environ |= {name: str(value) for name, value in values.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    torch.distributed.init_process_group(backend, rank=0, world_size=1)


def main() -> None:
    """Compare the losses of all ways, then time them in turn."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument(
        "--full-size", action="store_true", help="SD1.5, BLIP-2, random weights"
    )
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    quieten()
    torch.set_num_threads(arguments.threads)
    join_alone()
    device, dtype = arguments.device, getattr(torch, arguments.dtype)
    resolution, reference_px = (512, 224) if arguments.full_size else (64, 64)
    base = (
        random_sd15(device, dtype)
        if arguments.full_size
        else load_base(BaseConfig(), device, dtype)
    )
    config = RunConfig(
        data=DataConfig(resolution=resolution),
        optim=OptimConfig(batch_size=arguments.batch),
        runtime=RuntimeConfig(precision=arguments.dtype),
        zero=ZeroConfig(stage=1),
        dropout=DropoutConfig(),
    )
    batch = random_batch(arguments.batch, resolution, reference_px)
    bench = Bench(base, batch, config, device)
    cases = bench.cases()
    losses = {name: float(step()) for name, step in cases.items()}
    print({name: round(value, 6) for name, value in losses.items()})
    times = interleaved(cases, arguments.rounds, device)
    median_s = {name: statistics.median(seconds) for name, seconds in times.items()}
    rows = [
        {
            "step": name,
            "loss": round(losses[name], 5),
            "median_ms": round(1000 * value, 1),
            "samples_per_s": round(arguments.batch / value, 1),
            "of P0": round(value / median_s["P0"], 3),
            "of P1t": round(value / median_s["P1t"], 3),
            "of own online": round(value / median_s["ours, online"], 3),
        }
        for name, value in median_s.items()
    ]
    write_report("step", rows, vars(arguments), __doc__.splitlines()[0])


if __name__ == "__main__":
    main()

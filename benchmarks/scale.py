"""What 8 and 64 GPUs would do, by arithmetic: predictions, nothing here is measured.

    python -m benchmarks.scale [--images-per-s 160]

Prints the tables of docs/scale.md. Sizes are exact, from the real shapes; the speeds of a GPU
and of the links are assumed, as in their data sheets or less.
"""

import argparse
from collections.abc import Iterator

from acontrol.method.sga import cross_attention_layers
from acontrol.networks.shapes import shapes_of
from acontrol.presets import SD15
from acontrol.train.dry_run import adapter_bytes

GPUS_A_NODE = 8
# Bytes a second that a ring reaches, assumed: within a node for each GPU, between nodes for
# each node.
NVLINK = 100e9
BETWEEN = {"100 Gbit/s": 12.5e9, "10 Gbit/s": 1.25e9}


def sizes() -> dict[str, int]:
    """Bytes of what travels and of what is kept, at the real shapes in bfloat16."""
    shapes = shapes_of(SD15.path, SD15.vlm_path or "")
    assert shapes is not None
    width, queries = 768, 32
    trainable = 2 * width * sum(inner for _, inner in cross_attention_layers(shapes.unet))
    latents = 64 * 64
    return {
        "gradients": 2 * trainable,
        # Two moments of the VAE, the mask in float32, 77 tokens of text, C' in float32.
        "sample": 2 * (2 * 4 * latents)
        + 4 * latents
        + 2 * 77 * width
        + 4 * queries * width
        + 8,
        "checkpoint": 3 * 4 * trainable,
        "state, ZeRO 1, alone": adapter_bytes(trainable, 1, 1, 2),
        "state, ZeRO 1, of 64": adapter_bytes(trainable, 1, 64, 2),
    }


def ring_s(size: int, gpus: int, between: float) -> float:
    """Seconds of an all-reduce: rings within nodes, then one between them."""
    inside = min(gpus, GPUS_A_NODE)
    seconds = 2 * (inside - 1) / inside * size / NVLINK
    nodes = gpus // GPUS_A_NODE
    if nodes > 1:
        seconds += 2 * (nodes - 1) / nodes * size / between
    return seconds


def communication(per_s: float) -> Iterator[list[str]]:
    """Rows: how much longer a step gets if nothing of the exchange is hidden."""
    size = sizes()["gradients"]
    for batch in (64, 8):
        step = batch / per_s
        for gpus, link in ((8, "NVLink"), (64, "100 Gbit/s"), (64, "10 Gbit/s")):
            seconds = ring_s(size, gpus, BETWEEN.get(link, 1))
            yield [
                str(gpus),
                f"{batch}",
                link,
                f"{1000 * step:.0f} ms",
                f"{1000 * seconds:.1f} ms",
                f"{step / (step + seconds):.3f}",
            ]


def loading(per_s: float) -> Iterator[list[str]]:
    """Rows: what the loaders read, and what storage sees at most."""
    size = sizes()["sample"]
    for gpus in (1, 8, 64):
        rate = gpus * per_s
        yield [
            str(gpus),
            f"{rate:.0f}",
            f"{rate * size / 1e6:.0f} MB/s",
            f"{240_000 / rate / 60:.1f} min",
        ]


def table(columns: list[str], rows: Iterator[list[str]]) -> str:
    """Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Print both tables and the sizes behind them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images-per-s", type=float, default=160.0)
    per_s = parser.parse_args().images_per_s
    for name, size in sizes().items():
        print(f"{name}: {size / 1e6:.2f} MB")
    head = ["GPUs", "batch / GPU", "slowest link", "step", "exchange", "efficiency, predicted"]
    print(f"\n{table(head, communication(per_s))}")
    head = ["GPUs", "samples/s", "features read", "240,000 samples"]
    print(f"\n{table(head, loading(per_s))}")


if __name__ == "__main__":
    main()

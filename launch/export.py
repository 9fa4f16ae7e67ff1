"""Write an adapter as a file in IP-Adapter's format, for stock diffusers.

    python -m launch.export MODEL --out FILE.safetensors

MODEL is a run's output folder or an adapter's. Any Stable Diffusion 1.5 pipeline takes the
file with load_ip_adapter, and C' as ip_adapter_image_embeds (docs/interop.md). An adapter of
csm.mode queries has no such file; a pipeline takes it with acontrol.install.
"""

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from acontrol.config import Settings
from acontrol.errors import UserError
from launch.entry import main
from launch.options import parse

PROG = "python -m launch.export"


class ExportCommand(Settings):
    """Settings of launch.export."""

    model: str = Field(description="A run's output folder, or an adapter's.")
    out: Path | None = Field(None, description="File to write; ends in .safetensors.")


def run(args: Sequence[str], prog: str = PROG) -> None:
    """Export the adapter."""
    command = parse(
        ExportCommand, args, prog=prog, description=__doc__, positional={"model": "MODEL"}
    )
    if command.out is None:
        raise UserError("--out FILE.safetensors is needed: the file to write")
    from acontrol.interop.ip_adapter import export
    from acontrol.pipelines.loading import load_adapter

    if (command.out.parent / "config.json").is_file():
        raise UserError(
            f"--out {command.out}: lies beside a model; name a place outside of its folder"
        )
    adapter, _, _ = load_adapter(command.model)
    command.out.parent.mkdir(parents=True, exist_ok=True)
    export(adapter, command.out)
    print(f"IP-Adapter file: {command.out}")


if __name__ == "__main__":
    main(run)

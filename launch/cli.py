"""Realistic, labelled defects from a handful of examples.

    acontrol COMMAND ...           acontrol COMMAND --help

{commands}

Each is also python -m launch.COMMAND (search: python -m tune.search).
"""

import importlib
import sys
from collections.abc import Sequence
from typing import NoReturn

from acontrol._version import __version__
from acontrol.errors import UserError, nearest
from launch import entry

# In the order of a user's work: a module with run(args, prog), and what it does.
COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("launch.demo", "show the whole chain on built-in data, offline, in minutes"),
    "import": ("launch.import", "import labelme, COCO, VOC, VisA or LOCO annotations"),
    "inspect": ("launch.inspect", "show what a data set holds, and what may be wrong with it"),
    "split": ("launch.split", "write which images train and which test"),
    "shard": ("launch.shard", "write labelled images as WebDataset shards"),
    "precompute": ("launch.precompute", "run the frozen networks once, ahead of training"),
    "train": ("launch.train", "train an adapter on Ray; the same command resumes"),
    "search": ("tune.search", "search settings with Ray Tune"),
    "fit": ("launch.fit", "fit a rival method to the training defects: a LoRA, anodiff"),
    "masks": ("launch.masks", "learn masks for where defects go"),
    "generate": ("launch.generate", "generate labelled defect images"),
    "studio": ("launch.studio", "draw on a page: paint where, pick a reference, keep"),
    "evaluate": ("launch.evaluate", "measure generated images, and whether they help"),
    "improve": ("launch.improve", "draw what a detector misses, in rounds"),
    "register": ("launch.register", "register an adapter in MLflow"),
    "promote": ("launch.promote", "make the candidate the champion, if it is better"),
    "pull": ("launch.pull", "fetch a registered adapter"),
    "export": ("launch.export", "write an IP-Adapter file for stock diffusers"),
    "pretrain": ("launch.pretrain", "train a small base model, from scratch or another"),
}


def run(args: Sequence[str]) -> None:
    """Run the command that the first argument names.

    Raises:
        UserError: If there is no such command.
    """
    name = args[0] if args else "--help"
    if name in ("-h", "--help"):
        lines = [f"    {command:<12}{line}" for command, (_, line) in COMMANDS.items()]
        print((__doc__ or "").format(commands="\n".join(lines)).rstrip())
        sys.exit(0)
    if name == "--version":
        print(f"acontrol {__version__}")
        sys.exit(0)
    if name not in COMMANDS:
        raise UserError(f"no command {name!r}; {nearest(name, COMMANDS)}")
    module, _ = COMMANDS[name]
    importlib.import_module(module).run(args[1:], prog=f"acontrol {name}")


def main() -> NoReturn:
    """The ``acontrol`` script."""
    entry.main(run)


if __name__ == "__main__":
    main()

"""Show what a data set holds, and what may not be as it was meant.

    python -m launch.inspect ROOT [--out PAGE.html] [--split-file FILE] [--captions FILE]

ROOT holds categories in MVTec AD's layout, or is one. Counts, kinds of file, areas and widths
of masks; images that cannot be used and why; small and large ones; photographs of
one piece; what is not read. Nothing stops it, and only the page is written.
"""

from collections.abc import Sequence

from acontrol.data.settings import InspectConfig
from acontrol.errors import UserError
from acontrol.progress import tracked
from acontrol.runs import storage
from launch.entry import main
from launch.options import parse

PROG = "python -m launch.inspect"


def run(args: Sequence[str], prog: str = PROG) -> None:
    """Look at every image, and report."""
    positional = {"root": "ROOT"}
    config = parse(InspectConfig, args, prog=prog, description=__doc__, positional=positional)
    from acontrol import inspection
    from acontrol.data.mvtec import open_folder
    from acontrol.reporting import PAGE

    if config.out is not None and config.out.is_dir():
        raise UserError(
            f"--out {config.out}: is a folder; name a file, as {config.out}/page.html"
        )
    if config.out is not None and config.out.exists():
        with config.out.open("rb") as file:
            if not file.read(len(PAGE)).startswith(PAGE.encode()):
                raise UserError(f"--out {config.out}: exists and is no page of ours")
    folder = open_folder(config.root, config.captions, config.split_file)
    categories, beside = inspection.inspect(folder, tracked)
    print(inspection.as_text(categories, beside))
    if config.out is not None:
        text = inspection.as_page(folder.root, categories, beside)
        storage.write(config.out, text.encode())
        print(f"Look at {config.out}")


if __name__ == "__main__":
    main(run)

"""Serve a page to draw on: pick a good image, paint where, pick a reference, keep what is good.

    python -m launch.studio --model MODEL --data ROOT --out KEPT [--port N]

Opens http://127.0.0.1:8090. What is accepted becomes a data set in MVTec AD's layout in KEPT,
which acontrol generate --replay KEPT draws again. The same command continues. --host with
another address needs the token in the link that is printed.
"""

import os
import socket
import tempfile
import webbrowser
from collections.abc import Sequence
from pathlib import Path

from acontrol.errors import UserError
from acontrol.studio.settings import LOOPBACK, StudioConfig
from launch.entry import loading, main
from launch.options import parse

PROG = "python -m launch.studio"


def run(args: Sequence[str], prog: str = PROG) -> None:
    """Check the settings, load the model, and serve until interrupted."""
    config = parse(StudioConfig, args, prog=prog, description=__doc__)
    from acontrol.data.mvtec import open_folder
    from acontrol.networks.locate import adapter_path

    open_folder(config.data, config.captions, split_file=config.split_file)
    if config.model.startswith("models:"):
        from acontrol.registry.pull import pull
        from acontrol.runs.server import server_uri

        with tempfile.TemporaryDirectory(prefix="acontrol-model-") as scratch:
            model = os.path.join(scratch, "adapter")
            pull(config.model, Path(model), server_uri(None))
            _serve(config, model)
        return
    if not adapter_path(config.model).is_dir():
        raise UserError(f"--model {config.model}: no such folder")
    _serve(config, config.model)


def _serve(config: StudioConfig, model: str) -> None:
    with loading():
        import uvicorn

        from acontrol.data.lock import only_launch
        from acontrol.data.overlap import refuse_overlap
        from acontrol.studio.keeping import HIDDEN, refuse_other
        from acontrol.studio.server import application, token_of
        from acontrol.studio.studio import Studio
    taken = socket.socket(socket.AF_INET6 if ":" in config.host else socket.AF_INET)
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        taken.bind((config.host, config.port))
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"--host {config.host} --port {config.port}: {reason}; name another --port"
        ) from error
    out = config.out.expanduser().resolve()
    refuse_overlap(out, "--out", {"--data": config.data})
    refuse_other(out)
    with only_launch(out / HIDDEN):
        studio = Studio(config, model)
        token = token_of(config)
        studio.start()
        taken.listen()  # Before anybody reads the address.
        host = f"[{config.host}]" if ":" in config.host else config.host
        address = f"http://{host}:{taken.getsockname()[1]}/"
        if token is not None:
            address += f"?token={token}"
        print(f"Draw at {address}\nKeeping in {studio.kept.out}; Ctrl-C ends", flush=True)
        if config.open and config.host in LOOPBACK:
            webbrowser.open(address)
        settings = uvicorn.Config(
            application(studio, token), log_level="warning", access_log=False, ws="none"
        )
        uvicorn.Server(settings).run(sockets=[taken])


if __name__ == "__main__":
    main(run)

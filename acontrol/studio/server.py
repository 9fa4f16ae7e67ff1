"""The server: pictures by name and number, the page, and its life."""

import signal
from typing import Any

from nicegui import app, ui
from starlette.responses import PlainTextResponse, Response

from acontrol.data.lock import only_launch
from acontrol.errors import UserError
from acontrol.studio import library
from acontrol.studio.access import TokenGate
from acontrol.studio.page import add_page
from acontrol.studio.settings import StudioConfig
from acontrol.studio.workbench import Studio


def add_pictures(studio: Studio) -> None:
    """The addresses of pictures."""

    def answer(make: Any) -> Response:
        try:
            content = make()
        except UserError as error:
            return PlainTextResponse(f"{error}\n", 404)
        return Response(content, media_type="image/png")

    lib = studio.library

    @app.get("/picture/normal/{category}/{number}")
    def normal(category: str, number: int) -> Response:
        return answer(lambda: library.png(lib.normal(category, number)))

    @app.get("/picture/upload/{name}")
    def upload(name: str) -> Response:
        return answer(lambda: library.png(studio.uploaded(name)))

    @app.get("/thumbnail/normal/{category}/{number}")
    def normal_thumbnail(category: str, number: int) -> Response:
        return answer(lambda: library.thumbnail(lib.normal(category, number)))

    @app.get("/thumbnail/reference/{category}/{number}")
    def reference_thumbnail(category: str, number: int) -> Response:
        def make() -> bytes:
            row = lib.reference(category, number)
            return library.thumbnail(row.image, row.mask)

        return answer(make)

    @app.get("/picture/drawing/{number}/{kind}")
    def drawing(number: int, kind: str) -> Response:
        return answer(lambda: studio.picture(studio.tickets.get(number), kind))


def serve(config: StudioConfig) -> None:
    """Serve the page until it is stopped.

    Raises:
        UserError: If a setting or the data must be fixed.
    """
    with only_launch(config.out):
        studio = Studio(config)
        add_pictures(studio)
        add_page(studio)
        if config.token is not None:
            app.add_middleware(TokenGate, token=config.token)
        studio.start()
        app.on_shutdown(studio.drawer.stop)
        end = f"/?token={config.token}" if config.token else ""
        where = f"http://{config.host}:{config.port}{end}"
        app.on_startup(lambda: print(f"Open {where}  (Ctrl-C ends)", flush=True))
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        ui.run(
            host=config.host,
            port=config.port,
            title="acontrol studio",
            show=config.show,
            reload=False,
            show_welcome_message=False,
        )

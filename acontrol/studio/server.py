"""The studio over HTTP: the page's files, pictures, and what its buttons ask."""

import functools
import importlib.resources
import json
import secrets
import shlex
from collections.abc import Callable
from typing import Any

from PIL import Image
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from acontrol import inspection
from acontrol._version import __version__
from acontrol.data.images import encode_png, read_image
from acontrol.errors import UserError
from acontrol.studio.access import Access
from acontrol.studio.runs import runs_of
from acontrol.studio.settings import LOOPBACK, MOST_AT_ONCE, MOST_BYTES, StudioConfig
from acontrol.studio.studio import EXPORTS, Studio
from acontrol.studio.understanding import understand

_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
_PAGE = ("index.html", "studio.css", "studio.js", "canvas.js")


def token_of(config: StudioConfig) -> str | None:
    """A new token, if others than this machine can connect."""
    return None if config.host in LOOPBACK else secrets.token_urlsafe(24)


def application(studio: Studio, token: str | None = None) -> Starlette:
    """The app that serves a studio."""

    async def page(request: Request) -> Response:
        name = request.path_params.get("name", "index.html")
        if name not in _PAGE:
            return JSONResponse({"error": "no such page"}, 404)
        file = importlib.resources.files("acontrol.studio").joinpath("page", name)
        return Response(file.read_bytes(), media_type=_TYPES[name.rpartition(".")[2]])

    def answer(work: Callable[[Request, bytes], Any]) -> Callable[[Request], Any]:
        """A route: its errors become one line, its work leaves the event loop free."""

        @functools.wraps(work)
        async def route(request: Request) -> Response:
            try:
                content = bytearray()
                async for part in request.stream():
                    content += part
                    if len(content) > MOST_BYTES:
                        raise UserError(f"over {MOST_BYTES // 2**20} MB; scale it down")
                result = await run_in_threadpool(work, request, bytes(content))
            except UserError as error:
                return JSONResponse({"error": str(error)}, 400)
            if isinstance(result, bytes):
                headers = {"Cache-Control": "no-cache"}
                return Response(result, media_type="image/png", headers=headers)
            return JSONResponse(result)

        return route

    def state(request: Request, _: bytes) -> Any:
        sampling = studio.planner.sampling
        card = studio.loaded.card
        assert card is not None
        return {
            "version": __version__,
            "model": str(studio.generation.model),
            "data": str(studio.planner.folder.root),
            "out": str(studio.kept.out),
            "categories": studio.planner.folder.categories,
            "defaults": {
                "steps": sampling.steps,
                "solver": sampling.solver,
                "detail": sampling.detail,
                "guidance_scale": sampling.guidance_scale,
                "scale": card.sga.scale,
                "asea_steps": card.asea.steps,
                "most": MOST_AT_ONCE,
            },
            "exports": EXPORTS,
        }

    def category(request: Request, _: bytes) -> Any:
        name = request.path_params["category"]
        return {
            "normals": studio.library.normals(name),
            "references": [
                {"key": image.key, "defect": image.defect, "phrase": image.phrase}
                for image in studio.library.references(name)
            ],
        }

    def thumbnail(request: Request, _: bytes) -> bytes:
        return studio.library.thumbnail(
            request.path_params["category"], request.path_params["name"]
        )

    def normal(request: Request, _: bytes) -> bytes:
        file = studio.library.normal(
            request.path_params["category"], request.path_params["name"]
        )
        return encode_png(Image.fromarray(read_image(file)))

    def reference(request: Request, _: bytes) -> bytes:
        return studio.library.reference_thumbnail(request.path_params["key"])

    def upload(request: Request, content: bytes) -> Any:
        return {"name": studio.library.upload(content)}

    def mask(request: Request, content: bytes) -> Any:
        return {"name": studio.library.upload(content, mask=True)}

    def suggest(request: Request, content: bytes) -> bytes:
        values = _values(content)
        names = ("category", "normal", "reference")
        category, normal, reference = (str(values.get(name, "")) for name in names)
        seed = values.get("seed", 0)
        if not isinstance(seed, int):
            raise UserError("seed: need a whole number")
        source = str(values.get("source", "real"))
        return studio.suggest(category, normal, reference, source, seed)

    def ask(request: Request, content: bytes) -> Any:
        return {"ids": studio.ask(request.scope["owner"], _values(content))}

    def drawings(request: Request, _: bytes) -> Any:
        own = studio.of_owner(request.scope["owner"])
        return {"drawings": own, "kept": studio.num_kept()}

    def picture(request: Request, _: bytes) -> bytes:
        near = "near" in request.query_params
        names = request.path_params["id"], request.path_params["kind"]
        return studio.picture(*names, whole=not near)

    def act(request: Request, _: bytes) -> Any:
        drawing = studio.act(request.path_params["id"], request.path_params["action"])
        return studio.describe(drawing)

    def kept(request: Request, _: bytes) -> Any:
        return studio.decided()

    def export(request: Request, _: bytes) -> Any:
        return {"folder": str(studio.export(request.path_params["form"]))}

    def explain(request: Request, _: bytes) -> Any:
        steps = request.query_params.get("steps", "0")
        if not steps.isdigit() or int(steps) > 50:
            raise UserError("steps: need a whole number from 0 to 50")
        image = studio.library.reference(request.query_params.get("reference", ""))
        return understand(studio.method.pipeline, image, int(steps))

    def health(request: Request, _: bytes) -> Any:
        return {"text": inspection.as_text(*inspection.inspect(studio.planner.folder))}

    def runs(request: Request, _: bytes) -> Any:
        out = studio.kept.out
        command = (
            f"acontrol studio --model MODEL --data {shlex.quote(str(studio.generation.data))} "
            f"--out {shlex.quote(str(out.with_name(f'{out.name}-other')))} --port 0"
        )
        try:
            return runs_of(studio.tracking) | {"command": command}
        except UserError as error:
            return {"message": str(error), "models": [], "runs": [], "command": command}

    get, post = ["GET"], ["POST"]
    routes = [
        Route("/", page, methods=get),
        Route("/page/{name}", page, methods=get),
        Route("/api/state", answer(state), methods=get),
        Route("/api/category/{category}", answer(category), methods=get),
        Route("/api/thumbnail/{category}/{name}", answer(thumbnail), methods=get),
        Route("/api/normal/{category}/{name}", answer(normal), methods=get),
        Route("/api/reference/{key:path}", answer(reference), methods=get),
        Route("/api/upload", answer(upload), methods=post),
        Route("/api/mask", answer(mask), methods=post),
        Route("/api/suggest", answer(suggest), methods=post),
        Route("/api/draw", answer(ask), methods=post),
        Route("/api/drawings", answer(drawings), methods=get),
        Route("/api/drawing/{id}/{kind}", answer(picture), methods=get),
        Route("/api/drawing/{id}/{action}", answer(act), methods=post),
        Route("/api/kept", answer(kept), methods=get),
        Route("/api/export/{form}", answer(export), methods=post),
        Route("/api/understand", answer(explain), methods=get),
        Route("/api/runs", answer(runs), methods=get),
        Route("/api/health", answer(health), methods=get),
    ]
    return Starlette(routes=routes, middleware=[Middleware(Access, token=token)])


def _values(content: bytes) -> dict[str, Any]:
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError("not JSON") from error
    if not isinstance(values, dict):
        raise UserError("need a JSON object")
    return values

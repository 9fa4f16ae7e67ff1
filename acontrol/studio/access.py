"""Who may use the page: this machine, or a browser that once gave the token."""

import hmac
import ipaddress

from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from acontrol.errors import UserError

COOKIE = "acontrol-studio"


def check_address(host: str, token: str | None) -> None:
    """Refuse an address that others reach without a token.

    Raises:
        UserError: If it is one.
    """
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = host == "localhost"
    if not local and token is None:
        raise UserError(
            f"--host {host}: others can reach it; give --token, which their browsers then need"
        )


class TokenGate:
    """Refuses requests without the token, web sockets too."""

    def __init__(self, app: ASGIApp, token: str):
        """Guard an application."""
        self.app, self.token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        request = Request({**scope, "type": "http", "method": scope.get("method", "GET")})
        if self._is(request.cookies.get(COOKIE)):
            await self.app(scope, receive, send)
            return
        answer: Response = PlainTextResponse("give the token: /?token=...\n", 403)
        if scope["type"] == "http" and self._is(request.query_params.get("token")):
            answer = RedirectResponse(request.url.path, 303)  # Not left in the address.
            answer.set_cookie(COOKIE, self.token, httponly=True, samesite="strict")
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})
            return
        await answer(scope, receive, send)

    def _is(self, given: str | None) -> bool:
        return given is not None and hmac.compare_digest(given.encode(), self.token.encode())

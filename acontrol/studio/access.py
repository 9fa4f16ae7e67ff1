"""Who may ask: this machine's own browser, or who has the token."""

import hmac
import secrets
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from acontrol.studio.settings import LOOPBACK, MOST_BYTES

OWNER, TOKEN = "studio_owner", "studio_token"
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)


class Access:
    """Refuses strangers, and names each browser by a cookie.

    Without a token only requests for this machine by its own name pass, so that no page on
    another site can ask in the user's name, by whatever name it reaches this address.
    """

    def __init__(self, app: ASGIApp, token: str | None):
        """Guard an app; without ``token`` for requests to loopback alone."""
        self.app, self.token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        cookies = _cookies(headers.get("cookie", ""))
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        refused = self._refusal(headers, cookies.get(TOKEN, ""), given, scope["method"])
        if refused is not None:
            await JSONResponse({"error": refused[1]}, refused[0])(scope, receive, send)
            return
        owner = cookies.get(OWNER, "")
        known = len(owner) == 32 and owner.isalnum()
        scope["owner"] = owner if known else secrets.token_hex(16)

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                sent = MutableHeaders(scope=message)
                sent["Content-Security-Policy"] = _POLICY
                sent["X-Content-Type-Options"] = "nosniff"
                sent["Referrer-Policy"] = "no-referrer"
                end = "Path=/; HttpOnly; SameSite=Strict"
                if not known:
                    cookie = f"{OWNER}={scope['owner']}; Max-Age=31536000; {end}"
                    sent.append("Set-Cookie", cookie)
                if self.token and given:
                    sent.append("Set-Cookie", f"{TOKEN}={self.token}; {end}")
            await send(message)

        await self.app(scope, receive, answer)

    def _refusal(
        self, headers: Headers, cookie: str, given: str, method: str
    ) -> tuple[int, str] | None:
        host = headers.get("host", "")
        if self.token is None:
            name = urlsplit(f"//{host}").hostname
            if name not in LOOPBACK:
                return 403, "this studio answers to 127.0.0.1 only"
        elif not any(
            hmac.compare_digest(self.token.encode(), text.encode()) for text in (cookie, given)
        ):
            return 401, "a token is needed: open the address that acontrol studio printed"
        origin = headers.get("origin")
        if method != "GET" and origin is not None and urlsplit(origin).netloc != host:
            return 403, "asked from a page of another site"
        length = headers.get("content-length", "0")
        if method != "GET" and not (length.isdigit() and int(length) <= MOST_BYTES):
            return 413, f"too large: at most {MOST_BYTES // 2**20} MB"
        return None


def _cookies(header: str) -> dict[str, str]:
    try:
        return {name: morsel.value for name, morsel in SimpleCookie(header).items()}
    except CookieError:
        return {}

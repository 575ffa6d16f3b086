"""Who may talk to the labelling page: this computer's browser, this page, with this token.

Other web pages that are open in the same browser can send requests to 127.0.0.1. Three things
keep them out. The `Host` must be our own address, or a name that was made to point here would do
(DNS rebinding). The `Origin`, where there is one, must be ours. And everything that holds data
asks for a token in a header, which no foreign page knows and no form can send.
"""

import secrets
from collections.abc import Iterable

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY = 2_000_000  # bytes; two answers and a prompt are far below

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Guard:
    """Refuses what doesn't come from the page itself, and sets the headers of every answer.

    Args:
        app: What is guarded.
        port: Where it listens, on 127.0.0.1.
        token: What requests below ``/api/`` must bring.
    """

    def __init__(self, app: ASGIApp, *, port: int, token: str) -> None:
        self._app = app
        self._hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            return  # there are no websockets here; the server closes the connection

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        refused = self._refusal(scope)
        if refused is None:
            await self._app(scope, receive, send_guarded)
        else:
            status, reason = refused
            await JSONResponse({"error": reason}, status)(scope, receive, send_guarded)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        headers = Headers(scope=scope)
        hosts, origins = headers.getlist("host"), headers.getlist("origin")
        if len(hosts) != 1 or hosts[0] not in self._hosts:
            return 421, "this is not the address of the labelling page"
        if any(origin != f"http://{hosts[0]}" for origin in origins):
            return 403, "another page may not talk to the labelling page"
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            return 403, "another page may not talk to the labelling page"
        if not scope["path"].startswith("/api/"):
            return None
        if not self._is_ours(headers.getlist("authorization")):
            return 401, "open the address that `mlx_dpo data label` has printed"
        if scope["method"] == "POST":
            return _refuse_body(headers)
        return None

    def _is_ours(self, found: Iterable[str]) -> bool:
        wanted = f"Bearer {self._token}".encode()
        given = [value.encode() for value in found]
        return len(given) == 1 and secrets.compare_digest(given[0], wanted)


def _refuse_body(headers: Headers) -> tuple[int, str] | None:
    if headers.get("content-type") != "application/json":
        return 415, "expected application/json"
    length = headers.get("content-length", "")
    if not (length.isascii() and length.isdigit()):
        return 411, "expected a Content-Length"
    return (413, "too long") if int(length) > MAX_BODY else None

"""The labelling page's server: on 127.0.0.1 and nowhere else, for one browser with a token.

Other web pages that are open in the same browser can send requests to 127.0.0.1. Three things
keep them out. The ``Host`` must be this server's own address, or a name that was made to point here
would pass (DNS rebinding). The ``Origin``, if there is one, must be this page's. And everything
that holds data asks for a token in a header, which no other page knows and no form can send.
"""

import re
import secrets
import socket
from collections.abc import Callable
from contextlib import suppress
from importlib import resources
from typing import Any, NamedTuple

import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlx_dpo.errors import DataError, DiskError, UsageError
from mlx_dpo.workshop.label.book import BAD, SKIP, TIE, Book
from mlx_dpo.workshop.label.connections import BACKLOG, Connection
from mlx_dpo.workshop.label.rendering import differences, render
from mlx_dpo.workshop.label.view import view

PAGE_FILES = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/draw.js": ("draw.js", "text/javascript; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types rendered",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_WITHOUT_PAIR = {TIE: "Tie.", BAD: "Both bad: no pair.", SKIP: "Skipped."}
_HALF = re.compile("[\ud800-\udfff]")  # of a surrogate pair: no text in UTF-8
MAX_BODY = 2_000_000  # bytes; two answers and a prompt are far below


class Session(NamedTuple):
    """What the page shows beside the book, the same from begin to end."""

    command: str  # starts the same again; shown when the program gives no answer
    next_commands: tuple[str, ...] = ()  # shown at the end, if there are pairs
    next_note: str = ""  # below them: what to add to them
    guidelines: str = ""  # Markdown


def serve(book: Book, session: Session, *, port: int, announce: Callable[[str], None]) -> None:
    """Serve until Ctrl-C.

    Args:
        book: The tasks and decisions.
        session: What else the page shows.
        port: 0 for any that is free.
        announce: Called with the page's address, token included, when it can be opened.

    Raises:
        UsageError: If the port is taken.
    """
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError as error:
            raise UsageError(f"--port {port}: {error.strerror}; 0 takes a free one") from None
        listener.listen()
        port = listener.getsockname()[1]
        token = secrets.token_urlsafe(24)
        server = make_server(book, session, port=port, token=token)
        with suppress(KeyboardInterrupt):  # uvicorn shuts down first, then raises it again
            # The part after # never leaves the browser: not in a request, a log or a Referer.
            announce(f"http://127.0.0.1:{port}/#{token}")
            server.run(sockets=[listener])


def make_server(book: Book, session: Session, *, port: int, token: str) -> uvicorn.Server:
    """The server, not yet running. No handler waits for anything, so the book needs no lock."""
    constant = {**session._asdict(), "guidelines": render(session.guidelines)}
    if not session.guidelines.strip():
        constant["guidelines"] = ""

    async def state(request: Request) -> Response:
        return JSONResponse({**view(book), **constant})

    routes = [Route(path, _page_file(*file)) for path, file in PAGE_FILES.items()]
    routes.append(Route("/api/state", state))
    routes.append(Route("/api/show", _show, methods=["POST"]))
    for name, act in {"label": _label, "write": _write, "undo": _undo}.items():
        routes.append(Route(f"/api/{name}", _action(book, act), methods=["POST"]))
    config = uvicorn.Config(
        Guard(Starlette(routes=routes), port=port, token=token),
        http=Connection,
        backlog=BACKLOG,
        log_level="error",  # a request that is no HTTP is not the person's concern
        access_log=False,
        lifespan="off",
        ws="none",
        server_header=False,
        timeout_graceful_shutdown=2,
    )
    return uvicorn.Server(config)


class Guard:
    """Refuses requests that don't come from the page itself, and sets the headers of every reply.

    Args:
        app: The guarded application.
        port: Its port on 127.0.0.1.
        token: Required of requests below ``/api/``.
    """

    def __init__(self, app: ASGIApp, *, port: int, token: str) -> None:
        self._app = app
        self._hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}
        self._bearer = f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            return  # there are no websockets here; the server closes the connection

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        refusal = self._refusal(scope)
        if refusal is None:
            await self._app(scope, receive, send_guarded)
        else:
            status, reason = refusal
            await JSONResponse({"error": reason}, status)(scope, receive, send_guarded)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        """Status and reason; None if the request may pass."""
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
        bearers = [value.encode() for value in headers.getlist("authorization")]
        if len(bearers) != 1 or not secrets.compare_digest(bearers[0], self._bearer):
            return 401, "open the address that `mlx_dpo data label` has printed"
        return _body_refusal(headers) if scope["method"] == "POST" else None


def _body_refusal(headers: Headers) -> tuple[int, str] | None:
    if headers.get("content-type") != "application/json":
        return 415, "expected application/json"
    length = headers.get("content-length", "")
    if not (length.isascii() and length.isdigit()) or "transfer-encoding" in headers:
        return 411, "expected a Content-Length"
    return (413, "too long") if len(length) > 20 or int(length) > MAX_BODY else None


def _page_file(name: str, media_type: str) -> Any:
    content = resources.files(__package__).joinpath("page", name).read_bytes()

    async def respond(request: Request) -> Response:
        return Response(content, media_type=media_type)

    return respond


def _action(book: Book, act: Callable[[Book, dict[str, Any]], str]) -> Any:
    """An endpoint that changes the book, unless the page has missed a change."""

    async def respond(request: Request) -> Response:
        body = await _body(request)
        if body is None:
            return JSONResponse({"error": "expected a JSON object"}, 400)
        if body.get("revision") != book.revision:
            error = "the page was out of date and has been renewed; nothing was written"
            return JSONResponse({**view(book), "error": error}, 409)
        try:
            saved = act(book, body)
        except DataError as error:
            return JSONResponse({"error": str(error)}, 422)
        except DiskError as error:
            if book.revision == body["revision"]:
                return JSONResponse({"error": str(error)}, 507)
            return JSONResponse({**view(book), "error": str(error)}, 409)  # the decision counts
        return JSONResponse({**view(book), "saved": saved})

    return respond


async def _body(request: Request) -> dict[str, Any] | None:
    try:
        body = await request.json()
    except (ValueError, RecursionError, ClientDisconnect):
        return None  # ValueError: no JSON, no UTF-8, or a number of thousands of digits
    return body if isinstance(body, dict) else None


async def _show(request: Request) -> Response:
    """Two answers as they read now: as HTML, and in pieces that are equal or different."""
    body = await _body(request) or {}
    a, b = body.get("a"), body.get("b")
    if not (isinstance(a, str) and isinstance(b, str)) or _HALF.search(a + b):
        return JSONResponse({"error": "expected two texts, a and b"}, 400)
    of_a, of_b = differences(a, b)
    return JSONResponse(
        {"html": {"a": render(a), "b": render(b)}, "pieces": {"a": of_a, "b": of_b}}
    )


def _label(book: Book, body: dict[str, Any]) -> str:
    """A verdict on the task shown: a, b, tie, bad or skip; with the answers as edited."""
    task = book.next_task()
    verdict = str(body.get("verdict"))
    if task is None or body.get("task") != task.id:
        raise DataError("that is not the task at hand")
    if verdict in _WITHOUT_PAIR:
        book.add(verdict, task)
        return _WITHOUT_PAIR[verdict]
    if verdict not in ("a", "b"):
        raise DataError("a verdict is a, b, tie, bad or skip")
    other = "b" if verdict == "a" else "a"
    pair = task.as_pair(body.get(verdict, ""), body.get(other, ""))
    book.add_pair(pair, task=task.id, shown=verdict)
    if not task.is_choice:
        return "Saved: your answers."
    return f"Saved: {'first' if verdict == 'a' else 'second'} is better."


def _write(book: Book, body: dict[str, Any]) -> str:
    """A pair written by hand."""
    book.add_pair({key: body.get(key, "") for key in ("prompt", "chosen", "rejected", "kind")})
    return "Saved: your own pair."


def _undo(book: Book, body: dict[str, Any]) -> str:
    """The last decision, or that of the entry `number`, is taken back."""
    number = body.get("number")
    if number is not None and type(number) is not int:
        raise DataError("a number must be whole")
    undone = book.undo(number)
    if undone is None:
        return "There is nothing to undo."
    return "Undone: both bad." if undone == BAD else f"Undone: a {undone}."

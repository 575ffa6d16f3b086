"""The labelling page's server: on 127.0.0.1 and nowhere else, for one browser with a token.

Other web pages that are open in the same browser can send requests to 127.0.0.1. Three things
keep them out. The ``Host`` must be this server's own address, or a name that was made to point here
would pass (DNS rebinding). The ``Origin``, if there is one, must be this page's. And everything
that holds data asks for a token in a header, which no other page knows and no form can send.
"""

import secrets
import socket
from collections.abc import Callable
from contextlib import suppress
from importlib import resources
from json import JSONDecodeError
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlx_dpo.errors import DataError, DiskError, UsageError
from mlx_dpo.preferences.store import LOPSIDED
from mlx_dpo.records import Preference
from mlx_dpo.workshop.label.book import SKIP, TIE, Book, Task

PAGE_FILES = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
}
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
MAX_BODY = 2_000_000  # bytes; two answers and a prompt are far below
ENOUGH_PAIRS = 20  # that differ in length; with fewer, a lopsided share is often chance
ENOUGH_TO_SHOW = 10  # the same; with fewer, one decision moves the mark by a tenth or more


def serve(book: Book, *, port: int, command: str, announce: Callable[[str], None]) -> None:
    """Serve until Ctrl-C.

    Args:
        book: The tasks and decisions.
        port: 0 for any that is free.
        command: Starts the same again; the page shows it when it gets no answer.
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
        server = make_server(book, port=port, token=token, command=command)
        with suppress(KeyboardInterrupt):  # uvicorn shuts down first, then raises it again
            # The part after # never leaves the browser: not in a request, a log or a Referer.
            announce(f"http://127.0.0.1:{port}/#{token}")
            server.run(sockets=[listener])


def make_server(book: Book, *, port: int, token: str, command: str) -> uvicorn.Server:
    """The server, not yet running. No handler waits for anything, so the book needs no lock."""

    async def state(request: Request) -> Response:
        return JSONResponse({**view(book), "command": command})

    routes = [Route(path, _page_file(*file)) for path, file in PAGE_FILES.items()]
    routes.append(Route("/api/state", state))
    for name, act in {"label": _label, "write": _write, "undo": _undo}.items():
        routes.append(Route(f"/api/{name}", _action(book, act), methods=["POST"]))
    config = uvicorn.Config(
        Guard(Starlette(routes=routes), port=port, token=token),
        log_level="warning",
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
    if not (length.isascii() and length.isdigit()):
        return 411, "expected a Content-Length"
    return (413, "too long") if int(length) > MAX_BODY else None


def _page_file(name: str, media_type: str) -> Any:
    content = resources.files(__package__).joinpath("page", name).read_bytes()

    async def respond(request: Request) -> Response:
        return Response(content, media_type=media_type)

    return respond


def _action(book: Book, act: Callable[[Book, dict[str, Any]], str]) -> Any:
    """An endpoint that changes the book, unless the page has missed a change."""

    async def respond(request: Request) -> Response:
        try:
            body = await request.json()
        except (JSONDecodeError, UnicodeDecodeError, RecursionError):
            body = None
        if not isinstance(body, dict):
            return JSONResponse({"error": "expected a JSON object"}, 400)
        if body.get("revision") != book.revision:
            error = "the page was out of date and has been renewed; nothing was written"
            return JSONResponse({**view(book), "error": error}, 409)
        try:
            saved = act(book, body)
        except DataError as error:
            return JSONResponse({"error": str(error)}, 422)
        except DiskError as error:
            return JSONResponse({"error": str(error)}, 507)
        return JSONResponse({**view(book), "saved": saved})

    return respond


def _label(book: Book, body: dict[str, Any]) -> str:
    """A verdict on the task shown: a, b, tie or skip; with the answers as they were edited."""
    task = book.next_task()
    verdict = body.get("verdict")
    if task is None or body.get("task") != task.id:
        raise DataError("that is not the task at hand")
    if verdict in (TIE, SKIP):
        book.add(str(verdict), task.id)
        return {TIE: "Tie.", SKIP: "Skipped."}[str(verdict)]
    if verdict not in ("a", "b"):
        raise DataError("a verdict is a, b, tie or skip")
    other = "b" if verdict == "a" else "a"
    pair = task.as_pair(body.get(verdict, ""), body.get(other, ""))
    book.add_pair(pair, task=task.id, shown=str(verdict))
    if not task.is_choice:
        return "Saved: your answers."
    return f"Saved: {'first' if verdict == 'a' else 'second'} is better."


def _write(book: Book, body: dict[str, Any]) -> str:
    """A pair written by hand."""
    book.add_pair({key: body.get(key, "") for key in ("prompt", "chosen", "rejected", "kind")})
    return "Saved: your own pair."


def _undo(book: Book, body: dict[str, Any]) -> str:
    undone = book.undo()
    return f"Undone: a {undone}." if undone else "There is nothing to undo."


def view(book: Book) -> dict[str, Any]:
    """The state of a book, as JSON for the page."""
    task = book.next_task()
    return {
        "revision": book.revision,
        "task": None if task is None else _task_view(task, book.salt),
        "done": book.num_done(),
        "total": len(book.tasks),
        **book.shares(),
        "skipped": book.counts[SKIP],
        "can_undo": bool(book.decisions),
        "lengths": length_meter(book.pairs),
        "out": str(book.out),
    }


def _task_view(task: Task, salt: str) -> dict[str, Any]:
    a, b = reversed(task.texts) if task.is_shown_swapped(salt) else task.texts
    prompt = [turn._asdict() for turn in task.prompt]
    shown = {"id": task.id, "kind": task.kind, "prompt": prompt, "is_choice": task.is_choice}
    return {**shown, "a": a, "b": b}


def length_meter(pairs: list[Preference]) -> dict[str, Any]:
    """How often the chosen answer is the longer one, in characters, and whether it leans."""
    gaps = [_length(pair.chosen) - _length(pair.rejected) for pair in pairs]
    longer, shorter = sum(gap > 0 for gap in gaps), sum(gap < 0 for gap in gaps)
    share = longer / (longer + shorter) if longer + shorter else 0.5
    low, high = LOPSIDED
    leans = longer + shorter >= ENOUGH_PAIRS and not low <= share <= high
    return {
        "longer": longer,
        "shorter": shorter,
        "share": share,
        "enough": ENOUGH_TO_SHOW,
        "leans": ("longer" if share > 0.5 else "shorter") if leans else "",
    }


def _length(turns: tuple[Any, ...]) -> int:
    return sum(len(turn.content.strip()) for turn in turns)

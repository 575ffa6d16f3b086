"""Running the labelling page on 127.0.0.1, and nowhere else."""

import secrets
import socket
from collections.abc import Callable, Iterable
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
from mlx_dpo.workshop.label.book import SKIP, TIE, Book, as_pair, is_shown_swapped


def serve(book: Book, *, port: int, command: str, announce: Callable[[str], None]) -> None:
    """Serve until Ctrl-C.

    Args:
        book: What is labelled.
        port: 0 for any that is free.
        command: What starts the same again, for a page that gets no answer.
        announce: Told of the page's address, with its token, once it can be opened.

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
        with suppress(KeyboardInterrupt):  # uvicorn ends in good order, then passes it on
            # The part after # never leaves the browser: not in a request, a log or a Referer.
            announce(f"http://127.0.0.1:{port}/#{token}")
            server.run(sockets=[listener])


def make_server(book: Book, *, port: int, token: str, command: str) -> uvicorn.Server:
    """The server, not yet running."""
    config = uvicorn.Config(
        make_app(book, port=port, token=token, command=command),
        log_level="warning",
        access_log=False,
        lifespan="off",
        ws="none",
        server_header=False,
        timeout_graceful_shutdown=2,
    )
    return uvicorn.Server(config)


# --- The labelling page's server: three files, and an account of what
# the person says.


_PAGE = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
}


def make_app(book: Book, *, port: int, token: str, command: str) -> ASGIApp:
    """The guarded application; `command` is what the page tells a person to start it again with.

    Handlers are coroutines that never wait, so requests are served one after the other and the
    book needs no lock.
    """
    routes = [Route(path, _file(*what)) for path, what in _PAGE.items()]

    async def state(request: Request) -> Response:
        return JSONResponse({**view(book), "command": command})

    routes.append(Route("/api/state", state))
    for name, act in {"label": _label, "write": _write, "undo": _undo}.items():
        routes.append(Route(f"/api/{name}", _action(book, act), methods=["POST"]))
    return Guard(Starlette(routes=routes), port=port, token=token)


def _file(name: str, media_type: str) -> Any:
    content = resources.files(__package__).joinpath("page", name).read_bytes()

    async def serve(request: Request) -> Response:
        return Response(content, media_type=media_type)

    return serve


def _action(book: Book, act: Callable[[Book, dict[str, Any]], str]) -> Any:
    """An endpoint that changes the book, unless the page has missed a change."""

    async def serve(request: Request) -> Response:
        try:
            said = await request.json()
        except (JSONDecodeError, UnicodeDecodeError, RecursionError):
            said = None
        if not isinstance(said, dict):
            return JSONResponse({"error": "expected a JSON object"}, 400)
        if said.get("revision") != book.revision:
            error = "the page was out of date and has been renewed; nothing was written"
            return JSONResponse({**view(book), "error": error}, 409)
        try:
            done = act(book, said)
        except DataError as error:
            return JSONResponse({"error": str(error)}, 422)
        except DiskError as error:
            return JSONResponse({"error": str(error)}, 507)
        return JSONResponse({**view(book), "saved": done})

    return serve


def _label(book: Book, said: dict[str, Any]) -> str:
    """A verdict on the task shown: a, b, tie or skip; with the answers as they read by then."""
    task = book.next_task()
    verdict = said.get("verdict")
    if task is None or said.get("task") != task.id:
        raise DataError("that is not the task at hand")
    if verdict in (TIE, SKIP):
        book.add(str(verdict), task.id)
        return {TIE: "Tie.", SKIP: "Skipped."}[str(verdict)]
    if verdict not in ("a", "b"):
        raise DataError("a verdict is a, b, tie or skip")
    other = "b" if verdict == "a" else "a"
    pair = as_pair(task, said.get(verdict, ""), said.get(other, ""))
    book.add_pair(pair, task=task.id, shown=str(verdict))
    if not task.is_choice:
        return "Saved: your answers."
    return f"Saved: {'first' if verdict == 'a' else 'second'} is better."


def _write(book: Book, said: dict[str, Any]) -> str:
    """A pair written by hand."""
    pair = {key: said.get(key, "") for key in ("prompt", "chosen", "rejected", "kind")}
    book.add_pair(pair)
    return "Saved: your own pair."


def _undo(book: Book, said: dict[str, Any]) -> str:
    undone = book.undo()
    return f"Undone: a {undone}." if undone else "There is nothing to undo."


# --- Who may talk to the labelling page: this computer's browser,
# this page, with this token.
#
# Other web pages that are open in the same browser can send requests to 127.0.0.1. Three things
# keep them out. The `Host` must be our own address, or a name that was made to point here would
# do (DNS rebinding). The `Origin`, where there is one, must be ours. And everything that holds
# data asks for a token in a header, which no foreign page knows and no form can send.


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


# --- What the page shows, as JSON.


ENOUGH_PAIRS = 20  # that differ in length; under this many, a lopsided share is often chance
ENOUGH_TO_SHOW = 10  # the same; under this many, one decision moves the mark by a tenth or more


def view(book: Book) -> dict[str, Any]:
    """The state of a book, for the page."""
    task = book.next_task()
    shown = None
    if task is not None:
        a, b = task.texts
        if is_shown_swapped(task, book.salt):
            a, b = b, a
        shown = {
            "id": task.id,
            "kind": task.kind,
            "prompt": [turn._asdict() for turn in task.prompt],
            "is_choice": task.is_choice,
            "a": a,
            "b": b,
        }
    return {
        "revision": book.revision,
        "task": shown,
        "done": book.num_done(),
        "total": len(book.tasks),
        **book.shares(),
        "skipped": book.counts[SKIP],
        "can_undo": bool(book.decisions),
        "lengths": length_meter(book.pairs),
        "out": str(book.out),
    }


def length_meter(pairs: list[Preference]) -> dict[str, Any]:
    """How often the chosen answer is the longer one, in characters, and whether that leans."""
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

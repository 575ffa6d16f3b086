"""The labelling page's server: three files, and an account of what the person says."""

from collections.abc import Callable
from importlib import resources
from json import JSONDecodeError
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from mlx_dpo.errors import DataError, DiskError
from mlx_dpo.workshop.labelling.book import SKIP, TIE, Book, as_pair
from mlx_dpo.workshop.labelling.guard import Guard
from mlx_dpo.workshop.labelling.view import view

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

"""A client of a labelling page that runs in this process."""

import http.client
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from mlx_dpo.workshop.label.book import Book
from mlx_dpo.workshop.label.server import Session, make_server

TOKEN = "a-token-for-tests"


class Client:
    """Sends requests with whatever headers a test wants."""

    def __init__(self, port: int, book: Book, server: uvicorn.Server) -> None:
        self.port = port
        self.book = book
        self.server = server

    def __call__(
        self, method: str, path: str, body: Any = None, **headers: str | None
    ) -> tuple[int, dict[str, str], bytes]:
        sent: dict[str, str | None] = {
            "host": f"127.0.0.1:{self.port}",
            "authorization": f"Bearer {TOKEN}",
        }
        if method == "POST":
            sent["content-type"] = "application/json"
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in sent.items():
            if value is not None:
                connection.putheader(name, value)
        if method == "POST" and "content-length" not in sent:
            connection.putheader("content-length", str(len(data)))
        connection.endheaders(data if method == "POST" else None)
        response = connection.getresponse()
        found = response.status, dict(response.getheaders()), response.read()
        connection.close()
        return found


@contextmanager
def serving(folder: Path) -> Iterator[Client]:
    """A page without tasks, its book in a folder."""
    book = Book(folder / "pairs.jsonl", [])
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        server = make_server(book, Session("mlx_dpo data label"), port=port, token=TOKEN)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield Client(port, book, server)
        finally:
            server.should_exit = True
            thread.join()
    book.close()

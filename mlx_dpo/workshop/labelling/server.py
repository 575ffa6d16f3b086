"""Running the labelling page on 127.0.0.1, and nowhere else."""

import secrets
import socket
from collections.abc import Callable
from contextlib import suppress

import uvicorn

from mlx_dpo.errors import UsageError
from mlx_dpo.workshop.labelling.app import make_app
from mlx_dpo.workshop.labelling.book import Book


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

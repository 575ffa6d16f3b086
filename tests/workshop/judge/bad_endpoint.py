"""A chat endpoint on 127.0.0.1 that does what a test tells it, however bad."""

import json
import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Behaviour = Callable[["Handler", str], None]


class Handler(BaseHTTPRequestHandler):
    """Notes each request, then behaves."""

    server: "BadEndpoint"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        text = body["messages"][0]["content"]
        with self.server.lock:
            self.server.requests.append(
                {"headers": {k.lower(): v for k, v in self.headers.items()}, **body}
            )
            key = text if self.server.by_text else ""
            number = self.server.seen.get(key, 0)
            self.server.seen[key] = number + 1
            script = self.server.script
            behaviour = script[min(number, len(script) - 1)]
        behaviour(self, text)

    def send(
        self, status: int, data: bytes, headers: dict[str, str] | None = None, *, promise: int = 0
    ) -> None:
        """Answer, perhaps promising more bytes than are sent."""
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("content-length", str(promise or len(data)))
        self.end_headers()
        self.wfile.write(data)
        if promise:
            self.close_connection = True

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


class BadEndpoint(ThreadingHTTPServer):
    """Serves while it is a context.

    Args:
        script: What it does at the first, second, ... request; the last goes on.
        by_text: Whether requests are counted for each text by itself.
    """

    daemon_threads = True

    def __init__(self, *script: Behaviour, by_text: bool = False) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script = script
        self.by_text = by_text
        self.seen: dict[str, int] = {}
        self.requests: list[dict[str, Any]] = []
        self.lock = threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"
        self._thread = threading.Thread(target=self.serve_forever, args=(0.01,))

    def __enter__(self) -> "BadEndpoint":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()

    def handle_error(self, *_: Any) -> None:
        """A client that hung up is part of the game."""


def reply(text: str | None) -> Behaviour:
    """Says a text, as an endpoint should."""
    data = json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()
    return lambda handler, _: handler.send(200, data)


def prefers(word: str) -> Behaviour:
    """Reads the answers and prefers the one that has a word."""

    def behave(handler: Handler, text: str) -> None:
        found = {
            side: re.search(rf"<answer {side} \w+>\n(.*?)\n</answer", text, re.S) for side in "AB"
        }
        better = [side for side, match in found.items() if match and word in match[1]]
        reply(better[0] if len(better) == 1 else "tie")(handler, text)

    return behave


def status(code: int, body: bytes = b"no", headers: dict[str, str] | None = None) -> Behaviour:
    """Answers with a status and nothing useful."""
    return lambda handler, _: handler.send(code, body, headers)


def garbage(data: bytes = b"<html>gateway</html>") -> Behaviour:
    """Says 200 and something that is no reply."""
    return status(200, data)


def cut_off(handler: Handler, _: str) -> None:
    """Promises a reply and hangs up in the middle of it."""
    handler.send(200, b'{"choices": [{"mess', promise=500)


def hang_up(handler: Handler, _: str) -> None:
    """Closes the connection without a word."""
    handler.close_connection = True

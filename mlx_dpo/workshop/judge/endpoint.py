"""A model behind an OpenAI-compatible endpoint: mlx_lm.server, ollama, LM Studio, llama.cpp.

Replies that are late, cut off or nonsense are asked for again. The key goes to the endpoint's own
address alone, off this computer only over https, and into no message or file.
"""

import json
import threading
import time
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any

import httpx2 as httpx

from mlx_dpo.errors import MlxDpoError, UsageError
from mlx_dpo.workshop.judge.verdicts import NoReplyError

KEY_VARIABLE = "MLX_DPO_JUDGE_KEY"
WAITS = (1.0, 4.0, 16.0)  # seconds before each further try
LONGEST_WAIT = 60.0  # seconds, even if an endpoint asks for more
MAX_REPLY = 1_000_000  # bytes
_RETRIED = {408, 425, 429, 500, 502, 503, 504, 529}  # HTTP statuses


class _RetryError(Exception):
    """A failure that may pass; try again after at least `wait` seconds."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


class Endpoint:
    """Asks ``POST URL/chat/completions``, with retries. May be used from several threads.

    Args:
        url: As servers print it, usually ending in ``/v1``.
        model: The endpoint's name of the model; "" lets it choose.
        key: Sent as a bearer token unless it is ""; never shown or written.
        max_tokens: Longest reply.
        timeout: Seconds for a whole reply.
        now: Seconds since a fixed moment.
        wait: Waits so many seconds; True if that was interrupted. None waits until `close`.

    Raises:
        UsageError: If the URL is not valid, holds a password, or would send the key unencrypted.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str = "",
        key: str = "",
        max_tokens: int,
        timeout: float,
        now: Callable[[], float] = time.monotonic,
        wait: Callable[[float], bool] | None = None,
    ) -> None:
        host = _checked_host(url, key)
        self._stop = threading.Event()
        self._now, self._wait = now, wait or self._stop.wait
        self._url = url
        self._key = key
        self._timeout = timeout
        self._request: dict[str, Any] = {"max_tokens": max_tokens, "temperature": 0}
        if model:
            self._request["model"] = model
        self._client = httpx.Client(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(timeout, connect=min(timeout, 10.0)),
            trust_env=not _is_local(host),  # no proxy on the way to this computer
            follow_redirects=False,  # the key must not go to another address
        )

    def ask(self, text: str) -> str:
        """The reply to a text.

        Raises:
            NoReplyError: If there was none after some tries.
            MlxDpoError: If another try would be no use.
        """
        body = {"messages": [{"role": "user", "content": text}], **self._request}
        reason = "stopped"
        for pause in (*WAITS, None):
            if self._stop.is_set():
                break
            wait_longer = 0.0
            try:
                return self._try(body)
            except _RetryError as error:
                reason, wait_longer = str(error), error.wait
            except httpx.TimeoutException:
                reason = f"no reply within {self._timeout:g} s"
            except (httpx.HTTPError, httpx.StreamError, RuntimeError) as error:
                # RuntimeError: another thread has closed the client.
                reason = f"{type(error).__name__}: {error}"
            if pause is None or self._wait(min(max(pause, wait_longer), LONGEST_WAIT)):
                break
        raise NoReplyError(self._without_key(reason))

    def close(self) -> None:
        """End all waiting."""
        self._stop.set()
        self._client.close()

    def _try(self, body: dict[str, Any]) -> str:
        deadline = self._now() + self._timeout
        url = self._url.rstrip("/") + "/chat/completions"
        with self._client.stream("POST", url, json=body) as response:
            data = bytearray()
            for block in response.iter_bytes():
                data += block
                if len(data) > MAX_REPLY:
                    raise _RetryError("the reply does not end")
                if self._now() > deadline:  # httpx limits the time of each block alone
                    raise _RetryError(f"no whole reply within {self._timeout:g} s")
        status = response.status_code
        if status in _RETRIED:
            wait = response.headers.get("retry-after", "")
            raise _RetryError(f"status {status}", float(wait) if wait.isdecimal() else 0.0)
        if status != 200:
            hint = f"; the key is read from {KEY_VARIABLE}" if status in (401, 403) else ""
            reply = self._without_key(bytes(data[:300]).decode(errors="replace"))
            raise MlxDpoError(f"{self._url}: answered with status {status}{hint}: {reply}")
        try:
            content = json.loads(data)["choices"][0]["message"].get("content")
        except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
            raise _RetryError("the reply is not that of a chat endpoint") from None
        return content if isinstance(content, str) else ""

    def _without_key(self, text: str) -> str:
        text = " ".join(text.split())
        return text.replace(self._key, "***") if self._key else text


def _checked_host(url: str, key: str) -> str:
    """The host of a URL that a request, with this key, may go to."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise UsageError(f"--judge {url}: {error}") from None
    if not parsed.host:
        raise UsageError(f"--judge {url}: names no host")
    if parsed.userinfo:
        raise UsageError(f"--judge: no password in a URL; a key is read from {KEY_VARIABLE}")
    if key and parsed.scheme != "https" and not _is_local(parsed.host):
        raise UsageError(f"--judge {url}: a key goes over https only; unset {KEY_VARIABLE}")
    if key and not (key.isascii() and key.isprintable()):
        raise UsageError(f"{KEY_VARIABLE}: is no key: it holds characters that can't be sent")
    return str(parsed.host)


def _is_local(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

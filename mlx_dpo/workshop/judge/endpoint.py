"""A judge behind an OpenAI-compatible endpoint: mlx_lm.server, ollama, LM Studio, llama.cpp."""

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

import httpx2 as httpx

from mlx_dpo.errors import MlxDpoError, UsageError
from mlx_dpo.workshop.judge.asking import NoReplyError

KEY_VARIABLE = "MLX_DPO_JUDGE_KEY"
WAITS = (1.0, 4.0, 16.0)  # seconds before each further try
LONGEST_WAIT = 60.0  # however much longer an endpoint asks for
MAX_REPLY = 1_000_000  # bytes
_AGAIN = {408, 425, 429, 500, 502, 503, 504, 529}


@dataclass(frozen=True, slots=True)
class Clock:
    """Time, so that tests need none.

    Attributes:
        now: Seconds since some moment.
        wait: Waits so many seconds; True where waiting was broken off.
    """

    now: Callable[[], float]
    wait: Callable[[float], bool]


class Endpoint:
    """Asks ``POST URL/chat/completions``, patiently. May be used from several threads.

    Args:
        url: As the servers print it, usually ending in ``/v1``.
        model: The name it knows its model by; "" lets it choose.
        key: Sent as a bearer token, where there is one; never shown or written.
        max_tokens: Longest reply.
        timeout: Seconds a reply may take, all of it.
        clock: What time is.

    Raises:
        UsageError: If the URL is none, holds a password, or would send the key unencrypted.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str = "",
        key: str = "",
        max_tokens: int = 16,
        timeout: float = 60.0,
        clock: Clock | None = None,
    ) -> None:
        parsed = _checked_url(url, key)
        self._stop = threading.Event()
        self._clock = clock or Clock(time.monotonic, self._stop.wait)
        self._url = url.rstrip("/") + "/chat/completions"
        self._name = url
        self._key = key
        self._timeout = timeout
        self._request: dict[str, Any] = {"max_tokens": max_tokens, "temperature": 0}
        if model:
            self._request["model"] = model
        self._client = httpx.Client(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(timeout, connect=min(timeout, 10.0)),
            trust_env=not _is_here(parsed.host),  # no proxy stands before this computer
            follow_redirects=False,  # a key goes where it was sent, and no further
        )

    def ask(self, text: str) -> str:
        """The reply to a text.

        Raises:
            NoReplyError: If there was none after some tries.
            MlxDpoError: If trying again is no use.
        """
        body = {"messages": [{"role": "user", "content": text}], **self._request}
        reason = "stopped"
        for pause in (*WAITS, None):
            if self._stop.is_set():
                break
            wait_longer = 0.0
            try:
                return self._try(body)
            except _AgainError as error:
                reason, wait_longer = str(error), error.wait
            except httpx.TimeoutException:
                reason = f"no reply within {self._timeout:g} s"
            except (httpx.HTTPError, httpx.StreamError, RuntimeError) as error:
                # RuntimeError is what a client says that another thread has closed.
                reason = f"{type(error).__name__}: {error}"
            if pause is None or self._clock.wait(min(max(pause, wait_longer), LONGEST_WAIT)):
                break
        raise NoReplyError(self._safe(reason))

    def close(self) -> None:
        """End all waiting."""
        self._stop.set()
        self._client.close()

    def _try(self, body: dict[str, Any]) -> str:
        until = self._clock.now() + self._timeout
        with self._client.stream("POST", self._url, json=body) as response:
            data = bytearray()
            for block in response.iter_bytes():
                data += block
                if len(data) > MAX_REPLY:
                    raise _AgainError("the reply does not end")
                if self._clock.now() > until:  # drop by drop, each of them in time
                    raise _AgainError(f"no whole reply within {self._timeout:g} s")
        status = response.status_code
        if status in _AGAIN:
            asked = response.headers.get("retry-after", "")
            raise _AgainError(f"status {status}", float(asked) if asked.isdecimal() else 0.0)
        if status != 200:
            hint = f"; the key is read from {KEY_VARIABLE}" if status in (401, 403) else ""
            said = self._safe(bytes(data[:300]).decode(errors="replace"))
            raise MlxDpoError(f"{self._name}: answered with status {status}{hint}: {said}")
        return _content(bytes(data))

    def _safe(self, text: str) -> str:
        text = " ".join(text.split())
        return text.replace(self._key, "***") if self._key else text


class _AgainError(Exception):
    """It may be better next time, after `wait` seconds."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


def _content(data: bytes) -> str:
    try:
        said = json.loads(data)["choices"][0]["message"].get("content")
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        raise _AgainError("the reply is not that of a chat endpoint") from None
    return said if isinstance(said, str) else ""


def _checked_url(url: str, key: str) -> httpx.URL:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise UsageError(f"--judge {url}: {error}") from None
    if not parsed.host:
        raise UsageError(f"--judge {url}: names no host")
    if parsed.userinfo:
        raise UsageError(f"--judge: no password in a URL; a key is read from {KEY_VARIABLE}")
    if key and parsed.scheme != "https" and not _is_here(parsed.host):
        raise UsageError(f"--judge {url}: a key goes over https only; unset {KEY_VARIABLE}")
    if key and not (key.isascii() and key.isprintable()):
        raise UsageError(f"{KEY_VARIABLE}: is no key: it holds characters that can't be sent")
    return parsed


def _is_here(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

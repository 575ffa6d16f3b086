"""A model behind an OpenAI-compatible endpoint: mlx_lm.server, ollama, LM Studio, llama.cpp.

Replies that are late, cut off or nonsense are asked for again. A parameter that an endpoint refuses
is asked for otherwise, for as long as the program runs. The key goes to the endpoint's own address
alone, off this computer only over https, and into no message or file: it is taken out of all that
an endpoint says before anything is read, cut or shown.
"""

import asyncio
import json
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from ipaddress import ip_address

import httpx2 as httpx

from mlx_dpo.errors import MlxDpoError, UsageError
from mlx_dpo.workshop.judge.redaction import Redaction
from mlx_dpo.workshop.judge.replies import (
    Request,
    asked_otherwise,
    error_inside,
    is_of_the_pair,
    is_out_of_credit,
    parsed,
    quoted,
    read_reply,
    words_of,
)
from mlx_dpo.workshop.judge.verdicts import NoReplyError, Verdict, read_verdict

KEY_VARIABLE = "MLX_DPO_JUDGE_KEY"
WAITS = (1.0, 4.0, 16.0)  # seconds before each further try
LONGEST_WAIT = 60.0  # seconds, even if an endpoint asks for more
MAX_REPLY = 1_000_000  # bytes
_TO_CONNECT = 10.0  # seconds, and no more than half of what a reply may take
_RETRIED = {408, 425, 429, 500, 502, 503, 504, 529}  # HTTP statuses


class _RetryError(Exception):
    """A failure that may pass; try again after at least `wait` seconds."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


class _RefusedError(Exception):
    """The endpoint does not answer such a request.

    Attributes:
        status: Of HTTP.
        words: What it said.
        wait: Seconds it asks to wait.
    """

    def __init__(self, status: int, words: str, wait: float = 0.0) -> None:
        super().__init__(words)
        self.status, self.words, self.wait = status, words, wait


class Endpoint:
    """Asks ``POST URL/chat/completions``, with retries. May be used from several threads.

    Args:
        url: As servers print it, usually ending in ``/v1``.
        model: The endpoint's name of the model; "" lets it choose.
        key: Sent as a bearer token unless it is ""; never shown or written.
        max_tokens: Longest reply.
        timeout: Seconds from connecting to the last byte of a reply.
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
        wait: Callable[[float], bool] | None = None,
    ) -> None:
        host = _checked_host(url, key)
        self._stop = threading.Event()
        self._wait = wait or self._stop.wait
        self._url = url
        self._redacted = Redaction(key)
        self._timeout = timeout
        self._max_tokens, self._model = max_tokens, model
        self._request: Request = {"max_tokens": max_tokens, "temperature": 0}
        self._refused: list[Request] = []
        self._lock = threading.Lock()
        self._awaited: set[Future[tuple[int, str, bytes]]] = set()
        # Only coroutines can be given one deadline for all they wait for, from a name's address to
        # the last byte: they run in a thread of their own.
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._client = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(None, connect=min(_TO_CONNECT, timeout / 2)),
            trust_env=not _is_local(host),  # no proxy on the way to this computer
            follow_redirects=False,  # the key must not go to another address
        )
        self._thread.start()

    def ask(self, text: str) -> str:
        """The reply to a text.

        Raises:
            NoReplyError: If there was none after some tries, or the text itself is refused.
            MlxDpoError: If another try would be no use.
        """
        reason = "stopped"
        for pause in (*WAITS, None):
            if self._stop.is_set():
                break
            wait_longer = 0.0
            try:
                return self._ask(text)
            except _RetryError as error:
                reason, wait_longer = str(error), error.wait
            except httpx.ConnectTimeout:
                reason = "no connection in time"
            except TimeoutError:
                reason = f"no whole reply within {self._timeout:g} s"
            except (httpx.HTTPError, httpx.StreamError) as error:
                reason = f"{type(error).__name__}: {error}"
            except CancelledError:
                break
            if pause is None or self._wait(min(max(pause, wait_longer), LONGEST_WAIT)):
                break
        raise NoReplyError(self._redacted(" ".join(reason.split())))

    def close(self) -> None:
        """End all waiting, in all threads."""
        with self._lock:
            if self._stop.is_set():
                return
            self._stop.set()
            for answer in self._awaited:
                answer.cancel()
            ended = asyncio.run_coroutine_threadsafe(self._end(), self._loop)
        ended.result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.gather(*others, return_exceptions=True)
        await self._client.aclose()

    def _ask(self, text: str) -> str:
        """One try, with parameters as the endpoint wants them."""
        while True:
            request = self._request
            try:
                return self._try(text, request)
            except _RefusedError as error:
                if self._ask_otherwise(request, error.words):
                    continue
                raise self._refusal(error) from None

    def _refusal(self, error: _RefusedError) -> Exception:
        """What a refusal means: for this text, for this try, or for all that is asked."""
        reason = f"status {error.status}: {quoted(error.words)}"
        if error.status == 413 or is_of_the_pair(error.words):
            return NoReplyError(reason)
        if error.status in (200, *_RETRIED) and not is_out_of_credit(error.words):
            return _RetryError(reason, error.wait)
        hint = ""
        if error.status in (401, 403):
            hint = f"; the key is read from {KEY_VARIABLE}"
        elif not self._model and "model" in error.words.lower():
            hint = "; --model names the model to ask"
        return MlxDpoError(self._redacted(f"{self._url}: answered with {reason}{hint}"))

    def _ask_otherwise(self, request: Request, words: str) -> bool:
        """Change the parameters of all further requests; False where that would be nothing new."""
        with self._lock:
            if request is not self._request:  # another thread has changed them
                return True
            self._refused.append(request)
            others = asked_otherwise(request, words)
            other = next((other for other in others if other not in self._refused), request)
            self._request = other
            return other is not request

    def _try(self, text: str, request: Request) -> str:
        status, retry_after, data = self._post(
            {
                "messages": [{"role": "user", "content": text}],
                **({"model": self._model} if self._model else {}),
                **request,
            }
        )
        words, content = self._redacted(words_of(data)), parsed(data)
        if status != 200:
            raise _RefusedError(status, words, _seconds(retry_after))
        if (error := error_inside(content)) is not None:
            code = error.get("code") if isinstance(error, dict) else None
            if type(code) is not int or not 400 <= code < 600:
                code = status
            raise _RefusedError(code, words, _seconds(retry_after))
        try:
            reply = read_reply(content)
        except (LookupError, TypeError, AttributeError):
            reason = f"the reply is not that of a chat endpoint: {quoted(words)}"
            raise _RetryError(reason) from None
        if reply.is_cut and not _is_decided(reply.text):
            at = f"{self._max_tokens} tokens"
            raise NoReplyError(f"a reply was cut at {at}, before its verdict: raise --max-tokens")
        if not reply.text.strip() and reply.ended == "content_filter":
            raise NoReplyError("the endpoint withholds the reply: content_filter")
        if not reply.text.strip() and reply.thought:
            raise NoReplyError("the model thought and said nothing: raise --max-tokens")
        return self._redacted(reply.text)  # once more: pieces of it have been joined

    def _post(self, body: Request) -> tuple[int, str, bytes]:
        """Status, ``Retry-After`` and body of the answer, without the key.

        Raises:
            CancelledError: If the endpoint has been closed.
            TimeoutError: If it took too long.
        """
        with self._lock:
            if self._stop.is_set():
                raise CancelledError
            answer = asyncio.run_coroutine_threadsafe(self._exchange(body), self._loop)
            self._awaited.add(answer)
        try:
            status, retry_after, data = answer.result()
        finally:
            with self._lock:
                self._awaited.discard(answer)
            answer.cancel()  # Ctrl-C while waiting
        text = data.decode(json.detect_encoding(data), "replace")
        return status, retry_after, self._redacted(text).encode(errors="replace")

    async def _exchange(self, body: Request) -> tuple[int, str, bytes]:
        url = self._url.rstrip("/") + "/chat/completions"
        async with (
            asyncio.timeout(self._timeout),
            self._client.stream("POST", url, json=body) as response,
        ):
            data = bytearray()
            async for block in response.aiter_bytes():
                data += block
                if len(data) > MAX_REPLY:
                    raise _RetryError("the reply does not end")
            return response.status_code, response.headers.get("retry-after", ""), bytes(data)


def _is_decided(text: str) -> bool:
    """Whether a reply that was cut has its verdict on a first line that is whole."""
    first, line_break, _ = text.lstrip().partition("\n")
    return bool(line_break) and read_verdict(first) is not Verdict.ABSTAIN


def _seconds(retry_after: str) -> float:
    """The wait that a ``Retry-After`` asks for, in seconds or as a date; 0 where it is neither."""
    try:
        return max(0.0, min(float(retry_after), LONGEST_WAIT))
    except ValueError:
        pass
    try:
        then = parsedate_to_datetime(retry_after)
        return max(0.0, (then.astimezone(UTC) - datetime.now(UTC)).total_seconds())
    except (ValueError, OverflowError):
        return 0.0


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
        raise UsageError(f"{KEY_VARIABLE}: is not a key: it holds characters that can't be sent")
    return str(parsed.host)


def _is_local(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

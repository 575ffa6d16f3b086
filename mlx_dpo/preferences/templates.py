"""Chat templates, rendered in a process of their own that has limits on time and memory.

A model folder's template is a stranger's program. Jinja's sandbox keeps it from files and code, but
not from a loop without end or a string that doubles, and only a process can be ended amid one.
"""

import atexit
import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from mlx_dpo.errors import DataError, MlxDpoError, UsageError
from mlx_dpo.records import Message

SECONDS = 2  # of processor time, and one more for every million characters rendered
MEMORY = 2**29  # bytes above what the process needs itself, and 64 for every character rendered
LOOK_EVERY = 0.2  # seconds
PROGRAM = Path(__file__).with_name("template_process.py")


class Request(NamedTuple):
    """What the other process is asked for.

    Attributes:
        template: The template's source.
        conversations: Turns as dicts of role and content.
        variables: What else the template can read.
        seconds: Processor time allowed.
        memory: Bytes allowed.
    """

    template: str
    conversations: list[list[dict[str, str]]]
    variables: dict[str, Any]
    seconds: int
    memory: int


class _Renderer:
    """The other process; begun when first needed, and again after it had to be ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._owner = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._line: Connection | None = None

    def prepare(self) -> None:
        """Begin the process if there is none, and go on while it imports what it needs."""
        with self._lock:
            self._begin_if_needed()

    def ask(self, request: Request) -> list[dict[str, str]]:
        """Its answer: for each conversation ``text`` or ``refused``.

        Raises:
            UsageError: If the template goes over a limit.
        """
        with self._lock:
            try:
                self._begin_if_needed()
                answer = self._ask(request)
            except BaseException:  # whatever it would still say, nobody waits for it
                self.end()
                raise
        if answer and "limit" in answer[-1]:
            raise _too_much(request)
        return answer

    def _ask(self, request: Request) -> list[dict[str, str]]:
        assert self._line is not None
        assert self._process is not None
        try:
            self._line.send_bytes(json.dumps(request).encode())
            while not self._line.poll(LOOK_EVERY):
                if _resident(self._process.pid) > request.memory + MEMORY:
                    raise MemoryError
            answer: list[dict[str, str]] = json.loads(self._line.recv_bytes())
        except MemoryError:
            raise _too_much(request) from None
        except (EOFError, OSError):
            if (code := self._process.wait()) < 0:
                raise _too_much(request) from None
            raise MlxDpoError(
                f"{PROGRAM}: ended with exit code {code}; run it with {sys.executable} to see why"
            ) from None
        return answer

    def _begin_if_needed(self) -> None:
        if self._owner == os.getpid() and self._process and self._process.poll() is None:
            return
        self.end()
        self._line, theirs = Pipe()
        with theirs:
            handle = theirs.fileno()
            # -P: modules are not looked for beside the program.
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(PROGRAM), str(handle)],
                pass_fds=[handle],
                start_new_session=True,  # Ctrl-C is for the command that asks
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        self._owner = os.getpid()

    def end(self) -> None:
        """End the process, if there is one and it is ours."""
        if self._process is not None and self._owner == os.getpid():
            self._process.kill()
            self._process.wait()
        if self._line is not None:
            self._line.close()
        self._process = self._line = None


_renderer = _Renderer()
atexit.register(_renderer.end)
prepare = _renderer.prepare


def render(
    tokenizer: Any, conversations: Sequence[Sequence[Message]], *, add_generation_prompt: bool
) -> list[str | DataError]:
    """What `tokenizer.apply_chat_template` writes for each conversation.

    Args:
        tokenizer: A Hugging Face tokenizer, or mlx-lm's wrapper of one.
        conversations: Turns, oldest first.
        add_generation_prompt: Whether the texts end where the assistant begins to answer.

    Returns:
        A text each; the error where the template refuses the conversation.

    Raises:
        UsageError: If the template goes over the limits on time, memory or text.
    """
    turns = [[turn._asdict() for turn in conversation] for conversation in conversations]
    if getattr(tokenizer, "_chat_template", None) is not None:  # a function of mlx-lm's own
        return [_in_python(tokenizer, each, add_generation_prompt) for each in turns]
    try:
        template = tokenizer.get_chat_template()
    except ValueError as error:  # several templates, none of them the default
        return [_refused(str(error))] * len(turns)
    variables = {**tokenizer.special_tokens_map, "add_generation_prompt": add_generation_prompt}
    if hasattr(tokenizer, "has_thinking"):
        variables["enable_thinking"] = tokenizer.has_thinking
    size = sum(len(turn["content"]) for each in turns for turn in each)
    request = Request(template, turns, variables, SECONDS + size // 10**6, MEMORY + 64 * size)
    answers = _renderer.ask(request)
    return [each["text"] if "text" in each else _refused(each["refused"]) for each in answers]


def _in_python(
    tokenizer: Any, turns: list[dict[str, str]], add_generation_prompt: bool
) -> str | DataError:
    try:
        text: str = tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=add_generation_prompt
        )
        return text
    except Exception as error:
        return _refused(str(error) or type(error).__name__)


def _refused(reason: str) -> DataError:
    reason = " ".join(reason.split())[:300]
    return DataError(f"the chat template refuses the conversation: {reason}")


def _too_much(request: Request) -> UsageError:
    return UsageError(
        f"the model's chat template was ended: it may compute for {request.seconds} s, take "
        f"{request.memory >> 20} MiB and write a million characters a conversation; one that needs "
        "more is broken or hostile: look at the folder's chat_template.jinja or "
        "tokenizer_config.json, or choose another model"
    )


def _resident(pid: int) -> int:
    """Bytes of memory a process has; 0 where that can't be told."""
    with suppress(OSError, ValueError):
        command = ["ps", "-o", "rss=", "-p", str(pid)]
        return 1024 * int(subprocess.run(command, capture_output=True, check=False).stdout)
    return 0

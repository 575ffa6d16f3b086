"""A process that renders chat templates and tokenizes, with limits on time and memory.

A model folder's template and tokenizer are a stranger's programs. They reach no files, but may loop
without end or double a text until the memory is full, and only a process can be ended in the middle
of that. It runs this file, begins when it is needed, and ends when it has been idle for a while.
"""

import atexit
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from array import array
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from functools import partial
from itertools import accumulate, chain, pairwise, takewhile
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from weakref import WeakKeyDictionary

from mlx_dpo.errors import DataError, MlxDpoError, UsageError
from mlx_dpo.records import Message

SECONDS, MEMORY = 2, 2**29  # processor time and bytes for any request, and more for its size:
RATES = {"chat template": (10**6, 64), "tokenizer": (10**5, 512)}  # its bytes a second; times them
REQUEST = 1_000_000  # characters of the texts that are tokenized together; one may be longer
IDLE = 30  # seconds without a request, after which the process ends
LOOK_EVERY = 0.2  # seconds
PROGRAM = Path(__file__)


def render(
    tokenizer: Any,
    conversations: Sequence[Sequence[Message]],
    *,
    add_generation_prompt: bool,
    date: str | None = None,
) -> list[str | DataError]:
    """What `tokenizer.apply_chat_template` writes for each conversation, or why it refuses it.

    Args:
        tokenizer: Brings the template.
        conversations: The turns of each.
        add_generation_prompt: Whether the assistant is to answer next.
        date: The date that a template gets if it asks, YYYY-MM-DD; None for the clock's.

    Raises:
        UsageError: If the template goes over the limits on time, memory or text.
    """
    chats = [[turn._asdict() for turn in conversation] for conversation in conversations]
    options = {"add_generation_prompt": add_generation_prompt}
    if getattr(tokenizer, "_chat_template", None) is not None:  # a function of mlx-lm's own
        answers = _written(partial(tokenizer.apply_chat_template, tokenize=False), chats, options)
    else:
        try:
            template = tokenizer.get_chat_template()
        except ValueError as error:  # several templates, none of them the default
            return [_refusal(str(error))] * len(chats)
        options |= tokenizer.special_tokens_map
        if hasattr(tokenizer, "has_thinking"):
            options["enable_thinking"] = tokenizer.has_thinking
        answers, _ = _process.ask("chat template", lambda: [template, chats, options, date])
    return [each["text"] if "text" in each else _refusal(each["refused"]) for each in answers]


def encode(
    tokenizer: Any, texts: Sequence[str], *, add_special_tokens: bool = False
) -> list[list[int]]:
    """The ids that `tokenizer.encode` makes of each text.

    Raises:
        UsageError: If the tokenizer fails, or goes over the limits on time or memory.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:  # a tokenizer written in Python
        return [list(tokenizer.encode(t, add_special_tokens=add_special_tokens)) for t in texts]
    options = [bool(tokenizer.split_special_tokens), add_special_tokens]
    found: list[list[int]] = []
    while len(found) < len(texts):
        sizes = accumulate(map(len, texts[len(found) :]))
        count = max(1, sum(1 for _ in takewhile(lambda size: size <= REQUEST, sizes)))
        part = texts[len(found) : len(found) + count]
        answer, ids = _process.ask("tokenizer", partial(_tokenizing, backend, part, options))
        if "failed" in answer:
            raise UsageError(f"the model's tokenizer fails: {answer['failed']}")
        found += [ids[a:b] for a, b in pairwise(accumulate(answer["lengths"], initial=0))]
    return found


def _tokenizing(backend: Any, texts: Sequence[str], options: list[bool]) -> list[Any]:
    return [*_process.load(backend), texts, *options]


def _refusal(reason: str) -> DataError:
    reason = " ".join(reason.split())[:300]
    return DataError(f"the chat template refuses the conversation: {reason}")


class _Process:
    """The process, seen from the one that asks."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.owner, self.used, self.allowed = 0, 0.0, 0
        self.process: subprocess.Popen[bytes] | None = None
        self.line: Connection | None = None
        self.loaded: WeakKeyDictionary[Any, int] = WeakKeyDictionary()

    def ask(self, kind: str, request: Callable[[], list[Any]]) -> tuple[Any, list[int]]:
        """Its answer, and ids that come with it; `request` is called once the process is there."""
        a_second, bytes_each = RATES[kind]
        with self.lock:
            line, process = self.begin()
            try:
                content = json.dumps([kind, *request()]).encode()
                seconds = SECONDS + len(content) // a_second
                memory = MEMORY + len(content) * bytes_each
                line.send_bytes(json.dumps([seconds, memory]).encode())
                line.send_bytes(content)
                self.allowed = max(self.allowed, memory)  # what was freed may still be resident
                while not line.poll(LOOK_EVERY):
                    if _resident(process.pid) > self.allowed + MEMORY:
                        process.kill()
                answer, ids = json.loads(line.recv_bytes()), array("i", line.recv_bytes())
                self.used = time.monotonic()
                return answer, ids.tolist()
            except (EOFError, OSError):
                code = process.wait()
                self.end()
            except BaseException:  # whatever it would still answer, nobody waits for it
                self.end()
                raise
        if code >= 0:
            see = f"run it with {sys.executable} to see why"
            raise MlxDpoError(f"{PROGRAM}: ended with exit code {code}; {see}")
        raise UsageError(
            f"the model's {kind} was ended: it may compute for {seconds} s, take {memory >> 20} "
            "MiB and write a million characters a conversation; one that needs more is broken or "
            "hostile: look at the folder's chat_template.jinja, tokenizer_config.json and "
            "tokenizer.json, or choose another model"
        )

    def begin(self) -> tuple[Connection, "subprocess.Popen[bytes]"]:
        """The process there is, unless it may be about to end; else a new one."""
        is_ours = self.owner == os.getpid() and time.monotonic() - self.used < IDLE / 2
        if is_ours and self.line and self.process and self.process.poll() is None:
            return self.line, self.process
        self.end()
        self.line, theirs = Pipe()
        with theirs:
            self.process = subprocess.Popen(
                # -P: modules are looked for where this program finds them, and not beside the file
                [sys.executable, "-P", str(PROGRAM), str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))},
                start_new_session=True,  # Ctrl-C is for the command that asks
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        self.owner, self.used = os.getpid(), time.monotonic()
        return self.line, self.process

    def load(self, backend: Any) -> tuple[int, str | None]:
        """What a request calls a tokenizer, and its JSON where the process has it not yet."""
        size = backend.get_vocab_size()  # tokens may have been added to it
        is_loaded = self.loaded.get(backend) == size
        self.loaded[backend] = size
        return id(backend), None if is_loaded else backend.to_str()

    def end(self) -> None:
        """End the process, if there is one and it is ours."""
        if self.process is not None and self.owner == os.getpid():
            self.process.kill()
            self.process.wait()
        if self.line is not None:
            self.line.close()
        self.process = self.line = None
        self.allowed = 0
        self.loaded.clear()


_process = _Process()
end = _process.end
atexit.register(end)


def _resident(pid: int) -> int:
    """Bytes of memory a process has, for systems that don't limit it; 0 where that is not known."""
    with suppress(OSError, ValueError):
        command = ["ps", "-o", "rss=", "-p", str(pid)]
        return 1024 * int(subprocess.run(command, capture_output=True, check=False).stdout)
    return 0


# What follows runs in the process.


def serve(line: Connection) -> None:
    """Answer requests until the other side closes, or sends none for `IDLE` seconds."""
    from tokenizers import Tokenizer, models
    from transformers.utils import chat_template_utils

    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # of `_limit`; a parent may have it ignored
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    Tokenizer(models.BPE()).encode_batch_fast(["", ""])  # starts threads, whose memory is no text's
    loaded: dict[int, Tokenizer] = {}

    def write(chat: list[dict[str, str]], **options: Any) -> str:
        if not chat:
            raise ValueError("it has no turns")
        ((text,), _) = chat_template_utils.render_jinja_template([chat], **options)
        if len(text) > 1_000_000 + 16 * sum(len(turn["content"]) for turn in chat):
            raise MemoryError
        _check_whole([text])
        return str(text)

    def ids_of(
        number: int, source: str | None, texts: list[str], splits: bool, adds: bool
    ) -> list[list[int]]:
        _check_whole(texts)
        if source is not None:
            loaded[number] = Tokenizer.from_str(source)
            loaded[number].no_truncation()
            loaded[number].no_padding()
        loaded[number].encode_special_tokens = splits
        encodings = loaded[number].encode_batch_fast(texts, add_special_tokens=adds)
        return [encoding.ids for encoding in encodings]

    while line.poll(IDLE):
        _limit(*json.loads(line.recv_bytes()))
        kind, *arguments = json.loads(line.recv_bytes())
        answer: Any
        ids: list[list[int]] = []
        try:
            if kind == "tokenizer":
                ids = ids_of(*arguments)
                answer = {"lengths": list(map(len, ids))}
            else:
                template, chats, options, date = arguments
                vars(chat_template_utils)["datetime"] = _clock(date)  # strftime_now reads it
                answer = _written(partial(write, chat_template=template), chats, options)
            content, numbers = json.dumps(answer).encode(), array("i", chain.from_iterable(ids))
        except MemoryError:
            os.abort()
        except BaseException as error:  # panics of tokenizers' Rust are no Exception
            content, numbers = json.dumps({"failed": str(error)[:300]}).encode(), array("i")
        line.send_bytes(content)
        line.send_bytes(numbers.tobytes())


def _check_whole(texts: list[str]) -> None:
    """Refuse texts with half of a surrogate pair, which no tokenizer takes.

    Raises:
        ValueError: If there is one.
    """
    if any("\ud800" <= c <= "\udfff" for text in texts for c in set(text)):
        raise ValueError("half of a surrogate pair in the text")


def _clock(date: str | None) -> Any:
    """What stands for the class `datetime`: it is always midnight of one day."""
    if date is None:
        return datetime
    return SimpleNamespace(now=lambda *_: datetime.fromisoformat(date))


def _written(
    write: Callable[..., str], chats: list[list[dict[str, str]]], options: dict[str, Any]
) -> list[dict[str, str]]:
    answers = []
    for chat in chats:
        try:
            answers.append({"text": write(chat, **options)})
        except MemoryError:
            raise
        except Exception as error:  # a template is a program, and can fail in any way
            answers.append({"refused": str(error)[:1000] or type(error).__name__})
    return answers


def _limit(seconds: int, memory: int) -> None:
    """The kernel ends this process when its processor time is used up; memory is refused it."""
    # Not RLIMIT_CPU: it counts from the process's begin, on some kernels a quarter too fast.
    signal.setitimer(signal.ITIMER_PROF, seconds)
    if sys.platform == "linux":  # where it is not kept, the other side looks
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        value = pages * resource.getpagesize() + memory
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        soft = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


if __name__ == "__main__":
    with suppress(EOFError), Connection(int(sys.argv[1])) as asking:
        serve(asking)

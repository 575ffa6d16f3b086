"""The process that renders chat templates for `mlx_dpo.preferences.templates`."""

import json
import math
import resource
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any


class TooLongError(Exception):
    """A text is longer than any conversation becomes by its markers."""


def main(handle: int) -> None:
    """Answer requests until the other side closes."""
    from transformers.utils.chat_template_utils import render_jinja_template

    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    with Connection(handle) as line:
        while True:
            try:
                request = line.recv_bytes()
            except EOFError:
                return
            try:
                answer = _answer(render_jinja_template, *json.loads(request))
            except (MemoryError, TooLongError):
                answer = b'[{"limit": ""}]'
            line.send_bytes(answer)


def _answer(
    render: Any,
    template: str,
    conversations: list[list[dict[str, str]]],
    variables: dict[str, Any],
    seconds: int,
    memory: int,
) -> bytes:
    """For each conversation its text or why it was refused, as JSON."""
    _limit(seconds, memory)
    return json.dumps(
        [_one(render, template, turns, variables) for turns in conversations]
    ).encode()


def _one(
    render: Any, template: str, turns: list[dict[str, str]], variables: dict[str, Any]
) -> dict[str, str]:
    if not turns:
        return {"refused": "it has no turns"}
    try:
        ((text,), _) = render([turns], chat_template=template, **variables)
    except MemoryError:
        raise
    except Exception as error:  # a template is a program, and can fail in any way
        return {"refused": str(error)[:1000] or type(error).__name__}
    if len(text) > 1_000_000 + 16 * sum(len(turn["content"]) for turn in turns):
        raise TooLongError
    return {"text": text}


def _limit(seconds: int, memory: int) -> None:
    """The kernel ends this process when its processor time is used up; memory is refused it."""
    _set(resource.RLIMIT_CPU, math.ceil(time.process_time()) + seconds)
    if sys.platform == "linux":  # where it is not kept, the other side looks
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        _set(resource.RLIMIT_AS, pages * resource.getpagesize() + memory)


def _set(limit: int, value: int) -> None:
    hard = resource.getrlimit(limit)[1]
    soft = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(limit, (soft, hard))


if __name__ == "__main__":
    main(int(sys.argv[1]))

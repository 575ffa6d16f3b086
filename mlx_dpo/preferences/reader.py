"""Read a preference file: every row checked, every error with its file and line."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlx_dpo.errors import DataError, UsageError
from mlx_dpo.records import Message, Preference


def read_preferences(path: str | Path) -> list[Preference]:
    """Read a JSON array or JSON lines of preference pairs.

    A row is an object with ``prompt`` (or ``user``), ``chosen``, ``rejected`` and optionally
    ``kind`` and ``id``. Texts are plain strings without markers, or lists of
    ``{"role": ..., "content": ...}`` messages. Without ``prompt``, message lists that begin with
    the same turns share those as their prompt.

    Args:
        path: A ``.json`` or ``.jsonl`` file; which of the two it is, is read off its first byte.

    Returns:
        The rows in the order of the file.

    Raises:
        UsageError: If there is no such file.
        DataError: If the file or a row can't be used; the message begins with file and line (row
            for arrays).
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        reasons = {FileNotFoundError: "no such file", IsADirectoryError: "is a folder"}
        reason = reasons.get(type(error), f"not readable: {error.strerror}")
        raise UsageError(f"{path}: {reason}; pairs are a .json or .jsonl file") from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8"
        ) from None
    if not text.strip():
        raise DataError(f"{path}: the file is empty; it needs at least one preference pair")
    rows = _array_rows(path, text) if text.lstrip().startswith("[") else _json_lines(path, text)
    preferences = [_preference(place, row, number) for number, (place, row) in enumerate(rows, 1)]
    if not preferences:
        raise DataError(f"{path}: no pairs in the file; it needs at least one")
    return preferences


def _array_rows(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _not_json(path, 0, error) from None
    for number, row in enumerate(rows, 1):
        yield f"{path}: row {number}", row


def _json_lines(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    # Not splitlines(): it also breaks at U+2028, which JSON allows inside a string.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield f"{path}:{number}", json.loads(line)
            except (ValueError, RecursionError) as error:
                raise _not_json(path, number - 1, error) from None


def _not_json(path: Path, lines_before: int, error: ValueError | RecursionError) -> DataError:
    if isinstance(error, json.JSONDecodeError):
        return DataError(
            f"{path}:{lines_before + error.lineno}: not JSON: {error.msg} (column {error.colno}); "
            "the file is a JSON array of objects, or one object a line"
        )
    reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
    return DataError(f"{path}:{lines_before + 1}: not usable JSON: {reason}")


def _preference(place: str, row: Any, number: int) -> Preference:
    if not isinstance(row, dict):
        raise DataError(f"{place}: expected an object, found {type(row).__name__}")
    if "prompt" in row and "user" in row:
        raise DataError(f"{place}: has both 'prompt' and 'user'; keep one")
    missing = [key for key in ("chosen", "rejected") if key not in row]
    if missing:
        raise DataError(f"{place}: key {missing[0]!r} is missing; found {sorted(row)[:10]}")
    chosen = _messages(place, "chosen", row["chosen"], role="assistant")
    rejected = _messages(place, "rejected", row["rejected"], role="assistant")
    prompt_key = "user" if "user" in row else "prompt"
    if prompt_key in row:
        prompt = _messages(place, prompt_key, row[prompt_key], role="user")
    else:
        prompt, chosen, rejected = _split_shared_turns(place, chosen, rejected)
    return Preference(
        prompt,
        chosen,
        rejected,
        kind=_text(place, "kind", row.get("kind", "")),
        id=_text(place, "id", row.get("id", str(number))),
    )


def _messages(place: str, key: str, value: Any, role: str) -> tuple[Message, ...]:
    if isinstance(value, str):
        return (Message(role, _text(place, key, value)),)
    if not isinstance(value, list) or not value:
        raise DataError(f"{place}: {key!r} must be a string or a list of messages")
    for turn in value:
        if not isinstance(turn, dict) or not {"role", "content"} <= set(turn):
            raise DataError(f"{place}: {key!r}: a message needs 'role' and 'content'")
    return tuple(
        Message(_text(place, key, turn["role"]), _text(place, key, turn["content"]))
        for turn in value
    )


def _text(place: str, key: str, value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and key == "id":
        return str(value)
    if not isinstance(value, str):
        raise DataError(f"{place}: {key!r} must be text, found {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise DataError(f"{place}: {key!r} holds half of a surrogate pair") from None
    return value


def _split_shared_turns(
    place: str, chosen: tuple[Message, ...], rejected: tuple[Message, ...]
) -> tuple[tuple[Message, ...], tuple[Message, ...], tuple[Message, ...]]:
    """Prompt = the turns both dialogues begin with. Whole turns, never a part of one."""
    shared = 0
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    if shared == 0:
        raise DataError(f"{place}: key 'prompt' (or 'user') is missing")
    return chosen[:shared], chosen[shared:], rejected[shared:]

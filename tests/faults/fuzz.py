"""Preference files with mistakes nobody thought of, made from a number and tried.

    python -m tests.faults.fuzz structured 37

tries one again and prints it. Nothing is random but the number.
"""

import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mlx_dpo.convert.sources import load_tokenizer
from mlx_dpo.errors import MlxDpoError
from mlx_dpo.preferences.chat import chat_format
from mlx_dpo.preferences.encoding import Tokenizing, ingest
from mlx_dpo.preferences.schema import CODES, LEVELS, Problems

ORACLE = Path(__file__).parent.parent / "oracle" / "llama" / "model"
MAX_LENGTH = 60
TEXTS = [
    "",
    " ",
    "Yes.",
    "No.",
    "a" * 300,
    "<|end|>",
    "\u0007",
    "é🙂\u2028",
    "NaN",
    '"chosen"',
    "{}",
]
RAW = ["NaN", "-Infinity", '"\\ud83d"', "1e999", "9" * 5000, "[" * 2000, "tru", "", '"open', "\x00"]
KEYS = ["user", "prompt", "chosen", "rejected", "kind", "id", "chosne", "größe", ""]
BYTES = [b"\xff", b"\xef\xbb\xbf", b"\x00", b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b"\n"]


def some_value(rng: random.Random) -> Any:
    """What may stand where a text belongs."""
    turns = [{"role": rng.choice(["user", "assistant", "system", ""]), "content": "Hi"}]
    return rng.choice(
        [*TEXTS, None, True, 1, 1.5, [], {}, turns, turns * 3, [1], [{"role": 1, "content": 2}]]
    )


def some_row(rng: random.Random) -> str:
    """A row, mostly with one thing wrong with it."""
    row = {key: rng.choice(TEXTS) for key in ("user", "chosen", "rejected")}
    fate = rng.randrange(8)
    if fate == 0:
        row.pop(rng.choice(sorted(row)))
    if fate in (1, 2):
        row[rng.choice(KEYS)] = some_value(rng)
    if fate == 3:
        return json.dumps(some_value(rng))
    text = json.dumps(row, ensure_ascii=rng.random() < 0.5)
    if fate == 4:
        return text.replace(json.dumps(rng.choice(TEXTS)), rng.choice(RAW))
    if fate == 5:
        return text[:-1] + f', "{rng.choice(KEYS)}": {rng.choice(RAW)}}}'
    return text


def structured(rng: random.Random) -> bytes:
    """Rows with mistakes in an array or in lines."""
    rows = [some_row(rng) for _ in range(rng.randrange(8))]
    whole = f"[{', '.join(rows)}]" if rng.random() < 0.5 else "\n".join(rows)
    return whole.encode("utf-8", "surrogatepass")


def mutated(rng: random.Random) -> bytes:
    """The same with bytes changed."""
    content = bytearray(structured(rng))
    for _ in range(rng.randrange(1, 5)):
        at = rng.randrange(len(content) + 1)
        fate = rng.randrange(4)
        if fate == 0:
            content[at:at] = rng.choice(BYTES)
        elif fate == 1:
            del content[at : at + rng.randrange(1, 9)]
        elif fate == 2 and at < len(content):
            content[at] ^= 1 << rng.randrange(8)
        else:
            content[at:at] = content[: rng.randrange(20)]
    return bytes(content)


def account(file: Path, with_model: Tokenizing | None) -> tuple[int, int, dict[str, int]] | None:
    """What becomes of a file, checked; None where it is refused as a whole."""
    problems = Problems()
    try:
        found = ingest(file, problems, with_model)
    except MlxDpoError:
        return None
    assert found.read == found.kept + found.dropped.total()
    assert found.dropped.keys() <= set(CODES)
    told = {problem.code for problem in problems.shown()}
    assert told <= problems.counts.keys()
    if found.dropped:  # nothing is lost without a problem that says so
        assert any(LEVELS[code] != "warning" for code in problems.counts)
    for problem in problems.shown():
        assert problem.line >= 1
        assert problem.column >= 1
        assert "\n" not in str(problem).replace(str(file), "")
    return found.read, found.kept, dict(found.dropped)


KINDS: dict[str, Callable[[random.Random], bytes]] = {"mutated": mutated, "structured": structured}


def tokenizing() -> Tokenizing:
    """A real model's template and tokenizer, and a length that cuts some pairs."""
    return Tokenizing(chat_format(load_tokenizer(ORACLE)), MAX_LENGTH)


def attempt(file: Path, kind: str, number: int, with_model: Tokenizing) -> None:
    """Check one file with a model and without.

    Raises:
        AssertionError: If a row is neither kept nor counted.
    """
    content = KINDS[kind](random.Random(number))
    file.write_bytes(content)
    try:
        account(file, with_model)
        account(file, None)
    except BaseException as error:
        error.add_note(f"python -m tests.faults.fuzz {kind} {number}: {content[:2000]!r}")
        raise


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        place = Path(folder) / "pairs.json"
        attempt(place, sys.argv[1], int(sys.argv[2]), tokenizing())
        print(place.read_bytes())

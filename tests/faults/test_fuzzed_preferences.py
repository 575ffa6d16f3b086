"""Preference files with mistakes nobody thought of: no traceback, and the sum always right.

`MLX_DPO_FAULTS` is the number of files for each test. A file is made from its number, which a
failure names; nothing else is random.
"""

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest

from mlx_dpo.errors import MlxDpoError
from mlx_dpo.preferences import arrays
from mlx_dpo.preferences.ingest import Tokenising, ingest
from mlx_dpo.preferences.problems import CODES, LEVELS, Problems
from mlx_dpo.preferences.tokens import chat_format
from mlx_dpo.runs.sources import load_tokenizer
from tests.runs.conftest import ORACLE

SIZE = int(os.environ.get("MLX_DPO_FAULTS", "150"))
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


@pytest.fixture(scope="module")
def tokenising() -> Tokenising:
    return Tokenising(chat_format(load_tokenizer(ORACLE)), 60)


def some_value(rng: random.Random) -> Any:
    turns = [{"role": rng.choice(["user", "assistant", "system", ""]), "content": "Hi"}]
    return rng.choice(
        [*TEXTS, None, True, 1, 1.5, [], {}, turns, turns * 3, [1], [{"role": 1, "content": 2}]]
    )


def some_row(rng: random.Random) -> str:
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
    rows = [some_row(rng) for _ in range(rng.randrange(8))]
    whole = f"[{', '.join(rows)}]" if rng.random() < 0.5 else "\n".join(rows)
    return whole.encode("utf-8", "surrogatepass")


def mutated(rng: random.Random) -> bytes:
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


def account(file: Path, tokenising: Tokenising | None) -> tuple[int, int, dict[str, int]] | None:
    """What becomes of a file, checked; None where it is refused as a whole."""
    problems = Problems()
    try:
        found = ingest(file, problems, tokenising)
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


@pytest.mark.parametrize("make", [structured, mutated])
def test_every_row_of_a_fuzzed_file_is_kept_or_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenising: Tokenising, make: Any
) -> None:
    file = tmp_path / "pairs.json"
    for seed in range(SIZE):
        content = make(random.Random(seed))
        file.write_bytes(content)
        try:
            account(file, tokenising)
            monkeypatch.setattr(arrays, "_BLOCK", 1 << 18)
            whole = account(file, None)
            monkeypatch.setattr(arrays, "_BLOCK", 1 + seed % 50)
            assert account(file, None) == whole
        except BaseException as error:
            error.add_note(f"file {seed} of {make.__name__}: {content[:2000]!r}")
            raise

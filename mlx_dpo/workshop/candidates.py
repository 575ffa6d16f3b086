"""Candidates: prompts with the answers somebody has to choose between, a JSON object a line.

    {"id": "p-3fb0a1c2", "kind": "tone", "prompt": "I am late.",
     "answers": [{"text": "Come in.", "finished": true, "model": "tiny-sft",
                  "weights": "5b1f...", "seed": 0, "temperature": 0.8}, ...],
     "sampling": {"model": "checkpoints/tiny-sft", "max_tokens": 128, "mlx": "0.32.4", ...}}

``prompt`` is plain text or a list of messages. Only ``prompt`` is required: a file of prompts is
a file of candidates without answers, and an answer may be plain text. A row with ``chosen`` and
``rejected`` is a pair: a prompt to sample from, with nothing left to choose.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

from mlx_dpo.errors import DataError, UsageError
from mlx_dpo.paths import text_of
from mlx_dpo.preferences.context import outside_prompt
from mlx_dpo.preferences.json_text import Finding, RawRow, not_readable, raw_rows
from mlx_dpo.preferences.reader import json_line, plain, refuse_errors, text_digest
from mlx_dpo.preferences.schema import (
    ERROR,
    LEVELS,
    Problem,
    Problems,
    read_messages,
    read_text,
)
from mlx_dpo.records import Message

_TYPES: dict[str, tuple[type, ...]] = {  # of an answer's keys beside its text
    "finished": (bool,),
    "model": (str,),
    "weights": (str,),
    "seed": (int, type(None)),
    "temperature": (int, float, type(None)),
}


@dataclass(frozen=True, slots=True)
class Candidate:
    """One answer to a prompt. What the file does not say of it is "" or None."""

    text: str  # without markers
    finished: bool = True  # False if a token limit cut it off
    model: str = ""  # name of the model that wrote it
    weights: str = ""  # digest of that model's weights and configuration
    seed: int | None = None  # it was sampled with
    temperature: float | None = None  # it was sampled with


@dataclass(frozen=True, slots=True)
class Candidates:
    """A prompt and the answers to it: a row of the file."""

    id: str  # the row's own, or else `prompt_id`
    prompt: tuple[Message, ...]
    kind: str = ""  # what a choice among the answers teaches
    answers: tuple[Candidate, ...] = ()
    sampling: dict[str, Any] = field(default_factory=dict)  # the settings of all answers
    is_pair: bool = False  # the row is a preference pair, whose answers are not read

    def different(self) -> list[Candidate]:
        """The answers that are not blank, each text once."""
        return list({each.text: each for each in self.answers if each.text.strip()}.values())


class Contest(NamedTuple):
    """Two different answers of a row, to choose between."""

    id: str  # of the pair that the choice makes
    row: Candidates
    first: Candidate
    second: Candidate


def contests_of(row: Candidates) -> list[Contest]:
    """Every two different answers of a row."""
    couples = list(combinations(row.different(), 2))
    if len(couples) == 1:
        return [Contest(row.id, row, *couples[0])]
    return [Contest(f"{row.id}-{number}", row, *two) for number, two in enumerate(couples, 1)]


class Origin(NamedTuple):
    """The model that answers were sampled from, as it was named to `data sample`."""

    model: str  # folder or hub id; "" where the row does not say
    adapter: str = ""  # folder of the adapter on it


def origins_of(rows: Iterable[Candidates]) -> list[Origin]:
    """Where the answers of some rows are from, each origin once."""
    return list(dict.fromkeys(_origin(row) for row in rows if row.answers))


def _origin(row: Candidates) -> Origin:
    names = [row.sampling.get(key, "") for key in Origin._fields]
    # The name becomes part of a command to paste.
    if all(isinstance(name, str) and name.isprintable() for name in names):
        return Origin(*names)
    return Origin("")


def prompt_id(prompt: tuple[Message, ...]) -> str:
    """The id of a row without one of its own: equal prompts have equal ids."""
    return f"p-{blake2b(text_digest(prompt), digest_size=6).hexdigest()}"


def load_candidates(path: str | Path, *, unique: bool = True) -> list[Candidates]:
    """All rows of a file of candidates or prompts, in memory.

    Args:
        path: A JSON array or JSON lines.
        unique: Whether a second row with the same id is an error.

    Raises:
        UsageError: If there is no such file.
        DataError: If a row can't be read, or there is none; the message has the first problem.
    """
    path, problems, ids, raw = Path(path), Problems(), dict[str, int](), None
    rows: list[Candidates] = []
    for raw in raw_rows(path):
        findings: list[Finding] = list(raw.findings)
        row = None if _has_errors(findings) else _parse(raw, findings)
        if row is not None:
            rows.append(row)
            # Several pairs may be of one prompt; an id follows from it.
            same_id = raw.number if row.is_pair else ids.setdefault(row.id, raw.number)
            if unique and same_id != raw.number:
                reason = f"id {row.id!r:.60} is that of row {same_id} too"
                hint = "merge the two, or remove one"
                findings.append(Finding("duplicate-id", "id", reason, hint))
        for finding in findings:
            code, _, reason, hint = finding
            code = "wrong-type" if code == "unsupported" else code  # no prompt is left out
            problems.add(Problem(str(path), *raw.place(finding), raw.number, code, reason, hint))
    if raw is None:
        raise DataError(f"{path}: holds no candidates; `mlx_dpo data sample` makes some")
    refuse_errors(problems, raw.number)
    return rows


def load_prompts(path: str | Path, *, unique: bool = True) -> list[Candidates]:
    """The same, where a ``.txt`` file is read too: a prompt a line, without answers.

    Raises:
        UsageError: If there is no such file.
        DataError: If a row can't be read, or there is none.
    """
    path = Path(path)
    if path.suffix != ".txt":
        return load_candidates(path, unique=unique)
    try:
        text = text_of(path, DataError)
    except OSError as error:
        raise not_readable(path, error) from None
    lines = [(Message("user", line.strip()),) for line in text.split("\n") if line.strip()]
    if not lines:
        raise UsageError(f"{path}: holds no prompt")
    return [Candidates(prompt_id(line), line) for line in lines]


def candidates_line(candidates: Candidates) -> str:
    """Candidates as a line of JSON, with its line break. Equal candidates have equal bytes."""
    row: dict[str, Any] = {"id": candidates.id}
    if candidates.kind:
        row["kind"] = candidates.kind
    row["prompt"] = plain(candidates.prompt, "user")
    row["answers"] = [_answer_object(answer) for answer in candidates.answers]
    if candidates.sampling:
        row["sampling"] = candidates.sampling
    return json_line(row)


def _answer_object(answer: Candidate) -> dict[str, Any]:
    fields = {"text": answer.text, "finished": answer.finished}
    optional = {key: getattr(answer, key) for key in ("model", "weights", "seed", "temperature")}
    return fields | {key: value for key, value in optional.items() if value not in ("", None)}


def _has_errors(findings: list[Finding]) -> bool:
    return any(LEVELS[finding.code] == ERROR for finding in findings)


def _parse(raw: RawRow, findings: list[Finding]) -> Candidates | None:
    """A row as candidates; None if it is not usable, and `findings` get the reasons."""
    row = raw.value
    if not isinstance(row, dict):
        findings.append(Finding("not-object", 0, "expected an object with a 'prompt'"))
        return None
    key = "user" if "user" in row else "prompt"
    prompt = read_messages(row, key, "user", findings)
    if key not in row:
        findings.append(Finding("missing-key", 0, "key 'prompt' is missing"))
    outside = outside_prompt(row)
    if prompt and prompt[-1].role == "assistant":
        reason = f"{key!r} ends with the assistant's turn, and an answer begins a second one"
        hint = "end it with the turn that is to be answered"
        outside.append(Finding("wrong-type", key, reason, hint))
    if outside:
        findings += outside
        prompt = None
    kind = read_text(row.get("kind", ""), "kind", findings)
    answers = _parse_answers(row.get("answers", []), findings)
    sampling = row.get("sampling", {})
    if not isinstance(sampling, dict):
        findings.append(Finding("wrong-type", "sampling", "'sampling' must be an object"))
    if prompt is None or kind is None or answers is None or not isinstance(sampling, dict):
        return None
    own_id = row.get("id", prompt_id(prompt))
    name = read_text(str(own_id) if type(own_id) is int else own_id, "id", findings)
    is_pair = not answers and {"chosen", "rejected"} <= row.keys()
    return None if name is None else Candidates(name, prompt, kind, answers, sampling, is_pair)


def _parse_answers(value: Any, findings: list[Finding]) -> tuple[Candidate, ...] | None:
    if not isinstance(value, list):
        findings.append(Finding("wrong-type", "answers", "'answers' must be a list"))
        return None
    parsed = [_parse_answer(entry, number, findings) for number, entry in enumerate(value, 1)]
    answers = tuple(answer for answer in parsed if answer is not None)
    return answers if len(answers) == len(parsed) else None


def _parse_answer(value: Any, number: int, findings: list[Finding]) -> Candidate | None:
    row = {"text": value} if isinstance(value, str) else value
    if not isinstance(row, dict) or "text" not in row:
        reason = f"answer {number} must be text, or an object with 'text'"
        findings.append(Finding("wrong-type", "answers", reason))
        return None
    answer = Candidate(row["text"], **{key: row[key] for key in _TYPES if key in row})
    own: list[Finding] = []
    read_text(answer.text, "text", own)
    for key, types in _TYPES.items():
        if type(getattr(answer, key)) not in types:
            reason = f"{key!r} of answer {number} can't be {getattr(answer, key)!r:.40}"
            own.append(Finding("wrong-type", key, reason))
    findings += own
    return None if _has_errors(own) else answer

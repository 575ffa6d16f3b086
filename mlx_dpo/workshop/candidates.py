"""Candidates: prompts with the answers somebody has to choose between, a JSON object a line.

    {"id": "p-3fb0a1c2", "kind": "tone", "prompt": "I am late.",
     "answers": [{"text": "Come in.", "finished": true, "model": "checkpoints/tiny-sft",
                  "weights": "5b1f...", "seed": 0, "temperature": 0.8}, ...],
     "sampling": {"batch": 8, "max_tokens": 128, "mlx": "0.32.4", ...}}

``prompt`` is plain text or a list of messages. Only ``prompt`` must be there: a file of prompts is
a file of candidates without answers, and an answer may be plain text.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

from mlx_dpo.errors import DataError
from mlx_dpo.preferences.json_text import Finding, RawRow, raw_rows
from mlx_dpo.preferences.reader import json_line, plain, refuse_errors, text_digest
from mlx_dpo.preferences.schema import ERROR, LEVELS, Problem, Problems, read_messages, read_text
from mlx_dpo.records import Message


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer to a prompt.

    Attributes:
        text: Without markers.
        finished: Whether its writer ended it; False where a token limit cut it off.
        model: Whose it is; "" when the file does not say.
        weights: Digest of the model's weights and configuration.
        seed: What it was sampled with; None where it was not sampled.
        temperature: The same.
    """

    text: str
    finished: bool = True
    model: str = ""
    weights: str = ""
    seed: int | None = None
    temperature: float | None = None


@dataclass(frozen=True, slots=True)
class Candidates:
    """A prompt and answers to it.

    Attributes:
        id: Its own, or one that follows from the prompt.
        prompt: Turns up to the answer.
        kind: What a choice among them teaches; "" when the file does not say.
        answers: In the order of the file; possibly none.
        sampling: How they were made, beyond what each answer says.
    """

    id: str
    prompt: tuple[Message, ...]
    kind: str = ""
    answers: tuple[Answer, ...] = ()
    sampling: dict[str, Any] = field(default_factory=dict)

    @property
    def question(self) -> str:
        """Text of the last turn of the prompt, to show a person."""
        return self.prompt[-1].content if self.prompt else ""


def prompt_id(prompt: tuple[Message, ...]) -> str:
    """The id of a prompt that has none of its own: equal prompts have equal ids."""
    return f"p-{blake2b(text_digest(prompt), digest_size=6).hexdigest()}"


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


def load_candidates(path: str | Path) -> list[Candidates]:
    """All rows of a file, in memory.

    Raises:
        UsageError: If there is no such file.
        DataError: If there is a row that can't be read, or none at all.
    """
    problems = Problems()
    rows = list(read_candidates(path, problems))
    refuse_errors(problems, len(rows) + problems.num_errors)
    return rows


def read_candidates(
    path: str | Path, problems: Problems, *, unique: bool = True
) -> Iterator[Candidates]:
    """The usable rows of a file of candidates or prompts, one at a time.

    Args:
        path: A JSON array or JSON lines.
        problems: Told of everything that is wrong, with the codes of preference files.
        unique: Whether a second row with the same id is wrong.

    Raises:
        UsageError: If there is no such file.
        DataError: If it holds no row at all.
    """
    path, ids, raw = Path(path), dict[str, int](), None
    for raw in raw_rows(path):
        found: list[Finding] = list(raw.findings)
        row = None if _has_errors(found) else _candidates(raw, found)
        if row is not None:
            same_id = ids.setdefault(row.id, raw.number)
            if unique and same_id != raw.number:
                reason = f"id {row.id!r:.60} is that of row {same_id} too"
                found.append(Finding("duplicate-id", "id", reason, "merge the two, or remove one"))
        for finding in found:
            line, column = raw.place(finding)
            problems.add(Problem(str(path), line, column, raw.number, *_spoken(finding)))
        problems.cut_short |= raw.ends
        if row is not None and not _has_errors(found):
            yield row
    if raw is None:
        raise DataError(f"{path}: holds no candidates; `mlx_dpo data sample` makes some")


def _spoken(finding: Finding) -> tuple[str, str, str]:
    return finding.code, finding.reason, finding.hint


def _has_errors(found: list[Finding]) -> bool:
    return any(LEVELS[finding.code] == ERROR for finding in found)


def _candidates(raw: RawRow, found: list[Finding]) -> Candidates | None:
    row = raw.value
    if not isinstance(row, dict):
        found.append(Finding("not-object", 0, "expected an object with a 'prompt'"))
        return None
    key = "user" if "user" in row else "prompt"
    prompt = read_messages(row, key, "user", found)
    if key not in row:
        found.append(Finding("missing-key", 0, "key 'prompt' is missing"))
    kind = read_text(row.get("kind", ""), "kind", found)
    answers = _answers(row.get("answers", []), found)
    sampling = row.get("sampling", {})
    if not isinstance(sampling, dict):
        found.append(Finding("wrong-type", "sampling", "'sampling' must be an object"))
    if prompt is None or kind is None or answers is None or not isinstance(sampling, dict):
        return None
    own = row.get("id", prompt_id(prompt))
    name = read_text(str(own) if type(own) is int else own, "id", found)
    return None if name is None else Candidates(name, prompt, kind, answers, sampling)


def _answers(value: Any, found: list[Finding]) -> tuple[Answer, ...] | None:
    if not isinstance(value, list):
        found.append(Finding("wrong-type", "answers", "'answers' must be a list"))
        return None
    answers = [_answer(one, number, found) for number, one in enumerate(value, 1)]
    known = tuple(answer for answer in answers if answer is not None)
    return known if len(known) == len(answers) else None


def _answer(value: Any, number: int, found: list[Finding]) -> Answer | None:
    row = {"text": value} if isinstance(value, str) else value
    if not isinstance(row, dict) or "text" not in row:
        reason = f"answer {number} must be text, or an object with 'text'"
        found.append(Finding("wrong-type", "answers", reason))
        return None
    answer = Answer(
        text=row["text"],
        finished=row.get("finished", True),
        model=row.get("model", ""),
        weights=row.get("weights", ""),
        seed=row.get("seed"),
        temperature=row.get("temperature"),
    )
    before = len(found)
    read_text(answer.text, "text", found)
    for key, types in _TYPES.items():
        if type(getattr(answer, key)) not in types:
            reason = f"{key!r} of answer {number} can't be {getattr(answer, key)!r:.40}"
            found.append(Finding("wrong-type", key, reason))
    return None if any(LEVELS[new.code] == ERROR for new in found[before:]) else answer


_TYPES: dict[str, tuple[type, ...]] = {
    "finished": (bool,),
    "model": (str,),
    "weights": (str,),
    "seed": (int, type(None)),
    "temperature": (int, float, type(None)),
}


def _answer_object(answer: Answer) -> dict[str, Any]:
    row: dict[str, Any] = {"text": answer.text, "finished": answer.finished}
    for key in ("model", "weights", "seed", "temperature"):
        value = getattr(answer, key)
        if value not in ("", None):
            row[key] = value
    return row

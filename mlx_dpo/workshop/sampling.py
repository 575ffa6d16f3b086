"""Sampling answers: in batches, durably appended, continued where it was stopped.

Which prompts share a batch follows from the list of prompts alone, and each answer's chance from
its seed and its prompt. So the same command gives the same bytes, stopped in between or not.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_dpo.errors import DataError, UsageError
from mlx_dpo.files import append, cut_torn_line
from mlx_dpo.models.generate import Request, batches_exactly, generate_each, generate_together
from mlx_dpo.models.parameters import fingerprint
from mlx_dpo.preferences.chat import ChatFormat
from mlx_dpo.preferences.encoding import special_tokens
from mlx_dpo.preferences.json_text import not_readable
from mlx_dpo.preferences.reader import refuse_errors, text_digest
from mlx_dpo.preferences.schema import Problems
from mlx_dpo.records import Message
from mlx_dpo.workshop.candidates import (
    Answer,
    Candidates,
    candidates_line,
    load_candidates,
    prompt_id,
    read_candidates,
)

_ROW = b'{"id": '  # how each line begins that `candidates_line` writes


@dataclass(frozen=True, slots=True)
class Settings:
    """What is sampled.

    Attributes:
        num_answers: Answers a prompt, of which equal ones are kept once.
        temperatures: Of the first, second, ... answer, and over again. 0 takes the likeliest token.
        seed: Of the first answer; the next has the next number.
        max_tokens: Longest answer.
        batch_size: Answers that are made at once.
    """

    num_answers: int = 2
    temperatures: tuple[float, ...] = (1.0,)
    seed: int = 0
    max_tokens: int = 256
    batch_size: int = 16


@dataclass(frozen=True, slots=True)
class Author:
    """A model that answers.

    Attributes:
        model: The model.
        chat: Its conversation format.
        name: What the answers say it is.
    """

    model: nn.Module
    chat: ChatFormat
    name: str


class Session:
    """The answers of one model to one list of prompts, in one file.

    Args:
        author: Who answers.
        prompts: To what.
        settings: How.
        path: The file of candidates, possibly begun by an earlier session.

    Raises:
        UsageError: If the file holds something else.
        DataError: If it can't be read.
        DiskError: If it can't be written.
    """

    def __init__(
        self, author: Author, prompts: Sequence[Candidates], settings: Settings, path: Path
    ) -> None:
        self._author = author
        self._prompts = prompts
        self._settings = settings
        self._path = path
        self._weights = fingerprint(author.model)[:16]
        self._special = special_tokens(author.chat)
        self._ids = [author.chat.prompt_ids(row.prompt) for row in prompts]
        self.together = settings.batch_size > 1 and batches_exactly(author.model, self._ids)
        self._sampling = {
            **asdict(settings),
            "temperatures": list(settings.temperatures),
            "together": self.together,
            "device": mx.default_device().type.name,
            **{name: version(name) for name in ("mlx", "mlx-lm")},
        }
        self.begun = self._read_begun()

    @property
    def done(self) -> int:
        """Prompts that are answered."""
        return len(self.begun)

    def run(self, progress: Callable[[int], None] = lambda more: None) -> list[Candidates]:
        """Answer what is not answered yet.

        Args:
            progress: Told how many more prompts are answered.

        Returns:
            All rows of the file.
        """
        rows = self.begun
        for first, batch in self._batches():
            missing = first + len(batch) - len(rows)
            if missing > 0:
                # A batch is made whole even where the file has a part: its shape decides rounding.
                new = self._answer(first, batch)[len(batch) - missing :]
                append(self._path, "".join(map(candidates_line, new)))
                rows += new
                progress(missing)
        return rows

    def _batches(self) -> Iterator[tuple[int, list[Candidates]]]:
        size = max(1, self._settings.batch_size // self._settings.num_answers)
        rows = iter(self._prompts)
        first = 0
        while batch := list(islice(rows, size)):
            yield first, batch
            first += len(batch)

    def _answer(self, first: int, batch: list[Candidates]) -> list[Candidates]:
        settings, chat = self._settings, self._author.chat
        numbers = range(settings.num_answers)
        generate = generate_together if self.together else generate_each
        found = iter(
            generate(
                self._author.model,
                [
                    Request(ids, self._key(row, number), self._temperature(number))
                    for row, ids in zip(batch, self._ids[first:], strict=False)
                    for number in numbers
                ],
                stop_ids=chat.stop_ids,
                max_tokens=settings.max_tokens,
            )
        )
        return [self._candidates(row, [next(found) for _ in numbers]) for row in batch]

    def _candidates(self, prompt: Candidates, answers: list[list[int]]) -> Candidates:
        """Equal answers are one: nobody can choose between them.

        An answer in which the model wrote a token of the template, such as the beginning of
        another turn, is none: as text it could not be trained on.
        """
        chat, different = self._author.chat, dict[str, Answer]()
        for number, ids in enumerate(answers):
            finished = bool(ids) and ids[-1] in chat.stop_ids
            text = chat.tokenizer.decode(ids[:-1] if finished else ids).strip()
            if self._special is not None and self._special.search(text):
                continue
            answer = Answer(
                *(text, finished, self._author.name, self._weights),
                seed=self._settings.seed + number,
                temperature=self._temperature(number),
            )
            different.setdefault(text, answer)
        return Candidates(
            prompt.id, prompt.prompt, prompt.kind, tuple(different.values()), self._sampling
        )

    def _temperature(self, number: int) -> float:
        return self._settings.temperatures[number % len(self._settings.temperatures)]

    def _key(self, prompt: Candidates, number: int) -> int:
        """Different prompts must not share their luck, which the seed alone would make them do."""
        text = f"{self._settings.seed + number} {prompt.id}"
        return int.from_bytes(blake2b(text.encode(), digest_size=8).digest())

    def _read_begun(self) -> list[Candidates]:
        if not self._path.exists():
            return []
        self._refuse_foreign()
        cut_torn_line(self._path)
        if not self._path.stat().st_size:
            return []
        rows = load_candidates(self._path)
        expected = [prompt.id for prompt in self._prompts[: len(rows)]]
        if [row.id for row in rows] != expected:
            raise self._other("answers other prompts")
        for row in rows:
            models = {(answer.model, answer.weights) for answer in row.answers}
            if not models <= {(self._author.name, self._weights)}:
                raise self._other("was made with another model")
            if row.sampling != self._sampling:
                raise self._other(f"was made with other settings ({self._difference(row)})")
        return rows

    def _refuse_foreign(self) -> None:
        """Only a file of candidates may lose what looks like a torn line."""
        with self._path.open("rb") as file:
            for line in file:
                if not line.startswith(_ROW[: len(line)]):
                    raise self._other("holds something other than candidates")

    def _difference(self, row: Candidates) -> str:
        keys = {**row.sampling, **self._sampling}
        changed: list[tuple[str, Any, Any]] = [
            (key, row.sampling.get(key), self._sampling.get(key)) for key in keys
        ]
        return ", ".join(f"{key} {old}, now {new}" for key, old, new in changed if old != new)

    def _other(self, what: str) -> UsageError:
        return UsageError(
            f"{self._path}: is there and {what}; give another --out, or remove it to start over"
        )


# --- The prompts that are answered: each once, however often the
# file has it.


def read_prompts(path: str | Path) -> tuple[list[Candidates], int]:
    """The prompts of a file.

    Args:
        path: A ``.txt`` file with a prompt a line, or JSON rows with ``prompt`` (or ``user``): a
            list of prompts, of candidates or of preference pairs.

    Returns:
        The different prompts, without answers, in the order of the file; and how many rows it has.

    Raises:
        UsageError: If there is no such file.
        DataError: If a row can't be read, or there is none.
    """
    path = Path(path)
    rows = _lines(path) if path.suffix == ".txt" else _json_rows(path)
    seen: dict[bytes, Candidates] = {}
    for row in rows:
        # Ids of pairs are the pairs' own; those of prompts follow from their words.
        one = Candidates(prompt_id(row.prompt), row.prompt, row.kind)
        seen.setdefault(text_digest(row.prompt), one)
    return list(seen.values()), len(rows)


def _lines(path: Path) -> list[Candidates]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise not_readable(path, error) from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start} is not UTF-8; save it as UTF-8") from None
    lines = [line.strip() for line in text.split("\n")]
    rows = [Candidates("", (Message("user", line),)) for line in lines if line]
    if not rows:
        raise UsageError(f"{path}: holds no prompt")
    return rows


def _json_rows(path: Path) -> list[Candidates]:
    problems = Problems()
    rows = list(read_candidates(path, problems, unique=False))
    refuse_errors(problems, len(rows) + problems.num_errors)
    return rows

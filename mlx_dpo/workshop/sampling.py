"""Sampling answers: in batches, each on the disk before the next, resumed after a stop.

Which prompts share a batch follows from the list of prompts alone, and the random numbers of each
answer from its seed and its prompt. So the same command gives the same bytes, stopped or not.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_dpo.errors import UsageError
from mlx_dpo.models.adapters import whole_digest
from mlx_dpo.models.generate import Request, batches_exactly, generate_each, generate_together
from mlx_dpo.preferences.chat import ChatFormat
from mlx_dpo.preferences.encoding import special_tokens
from mlx_dpo.preferences.reader import text_digest
from mlx_dpo.workshop.candidates import (
    Candidate,
    Candidates,
    Origin,
    candidates_line,
    load_candidates,
    load_prompts,
    prompt_id,
)
from mlx_dpo.workshop.journal import LineFile

_ROW_START = b'{"id": '  # the first bytes of each line that `candidates_line` writes


@dataclass(frozen=True, slots=True)
class SamplingSettings:
    """How answers are sampled."""

    num_answers: int  # per prompt; equal ones are kept once
    temperatures: tuple[float, ...]  # of the first, second, ... answer; 0: greedy
    seed: int  # of the first answer; the next answer has the next number
    max_tokens: int  # longest answer
    batch_size: int  # answers sampled together


class Session:
    """The answers of one model to one list of prompts, in one file.

    Args:
        model: The model.
        chat: Its conversation format.
        name: Its name in the file of candidates.
        origin: Where it was loaded from, for the same file.
        prompts: The prompts, without answers.
        settings: How to sample.
        path: The file of candidates, possibly begun by an earlier session.

    Attributes:
        together: Whether the answers of a batch are sampled together; one by one if the model's
            caches can't be batched exactly.

    Raises:
        UsageError: If the file holds something else.
        DataError: If it can't be read.
        DiskError: If it can't be written.
        LockedError: If another process has it open.
    """

    def __init__(
        self,
        model: nn.Module,
        chat: ChatFormat,
        name: str,
        origin: Origin,
        prompts: Sequence[Candidates],
        settings: SamplingSettings,
        path: Path,
    ) -> None:
        self._model = model
        self._chat = chat
        self._name = name
        self._prompts = prompts
        self._settings = settings
        self._path = path
        self._weights = whole_digest(model)[:16]
        self._special = special_tokens(chat)
        self._ids = [chat.prompt_ids(row.prompt) for row in prompts]
        self.together = settings.batch_size > 1 and batches_exactly(model, self._ids)
        self._origin = {key: place for key, place in origin._asdict().items() if place}
        self._sampling = {
            **asdict(settings),
            "temperatures": list(settings.temperatures),
            "together": self.together,
            "device": mx.default_device().type.name,
            **{name: version(name) for name in ("mlx", "mlx-lm")},
        }
        self._lines = LineFile(path)
        try:
            self._rows = self._read_begun()
        except BaseException:
            self.close()
            raise

    @property
    def done(self) -> int:
        """Number of prompts that are answered."""
        return len(self._rows)

    def run(self, progress: Callable[[int], None] = lambda more: None) -> list[Candidates]:
        """Answer the prompts that are left; returns all rows of the file.

        `progress` is called after each batch with the number of prompts it answered.

        Raises:
            DiskError: If the file can't be written, or another program has changed it.
        """
        # Batches follow from the prompts alone, not from where a session was stopped.
        size = max(1, self._settings.batch_size // self._settings.num_answers)
        for first in range(0, len(self._prompts), size):
            batch = self._prompts[first : first + size]
            missing = first + len(batch) - self.done
            if missing > 0:
                # The whole batch, even if the file has a part of it: its shape decides rounding.
                new = self._answer(first, batch)[len(batch) - missing :]
                self._lines.append("".join(map(candidates_line, new)))
                self._rows += new
                progress(missing)
        return self._rows

    def close(self) -> None:
        """Let another session open the file."""
        self._lines.close()

    def _answer(self, first: int, batch: Sequence[Candidates]) -> list[Candidates]:
        numbers = range(self._settings.num_answers)
        asks = [
            Request(ids, self._key(row, number), self._temperature(number))
            for row, ids in zip(batch, self._ids[first:], strict=False)
            for number in numbers
        ]
        generate = generate_together if self.together else generate_each
        stop_ids, max_tokens = self._chat.stop_ids, self._settings.max_tokens
        answers = iter(generate(self._model, asks, stop_ids=stop_ids, max_tokens=max_tokens))
        return [self._candidates(row, [next(answers) for _ in numbers]) for row in batch]

    def _candidates(self, prompt: Candidates, answers: list[list[int]]) -> Candidates:
        """Each different answer once: nobody can choose between equal ones.

        An answer in which the model wrote a token of the template, such as the beginning of
        another turn, is left out: as text it could not be trained on.
        """
        chat, different = self._chat, dict[str, Candidate]()
        for number, ids in enumerate(answers):
            finished = bool(ids) and ids[-1] in chat.stop_ids
            text = chat.tokenizer.decode(ids[:-1] if finished else ids).strip()
            if self._special is not None and self._special.search(text):
                continue
            answer = Candidate(
                *(text, finished, self._name, self._weights),
                seed=self._settings.seed + number,
                temperature=self._temperature(number),
            )
            different.setdefault(text, answer)
        return Candidates(
            *(prompt.id, prompt.prompt, prompt.kind, tuple(different.values())),
            sampling=self._origin | self._sampling,
        )

    def _temperature(self, number: int) -> float:
        return self._settings.temperatures[number % len(self._settings.temperatures)]

    def _key(self, prompt: Candidates, number: int) -> int:
        """The random seed of an answer: with the seed alone, all prompts would draw alike."""
        text = f"{self._settings.seed + number} {prompt.id}"
        return int.from_bytes(blake2b(text.encode(), digest_size=8).digest())

    def _read_begun(self) -> list[Candidates]:
        """The rows of earlier sessions with the same prompts, model and settings."""
        if self._lines.foreign_line(_ROW_START) is not None:
            raise self._other("holds something other than candidates")
        self._lines.settle()
        if not self._lines.content:
            return []
        rows = load_candidates(self._path)
        expected = [prompt.id for prompt in self._prompts[: len(rows)]]
        if [row.id for row in rows] != expected:
            raise self._other("answers other prompts")
        for row in rows:
            models = {(answer.model, answer.weights) for answer in row.answers}
            if not models <= {(self._name, self._weights)}:
                raise self._other("was made with another model")
            # The weights say which model it was, wherever its folder lies.
            settings = {key: row.sampling[key] for key in row.sampling if key not in Origin._fields}
            if settings != self._sampling:
                raise self._other(f"was made with other settings ({self._difference(settings)})")
        return rows

    def _difference(self, then: dict[str, Any]) -> str:
        now = self._sampling
        return ", ".join(
            f"{key} {then.get(key)}, now {now.get(key)}"
            for key in {**then, **now}
            if then.get(key) != now.get(key)
        )

    def _other(self, what: str) -> UsageError:
        return UsageError(
            f"{self._path}: is there and {what}; give another --out, or remove it to start over"
        )


def read_prompts(path: str | Path) -> tuple[list[Candidates], int]:
    """The prompts of a file, each once and without answers, and the number of its rows.

    The file has a prompt a line (``.txt``), or JSON rows with ``prompt`` (or ``user``): prompts,
    candidates or preference pairs.

    Raises:
        UsageError: If there is no such file.
        DataError: If a row can't be read, or there is none.
    """
    rows = load_prompts(path, unique=False)
    prompts: dict[bytes, Candidates] = {}
    for row in rows:
        # The id follows from the prompt: the row's own may be that of a pair.
        prompt = Candidates(prompt_id(row.prompt), row.prompt, row.kind)
        prompts.setdefault(text_digest(row.prompt), prompt)
    return list(prompts.values()), len(rows)

"""Two models' answers to one set of prompts: side by side, counted, and judged blind."""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.resources import files
from pathlib import Path

import numpy as np

from mlx_dpo.convert.sources import check_base, locate
from mlx_dpo.errors import DataError, UsageError
from mlx_dpo.insight.scoring import CountDone, LoadedModel, Named, in_turn
from mlx_dpo.models.generate import Completion, answer_all
from mlx_dpo.paths import text_of
from mlx_dpo.preferences.json_text import Finding
from mlx_dpo.preferences.schema import read_text
from mlx_dpo.preferences.scores import (
    LengthControlled,
    length_controlled,
    longer_one,
    wilson_interval,
)
from mlx_dpo.records import Message
from mlx_dpo.runs.collapse import answer_signs, repetition


@dataclass(frozen=True, slots=True)
class ComparisonPrompt:
    """A user's turn to compare on, and its kind: seen, unseen, off-topic, or as the file says."""

    kind: str
    prompt: str


@dataclass(frozen=True, slots=True)
class Compared:
    """One prompt with both models' answers, A's first: greedy, and sampled from the same seed."""

    question: ComparisonPrompt
    greedy: tuple[Completion, Completion]
    sampled: tuple[Completion, Completion]


@dataclass(frozen=True, slots=True)
class Habits:
    """How a model answers the prompts of a group, greedy and sampled taken together.

    Attributes:
        num_answers: Twice the prompts; `num_closed` of them the model ended itself.
        mean_length: Tokens of an answer, the closing token among them.
        repetition: Share of word triples that came before in the same answer.
        num_different: Different texts among the greedy answers.
    """

    num_answers: int
    mean_length: float
    repetition: float
    num_closed: int
    num_different: int


@dataclass(slots=True)
class LengthTally:
    """Judged prompts alike in which model's answer is the longer one; a tie is half a win."""

    name: str
    judged: int = 0
    b_wins: float = 0.0


@dataclass(slots=True)
class Tally:
    """A person's preferences, as numbers of prompts.

    `same` are those to which both models give one answer: nobody is asked about them. `lengths` has
    the judged ones where B's answer is longer, as long, and shorter.
    """

    a_wins: int = 0
    b_wins: int = 0
    ties: int = 0
    skipped: int = 0
    same: int = 0
    lengths: list[LengthTally] = field(
        default_factory=lambda: list(map(LengthTally, ("B longer", "length-matched", "B shorter")))
    )

    @property
    def judged(self) -> int:
        """Prompts with a judgement."""
        return self.a_wins + self.b_wins + self.ties

    @property
    def b_share(self) -> float:
        """Share of the judged prompts that B won; a tie is half a win."""
        return (self.b_wins + self.ties / 2) / self.judged if self.judged else 0.5

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson 95 % interval of `b_share`."""
        return wilson_interval(self.b_wins + self.ties / 2, self.judged)

    @property
    def length_controlled(self) -> LengthControlled | None:
        """B's share if either model's answer were the longer one equally often."""
        longer, _, shorter = ((group.b_wins, group.judged) for group in self.lengths)
        return length_controlled(longer, shorter)

    def count(self, answers: tuple[Completion, Completion], b_wins: float) -> None:
        """Add a judgement of the answers of A and B: 1 for B, 0 for A, 0.5 for a tie."""
        self.b_wins += b_wins == 1
        self.a_wins += b_wins == 0
        self.ties += b_wins == 0.5
        a, b = (np.array([len(answer.ids)]) for answer in answers)
        group = self.lengths[1 - int(longer_one(b, a)[0])]
        group.judged += 1
        group.b_wins += b_wins


def read_questions(path: Path | None) -> list[ComparisonPrompt]:
    """Prompts of a file: a prompt a line, or an object with `prompt` and perhaps `kind` a line.

    Without a file, the set that comes with the package.

    Raises:
        UsageError: If it can't be read.
        DataError: If a line is not as it must be, or there is none.
    """
    try:
        if path is None:
            text = files("mlx_dpo.insight").joinpath("prompts.jsonl").read_text(encoding="utf-8")
        else:
            text = text_of(path, DataError)
    except OSError as error:
        raise UsageError(f"{path}: not readable: {error.strerror}") from None
    if path is not None and path.suffix in (".json", ".jsonl") and text.lstrip()[:1] == "[":
        raise DataError(f"{path}:1: a JSON array; write its objects a line each")
    questions = [
        _read_prompt(f"{path}:{number}", line.strip())
        for number, line in enumerate(text.split("\n"), 1)
        if line.strip()
    ]
    if not questions:
        raise DataError(f"{path}: no prompts in it; a prompt a line")
    return questions


def compare(
    models: tuple[Named, Named],
    questions: Sequence[ComparisonPrompt],
    *,
    max_tokens: int,
    temperature: float,
    seed: int,
    after_questions: CountDone = lambda count: None,
) -> list[Compared]:
    """Answers of models A and B, one of them in memory at a time.

    Each prompt is answered greedily and at `temperature`; prompt i is sampled with seed + i by both
    models. `after_questions` is called with how many more prompts a model has answered.

    Raises:
        UsageError: If a model can't be loaded.
    """
    for named in models:  # a mistyped B is refused before A has answered everything
        source = locate(*named)
        if source.adapter is not None:
            check_base(source.adapter, source.folder)

    def answer(loaded: LoadedModel) -> list[tuple[Completion, Completion]]:
        prompts = [loaded.chat.prompt_ids((Message("user", q.prompt),)) for q in questions]
        ask = partial(
            answer_all, loaded.model, loaded.chat, prompts, max_tokens=max_tokens, seed=seed
        )
        greedy = ask(temperature=0.0)
        drawn = ask(temperature=temperature, after_prompts=after_questions)
        return list(zip(greedy, drawn, strict=True))

    return [
        Compared(question, (a[0], b[0]), (a[1], b[1]))
        for question, a, b in zip(questions, *in_turn(models, answer), strict=True)
    ]


def habits(compared: Sequence[Compared], side: int) -> Habits:
    """How model A (side 0) or B (side 1) answers some prompts, at least one."""
    greedy = [c.greedy[side] for c in compared]
    answers = greedy + [c.sampled[side] for c in compared]
    return Habits(
        num_answers=len(answers),
        mean_length=sum(len(a.ids) for a in answers) / len(answers),
        repetition=repetition(answer.text for answer in answers),
        num_closed=sum(a.closed for a in answers),
        num_different=len({a.text for a in greedy}),
    )


def signs(compared: Sequence[Compared]) -> list[str]:
    """What is suspicious about model B's answers beside model A's."""
    a, b = habits(compared, 0), habits(compared, 1)
    return answer_signs(
        b.num_answers,
        length=(b.mean_length, a.mean_length),
        cut=(b.num_answers - b.num_closed, a.num_answers - a.num_closed),
        repeated=(b.repetition, a.repetition),
    )


def judge_blind(
    compared: Sequence[Compared],
    ask: Callable[[ComparisonPrompt, str, str], str],
    rng: random.Random,
) -> Tally:
    """Let a person judge the greedy answers without knowing whose is whose.

    `ask` shows a prompt and two answers, and returns "1", "2", "t" for a tie, "s" to skip, or "q"
    to stop. `rng` shuffles the sides of each prompt.
    """
    tally = Tally()
    for each in compared:
        texts = [answer.text for answer in each.greedy]
        if texts[0] == texts[1]:
            tally.same += 1
            continue
        first = rng.randrange(2)  # whose answer is shown as 1
        key = ask(each.question, texts[first], texts[1 - first])
        if key == "q":
            break
        if key == "s":
            tally.skipped += 1
        else:
            tally.count(each.greedy, 0.5 if key == "t" else (first if key == "1" else 1 - first))
    return tally


def _read_prompt(position: str, line: str) -> ComparisonPrompt:
    if not line.startswith("{"):
        return ComparisonPrompt("", line)
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        raise DataError(
            f"{position}: not JSON; a prompt a line, or an object with 'prompt'"
        ) from None
    findings: list[Finding] = []
    kind = read_text(row.get("kind", ""), "kind", findings)
    prompt = read_text(row.get("prompt"), "prompt", findings)
    if prompt is None or kind is None:
        raise DataError(f"{position}: {findings[-1].reason}; a row has a 'prompt'")
    if not prompt.strip():
        raise DataError(f"{position}: 'prompt' holds no text")
    return ComparisonPrompt(kind, prompt)

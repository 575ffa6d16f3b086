"""Two models' answers to one set of prompts: side by side, counted, and judged blind."""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path

from mlx_dpo.convert.sources import find
from mlx_dpo.errors import DataError, UsageError
from mlx_dpo.insight.collapse import answer_signs, repetition
from mlx_dpo.insight.evaluation import wilson_interval
from mlx_dpo.insight.scoring import Done, Judged, in_turn
from mlx_dpo.models.generate import Completion, answer_all
from mlx_dpo.records import Message


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt to compare on.

    Attributes:
        kind: Its group: seen, unseen, off-topic, or as the file says.
        prompt: What is asked.
    """

    kind: str
    prompt: str


@dataclass(frozen=True, slots=True)
class Compared:
    """One prompt with both models' answers, model A's first.

    Attributes:
        question: The prompt.
        greedy: The likeliest token each time.
        sampled: Drawn, from the same seed.
    """

    question: Question
    greedy: tuple[Completion, Completion]
    sampled: tuple[Completion, Completion]


@dataclass(frozen=True, slots=True)
class Habits:
    """How a model answers the prompts of a group, greedy and sampled taken together.

    Attributes:
        num_answers: Answers.
        mean_length: Tokens of an answer, the closing token among them.
        repetition: Share of word triples that came before in the same answer.
        num_closed: Answers the model ended itself.
        num_different: Different texts among the greedy answers.
    """

    num_answers: int
    mean_length: float
    repetition: float
    num_closed: int
    num_different: int


@dataclass(slots=True)
class Tally:
    """What a person preferred.

    Attributes:
        a_wins: Prompts where A's answer was the better.
        b_wins: Prompts where B's was.
        ties: Prompts where neither was.
        skipped: Prompts left unjudged on purpose.
        same: Prompts with one answer from both, which nobody is asked about.
    """

    a_wins: int = 0
    b_wins: int = 0
    ties: int = 0
    skipped: int = 0
    same: int = 0

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


def read_questions(path: Path | None) -> list[Question]:
    """Prompts of a file: a prompt a line, or an object with `prompt` and perhaps `kind` a line.

    Args:
        path: The file; None takes the set that comes with the package.

    Raises:
        UsageError: If it can't be read.
        DataError: If a line is not as it must be, or there is none.
    """
    try:
        source = files("mlx_dpo.insight").joinpath("prompts.jsonl") if path is None else path
        text = source.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path}: not readable: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start} is not UTF-8") from None
    questions = [
        _question(f"{path}:{number}", line.strip())
        for number, line in enumerate(text.split("\n"), 1)
        if line.strip()
    ]
    if not questions:
        raise DataError(f"{path}: no prompts in it; a prompt a line")
    return questions


def compare(
    names: tuple[str, str],
    questions: Sequence[Question],
    *,
    max_tokens: int,
    temperature: float,
    seed: int,
    after_questions: Done = lambda count: None,
) -> list[Compared]:
    """Answers of both models, one of them in memory at a time.

    Args:
        names: Models A and B, by folder or hub id.
        questions: The prompts.
        max_tokens: Longest answer.
        temperature: Of the sampled answers.
        seed: Prompt i is sampled with seed + i, by both models.
        after_questions: Called with how many more prompts a model has answered.

    Raises:
        UsageError: If a model can't be loaded.
    """
    for name in names:  # a slip in B is told before A has answered everything
        find(name)

    def use(judged: Judged) -> list[tuple[Completion, Completion]]:
        prompts = [judged.chat.prompt_ids((Message("user", q.prompt),)) for q in questions]
        say = partial(
            answer_all, judged.model, judged.chat, prompts, max_tokens=max_tokens, seed=seed
        )
        greedy = say(temperature=0.0)
        return list(
            zip(greedy, say(temperature=temperature, after_prompts=after_questions), strict=True)
        )

    return [
        Compared(question, (a[0], b[0]), (a[1], b[1]))
        for question, a, b in zip(questions, *in_turn(names, use), strict=True)
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


def judge(
    compared: Sequence[Compared],
    ask: Callable[[Question, str, str], str],
    rng: random.Random,
) -> Tally:
    """Let a person judge the greedy answers without knowing whose is whose.

    Args:
        compared: Prompts with answers.
        ask: Shown a prompt and two answers, returns "1", "2", "t" for a tie, "s" to skip, or "q"
            to stop.
        rng: Shuffles the sides of each prompt.
    """
    tally = Tally()
    for one in compared:
        texts = [answer.text for answer in one.greedy]
        if texts[0] == texts[1]:
            tally.same += 1
            continue
        first = rng.randrange(2)  # whose answer is shown as 1
        key = ask(one.question, texts[first], texts[1 - first])
        if key == "q":
            break
        if key == "s":
            tally.skipped += 1
        elif key == "t":
            tally.ties += 1
        elif (first if key == "1" else 1 - first) == 0:
            tally.a_wins += 1
        else:
            tally.b_wins += 1
    return tally


def _question(place: str, line: str) -> Question:
    if not line.startswith("{"):
        return Question("", line)
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        raise DataError(f"{place}: not JSON; a prompt a line, or an object with 'prompt'") from None
    kind, prompt = row.get("kind", ""), row.get("prompt")
    if not isinstance(prompt, str) or not prompt.strip() or not isinstance(kind, str):
        raise DataError(f"{place}: needs 'prompt' as text, and 'kind', if there, as text")
    return Question(kind, prompt)

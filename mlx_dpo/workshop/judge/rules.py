"""Judges that are rules: for exercises, for tests, and for what a rule can decide."""

import re
from collections.abc import Callable
from pathlib import Path

from mlx_dpo.errors import DataError, UsageError
from mlx_dpo.preferences.json_text import Finding, raw_rows
from mlx_dpo.preferences.reader import text_digest
from mlx_dpo.preferences.schema import read_messages, read_text
from mlx_dpo.records import Message
from mlx_dpo.workshop.judge.verdicts import Judge, JudgeQuestion, Verdict

RULES = "rule:shorter, rule:longer, rule:regex:PATTERN, rule:exact:FILE"

# The score of an answer to a prompt; None if the rule has none. Equal scores tie.
AnswerScore = Callable[[tuple[Message, ...], str], float | None]


class RuleJudge(Judge):
    """The answer with the higher score is better."""

    def __init__(self, name: str, score: AnswerScore) -> None:
        self.name = name
        self._score = score

    def verdict(self, question: JudgeQuestion) -> Verdict:
        """Compare the scores; abstain if one of the answers has none."""
        a, b = (self._score(question.prompt, text) for text in (question.a, question.b))
        if a is None or b is None:
            return Verdict.ABSTAIN
        return Verdict.TIE if a == b else Verdict.A if a > b else Verdict.B


def rule_judge(name: str) -> RuleJudge:
    """The judge of a name such as ``rule:shorter``.

    - ``shorter``, ``longer``: by characters, without the white space around.
    - ``regex:PATTERN``: an answer in which Python's ``re.search`` finds the pattern.
    - ``exact:FILE``: an answer that equals the right one, white space around aside. The file has
      a JSON object a line, with ``prompt`` and ``answer``.

    Raises:
        UsageError: If there is no such rule or file, or the pattern is not valid.
        DataError: If a row of the file can't be read.
    """
    _, _, rule = name.partition(":")
    what, _, argument = rule.partition(":")
    if rule == "shorter":
        return RuleJudge(name, lambda _, text: -len(text.strip()))
    if rule == "longer":
        return RuleJudge(name, lambda _, text: len(text.strip()))
    if what == "regex" and argument:
        return RuleJudge(name, _regex_score(argument))
    if what == "exact" and argument:
        return RuleJudge(name, _exact_score(Path(argument)))
    raise UsageError(f"--judge {name}: no such rule; there are {RULES}")


def _regex_score(pattern: str) -> AnswerScore:
    try:
        regex = re.compile(pattern)
    except re.error as error:
        raise UsageError(f"--judge: {pattern!r} is no regular expression: {error}") from None
    return lambda _, text: float(regex.search(text) is not None)


def _exact_score(file: Path) -> AnswerScore:
    right: dict[bytes, str] = {}  # answers by digest of their prompt
    for raw in raw_rows(file):
        findings: list[Finding] = list(raw.findings)
        row = raw.value if isinstance(raw.value, dict) else {}
        prompt = read_messages(row, "prompt", "user", findings)
        answer = read_text(row.get("answer"), "answer", findings)
        if prompt is None or answer is None:
            reason = findings[0].reason if findings else "key 'prompt' is missing"
            raise DataError(f"{file}:{raw.line}: {reason}; a row is a 'prompt' and its 'answer'")
        right[text_digest(prompt)] = answer.strip()
    if not right:
        raise DataError(f"{file}: no answers in the file")

    def score(prompt: tuple[Message, ...], text: str) -> float | None:
        answer = right.get(text_digest(prompt))
        return None if answer is None else float(text.strip() == answer)

    return score

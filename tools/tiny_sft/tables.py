"""The results of the cross-validation as markdown tables, shares with Wilson 95 % intervals."""

from collections.abc import Iterable, Sequence

from mlx_dpo.preferences.scores import wilson_interval
from tools.tiny_sft.outcomes import AnswerOutcome, PairOutcome
from tools.tiny_sft.rules import RULES

BEHAVIOURS = ("style", "helpfulness", "honesty", "format", "tone", "safety", "instruction")
KNOWLEDGE = ("factual", "arithmetic", "opposites")


def share(values: Iterable[bool]) -> str:
    """Hits, trials, share and interval: "9/10 = 0.90 (0.60-0.98)"."""
    outcomes = list(values)
    if not outcomes:
        return "none"
    hits, trials = sum(outcomes), len(outcomes)
    low, high = wilson_interval(hits, trials)
    return f"{hits}/{trials} = {hits / trials:.2f} ({low:.2f}-{high:.2f})"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def pair_table(pairs: Sequence[PairOutcome]) -> str:
    """Accuracy and margin of the held-out pairs by kind."""
    groups: list[tuple[str, tuple[str, ...]]] = [
        (kind, (kind,)) for kind in (*BEHAVIOURS, *KNOWLEDGE)
    ]
    groups += [("**behaviour kinds**", BEHAVIOURS), ("**knowledge kinds**", KNOWLEDGE)]
    rows = []
    for name, kinds in groups:
        own = [pair for pair in pairs if pair.kind in kinds]
        if own:
            rows.append(
                (
                    name,
                    share(pair.margin > 0 for pair in own),
                    f"{_mean(pair.margin for pair in own):+.3f}",
                    f"{_mean(pair.sft_gap > 0 for pair in own):.2f}",
                    f"{_mean(pair.dpo_gap > 0 for pair in own):.2f}",
                )
            )
    head = (
        "kind",
        "implicit-reward accuracy (95 %)",
        "mean margin",
        "log-prob accuracy SFT",
        "DPO",
    )
    return table(head, rows)


def answer_table(answers: Sequence[AnswerOutcome]) -> str:
    """Greedy answers by rule: right before, and made right where they were wrong."""
    rows = []
    for name, kinds in [*((kind, (kind,)) for kind in RULES), ("**all four**", tuple(RULES))]:
        judged = [answer.right() for answer in answers if answer.kind in kinds]
        rows.append(
            (
                name,
                share(before for before, _ in judged),
                share(after for _, after in judged),
                share(after for before, after in judged if not before),
                share(after for before, after in judged if before),
            )
        )
    return table(("kind", "SFT right", "DPO right", "wrong made right", "right kept right"), rows)


def unrelated_table(answers: Sequence[AnswerOutcome]) -> str:
    """Well-formedness and repetition before and after."""
    rows = []
    for name, unrelated in (("unrelated questions", True), ("held-out questions", False)):
        own = [answer for answer in answers if (answer.kind == "unrelated") == unrelated]
        rows.append(
            (
                name,
                share(answer.well_formed()[0] for answer in own),
                share(answer.well_formed()[1] for answer in own),
                f"{_mean(answer.repetition()[0] for answer in own):.4f}",
                f"{_mean(answer.repetition()[1] for answer in own):.4f}",
            )
        )
    return table(("answers to", "well-formed SFT", "DPO", "repetition SFT", "DPO"), rows)


def rules_text() -> str:
    """The rules, as their docstrings state them."""
    texts = (" ".join((rule.__doc__ or "").split()) for rule in RULES.values())
    return "\nRules by which an answer is right:\n\n" + "\n".join(f"- {text}" for text in texts)


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return sum(numbers) / len(numbers)

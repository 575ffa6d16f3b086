"""What a run has achieved, in one sentence with its evidence: one of a few named outcomes.

Judged by pairs that were held out and by the answers shown, both before and after training. Rules
are tried in order, from what makes everything else meaningless to what is good news.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from typing import Any

import numpy as np
import numpy.typing as npt

from mlx_dpo.preferences.scores import (
    Logprobs,
    group_by_length,
    is_taught,
    margins,
    score_groups,
    wilson_interval,
)
from mlx_dpo.records import Message, Pairs, Preference
from mlx_dpo.runs.collapse import reward_signs
from mlx_dpo.runs.config import RunConfig

BETTER, WORSE, MIXED, LENGTH = "better", "worse", "mixed", "length"
TOO_FEW, UNCHANGED, UNMEASURED = "too-few", "unchanged", "unmeasured"
OVERFITTED, COLLAPSED, LOOPING = "overfitted", "collapsed", "looping"
SAME, CHANGED = "same", "changed"
MARKS = (BETTER, CHANGED, WORSE, SAME)  # of an answer
OUTCOMES = (
    COLLAPSED,
    LOOPING,
    UNCHANGED,
    UNMEASURED,
    OVERFITTED,
    LENGTH,
    MIXED,
    BETTER,
    WORSE,
    TOO_FEW,
)

# An answer repeats itself where this share of its runs of characters came before in it, more than
# in the answer before training. Characters, because a broken model may write one endless word.
_LOOPS, _RUN = 0.3, 12
_STILL = 1.0  # nats that a response's log-prob moves by; below it, and with equal answers, nothing
_TURNED = 0.02  # nats of held-out loss above its lowest
_USUAL_STEPS = 100  # that a small set of pairs wants before anything can be seen


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome of a run.

    Attributes:
        outcome: One of `OUTCOMES`.
        sentence: The outcome and its evidence.
        advice: What to do next; empty where nothing is wrong.
    """

    outcome: str
    sentence: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class BeforeAfter:
    """An answer before (`sft`) and after training (`dpo`).

    Attributes:
        prompt: What was asked.
        kind: Of the pair that the prompt is from.
        sft: The answer before.
        dpo: The answer after.
        mark: `SAME`; `WORSE` where it repeats itself; `BETTER` or `WORSE` where the margin of its
            pair and its words agree about that; else `CHANGED`, also where its pair was trained on.
    """

    prompt: str
    kind: str
    sft: str
    dpo: str
    mark: str


def marked(
    shown: Sequence[Preference],
    before: Sequence[str],
    after: Sequence[str],
    margin_of: Mapping[str, float],
) -> list[BeforeAfter]:
    """Answers to the prompts of some pairs: what became better first, what did not change last.

    Of those with one mark, the one whose words came closest to the chosen answer is first.

    Args:
        shown: The pairs.
        before: Answers to their prompts.
        after: The same after training.
        margin_of: Margin of each held-out pair, by its id.
    """
    gains = [
        _leaning(dpo, pair) - _leaning(sft, pair)
        for pair, sft, dpo in zip(shown, before, after, strict=True)
    ]
    answers = [
        BeforeAfter(
            pair.question, pair.kind, sft, dpo, _mark(sft, dpo, margin_of.get(pair.id), gain)
        )
        for pair, sft, dpo, gain in zip(shown, before, after, gains, strict=True)
    ]
    order = sorted(range(len(answers)), key=lambda i: (MARKS.index(answers[i].mark), -gains[i]))
    return [answers[i] for i in order]


def _mark(before: str, after: str, margin: float | None, gain: int) -> str:
    """The mark of an answer.

    A margin is about the two answers of a pair, and not about this one: its words must say the same
    before it is called better or worse.
    """
    if before == after:
        return SAME
    if _loops(before, after):
        return WORSE
    if not margin or margin * gain <= 0:
        return CHANGED
    return BETTER if margin > 0 else WORSE


def _leaning(answer: str, pair: Preference) -> int:
    """How many more words an answer shares with the chosen one, in order, than with the rejected.

    Words, not a share of them: of a one-word answer there is little to see.
    """

    def shared(turns: Sequence[Message]) -> int:
        words = " ".join(turn.content for turn in turns).casefold().split()
        matcher = SequenceMatcher(None, answer.casefold().split(), words, autojunk=False)
        return sum(block.size for block in matcher.get_matching_blocks())

    return shared(pair.chosen) - shared(pair.rejected)


@dataclass(frozen=True)
class Evidence:
    """What a verdict is made from.

    Attributes:
        policy, reference: float32 (2, N), log-probs of the held-out pairs after and before.
        held_out: These pairs.
        answers: Answers to the prompts that are shown.
        rows: Of metrics.jsonl: a step's metrics, or a step's ``held_out`` metrics.
        settings: Of the run.
        untaught: Kinds of held-out pairs that no training pair is of, as `untaught_kinds` finds.
    """

    policy: Logprobs
    reference: Logprobs
    held_out: Pairs
    answers: Sequence[BeforeAfter]
    rows: Sequence[Mapping[str, Any]]
    settings: RunConfig
    untaught: tuple[str, ...] = ()

    @property
    def num_steps(self) -> int:
        """Updates that were made."""
        return max((row["step"] + 1 for row in self.rows), default=0)

    @property
    def wins(self) -> int:
        """Held-out pairs whose margin is above 0."""
        return int((margins(self.policy, self.reference, beta=self.settings.beta) > 0).sum())


def _loops(before: str, after: str) -> bool:
    return _repetition(after) > _repetition(before) + _LOOPS


def _repetition(text: str) -> float:
    runs = [text[start : start + _RUN] for start in range(len(text) - _RUN + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def judge(run: Evidence) -> Verdict:
    """The verdict on a finished run, by the kinds it trained on; others are counted apart."""
    if not run.untaught:
        return _judge_taught(run)
    taught, apart = _parted(run)
    verdict = _judge_taught(taught)
    if verdict.outcome in (COLLAPSED, LOOPING, UNCHANGED, UNMEASURED):
        return verdict
    before, after = (int((logps[0] > logps[1]).sum()) for logps in (apart.reference, apart.policy))
    return replace(
        verdict,
        sentence=f"{verdict.sentence} Not trained on {', '.join(run.untaught)}: the chosen answer "
        f"is the likelier one in {before} of {len(apart.held_out.kinds)} pairs before, {after} "
        "after.",
    )


def _parted(run: Evidence) -> tuple[Evidence, Evidence]:
    """The evidence of pairs whose kind was trained on, and of the others."""
    taught = is_taught(run.held_out.kinds, run.untaught)

    def of(chosen: npt.NDArray[np.bool_]) -> Evidence:
        rows = np.flatnonzero(chosen).tolist()
        pairs = Pairs(
            [run.held_out.examples[row] for row in rows],
            [run.held_out.ids[row] for row in rows],
            [run.held_out.kinds[row] for row in rows],
        )
        return replace(
            run,
            policy=run.policy[:, chosen],
            reference=run.reference[:, chosen],
            held_out=pairs,
        )

    return of(taught), of(~taught)


def _judge_taught(run: Evidence) -> Verdict:
    for rule in (_collapsed, _unchanged, _unmeasured, _overfitted, _by_length, _by_kind):
        if (verdict := rule(run)) is not None:
            return verdict
    return _overall(run)


def _collapsed(run: Evidence) -> Verdict | None:
    advice = (
        f"{_lower(run)}, train for fewer steps, or raise --beta (it was {run.settings.beta:g})."
    )
    if signs := reward_signs([row for row in run.rows if "loss" in row]):
        return Verdict(COLLAPSED, f"Collapsed: {signs[0].partition('. ')[0]}.", advice)
    loops = [answer for answer in run.answers if _loops(answer.sft, answer.dpo)]
    if not loops:
        return None
    verb = "repeats itself" if len(loops) == 1 else "repeat themselves"
    sentence = f"Began to loop: {len(loops)} of {len(run.answers)} answers {verb}."
    return Verdict(LOOPING, sentence, advice)


def _unchanged(run: Evidence) -> Verdict | None:
    same = sum(answer.mark == SAME for answer in run.answers)
    moved = float(np.abs(run.policy - run.reference).mean()) if run.policy.size else 0.0
    total = run.policy.shape[1]
    low, high = wilson_interval(run.wins, total) if total else (0.0, 1.0)
    is_decided = moved >= _STILL and not low <= 0.5 <= high
    if not same or same < len(run.answers) or is_decided:
        return None
    what = "Nothing" if moved < _STILL else "No answer"
    sentence = f"{what} changed: {same} of {same} answers are the same as before"
    if run.policy.size:
        sentence += f", and log-probs of held-out answers moved by {moved:.2f} nats"
    advice = f"Raise --learning-rate (it was {run.settings.learning_rate:g}; try three times that)."
    made = run.num_steps
    if 0 < made < _USUAL_STEPS:
        epochs = math.ceil(run.settings.epochs * _USUAL_STEPS / made)
        more = f"--steps {_USUAL_STEPS}" if run.settings.steps else f"--epochs {epochs}"
        rate = f"--learning-rate {3 * run.settings.learning_rate:g}"
        advice = f"The run made {made} step{'s'[: made != 1]}; try {rate}, and {more}."
    return Verdict(UNCHANGED, f"{sentence}.", advice)


def _unmeasured(run: Evidence) -> Verdict | None:
    if run.policy.size:
        return None
    changed = sum(answer.mark != SAME for answer in run.answers)
    return Verdict(
        UNMEASURED,
        f"Not measured: no pair was held out. {changed} of {len(run.answers)} answers changed.",
        "With --eval-fraction 0.2 a fifth of the pairs shows whether it learned.",
    )


def _overfitted(run: Evidence) -> Verdict | None:
    losses = [(row["held_out"]["loss"], row["step"]) for row in run.rows if "held_out" in row]
    if not losses:
        return None
    lowest, step = min(losses)
    last = losses[-1][0]
    if lowest >= math.log(2) - _TURNED or last <= lowest + _TURNED:
        return None
    return Verdict(
        OVERFITTED,
        f"Overfitted: the held-out loss was lowest at step {step + 1} ({lowest:.3f}) and is "
        f"{last:.3f} at the end.",
        "Keep that step: --keep best.",
    )


def _by_length(run: Evidence) -> Verdict | None:
    longer, _, shorter = group_by_length(run.policy, run.reference, run.held_out.examples)
    right = wilson_interval(longer.reward_wins, longer.num_pairs)[0] > 0.5
    wrong = wilson_interval(shorter.reward_wins, shorter.num_pairs)[1] < 0.5
    if not (right and wrong):
        return None
    return Verdict(
        LENGTH,
        f"Learned length: right on {longer.reward_wins} of {longer.num_pairs} held-out pairs whose "
        f"chosen answer is the longer one, and on {shorter.reward_wins} of {shorter.num_pairs} "
        "whose chosen answer is the shorter one.",
        "Add pairs whose chosen answer is short; mlx_dpo audit shows the lengths.",
    )


def _by_kind(run: Evidence) -> Verdict | None:
    """Kinds that are surely above chance, and others that are surely below."""
    groups = score_groups(run.policy, run.reference, run.held_out.kinds, beta=run.settings.beta)[1:]
    helped, hurt = [], []
    for group in groups:
        wins = round(group.reward_accuracy * group.num_pairs)
        low, high = wilson_interval(wins, group.num_pairs)
        shown = f"{group.name or '(none)'} ({wins} of {group.num_pairs})"
        if low > 0.5:
            helped.append(shown)
        elif high < 0.5:
            hurt.append(shown)
    if not (helped and hurt):
        return None
    return Verdict(
        MIXED,
        f"Helped some kinds and hurt others: right on {', '.join(helped)}; wrong on "
        f"{', '.join(hurt)} of the held-out pairs.",
        "Look at the pairs of the kinds it hurt: they may contradict the others.",
    )


def _overall(run: Evidence) -> Verdict:
    total = run.policy.shape[1]
    low, high = wilson_interval(run.wins, total)
    count = f"{run.wins} of {total}"
    interval = f"95 % interval {low:.2f} to {high:.2f}"
    if low > 0.5:
        margin = float(margins(run.policy, run.reference, beta=run.settings.beta).mean())
        sentence = (
            f"Better on held-out pairs: {count} right ({interval}), mean margin {margin:+.3f}."
        )
        return Verdict(BETTER, sentence)
    if high < 0.5:
        return Verdict(
            WORSE,
            f"Worse on held-out pairs: {count} right ({interval}).",
            f"{_lower(run)}, and check which answer of a pair is the chosen one.",
        )
    return Verdict(
        TOO_FEW,
        f"Too few pairs to tell: {count} held-out pairs right, which may be chance ({interval}).",
        "Hold out more pairs (--eval-fraction, --eval-data), or train on more.",
    )


def _lower(run: Evidence) -> str:
    return f"Lower --learning-rate (it was {run.settings.learning_rate:g})"

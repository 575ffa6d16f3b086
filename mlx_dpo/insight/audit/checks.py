"""Is a preference file fit to train on? A verdict for each thing that spoils DPO unseen.

The limits stand here; docs/looking.md gives the reason for each.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mlx_dpo.errors import DataError
from mlx_dpo.insight.audit import bias, copies
from mlx_dpo.insight.audit.bias import Bet, Measures, bet
from mlx_dpo.insight.audit.copies import Shingles
from mlx_dpo.preferences.split import held_out
from mlx_dpo.preferences.store import LOPSIDED
from mlx_dpo.records import Preference
from mlx_dpo.runs.config import RunConfig

OK, LOOK, STOP, UNCHECKED = "ok", "look", "stop", "not checked"

# A bet that wins outside these shares is worth a look, once chance is ruled out. With its whole
# interval outside LOPSIDED, where training warns as well, the model can win without reading.
SUSPICIOUS = (0.4, 0.6)
LENGTH_ADVICE = "the model may learn length instead of what the pairs are about; balance the pairs"
# Shares of the rows from which a fault is no longer a few rows to mend.
MANY_COPIES = 0.10
MANY_CONTRADICTIONS = 0.05
MANY_CUT = 0.10
MANY_LEAKS = 0.01
_SHOWN = 20  # rows a check of bias names; the widest gaps


@dataclass(frozen=True, slots=True)
class FlaggedRows:
    """Rows to look at, by their positions in the file, from 1, and what is the matter with them."""

    rows: tuple[int, ...]
    note: str


@dataclass(frozen=True, slots=True)
class Check:
    """The verdict on one thing: "ok", "look", "stop" or "not checked".

    `reason` says why in words, `figures` in numbers; the worst `findings` come first.
    """

    name: str
    verdict: str
    reason: str
    findings: list[FlaggedRows] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)


def audit(
    preferences: Sequence[Preference],
    measures: Measures,
    *,
    max_length: int,
    eval_preferences: Sequence[Preference] | None = None,
) -> list[Check]:
    """Every check of the rows to train on, in the order they are shown.

    Training would keep `max_length` tokens of prompt + response. `eval_preferences` are held-out
    rows in a file of their own; None looks at the split that training would make.

    Raises:
        DataError: If there is no row to train on.
    """
    if not preferences:
        raise DataError("no pair is left to look at")
    rows = [*preferences, *(eval_preferences or [])]
    shingles = copies.shingle_sets([bias.pair_texts(p) for p in rows])
    return [
        check_length(measures),
        *check_surface(preferences),
        check_kinds(preferences, measures),
        *check_copies(preferences, shingles[: len(preferences)]),
        check_contradictions(preferences),
        check_leaks(preferences, eval_preferences, shingles),
        check_truncation(measures, max_length),
        check_template(measures),
    ]


def bet_verdict(score: Bet) -> str:
    """What a bet's record means for training; the same when it is as often wrong as right."""
    low, high = score.interval
    if high < LOPSIDED[0] or low > LOPSIDED[1]:
        return STOP
    is_chance = low <= 0.5 <= high
    if not is_chance and not SUSPICIOUS[0] <= score.auc <= SUSPICIOUS[1]:
        return LOOK
    return OK


def check_length(measures: Measures) -> Check:
    """Can the pairs be learned by writing more, or less?"""
    gaps = measures.gaps
    score = bet(gaps)
    verdict = bet_verdict(score)
    num = len(gaps)
    longer, shorter = (gaps > 0).sum() / num, (gaps < 0).sum() / num
    reason = (
        f'"the longer one wins" is right in {score} of {num} pairs; chosen longer '
        f"{longer:.0%}, shorter {shorter:.0%}; gap median {np.median(gaps):+g}, mean "
        f"{gaps.mean():+.1f} {measures.unit}"
    )
    figures = {
        **score.figures(),
        "chosen_longer": longer,
        "rejected_longer": shorter,
        "median_gap": float(np.median(gaps)),
        "mean_gap": float(gaps.mean()),
        "unit": measures.unit,
    }
    if measures.character_gaps is not None:
        characters = bet(measures.character_gaps)
        verdict = max(verdict, bet_verdict(characters), key=[OK, LOOK, STOP].index)
        reason += f"; counted in characters {characters}"
        figures["characters"] = characters.figures()
    return Check("length bias", verdict, reason, _widest(gaps, score, measures.unit), figures)


def check_surface(preferences: Sequence[Preference]) -> list[Check]:
    """Do marks, layout or the first word give the chosen answer away?"""
    checks = []
    for name, rule, feature in (
        ("punctuation", "more punctuation a word", bias.punctuation),
        ("markdown", "more markdown", bias.markdown),
        ("sentences", "more sentences", bias.sentences),
    ):
        gaps = bias.feature_gaps(preferences, feature)
        score = bet(gaps)
        findings = _widest(gaps, score, "")
        reason = _surface_reason(rule, score)
        checks.append(Check(name, bet_verdict(score), reason, findings, score.figures()))
    return [*checks, _check_first_word(preferences)]


def check_kinds(preferences: Sequence[Preference], measures: Measures) -> Check:
    """Lengths that balance over all and not within a kind teach length where that kind is asked."""
    rows_of: dict[str, list[int]] = defaultdict(list)
    for row, preference in enumerate(preferences):
        rows_of[preference.kind].append(row)
    table = []
    for kind, rows in rows_of.items():
        gaps = measures.gaps[rows]
        table.append({"kind": kind, **bet(gaps).figures(), "mean_gap": float(gaps.mean())})
    lopsided = [
        f"{row['kind'] or '(none)'} {row['auc']:.2f}"
        for row in table
        if row["interval"][1] < LOPSIDED[0] or row["interval"][0] > LOPSIDED[1]
    ]
    shares = [row["auc"] for row in table]
    verdict = OK
    if len(table) == 1:
        reason = "the pairs are of one kind"
    elif lopsided:
        # Not "stop": of many kinds one is lopsided by chance, and a kind may be about length.
        verdict = LOOK
        reason = f'"the longer one wins" tells in {len(lopsided)} of {len(table)} kinds: '
        reason += ", ".join(lopsided)
    else:
        reason = (
            f'"the longer one wins" is right in {min(shares):.2f} to {max(shares):.2f} of the '
            f"{len(table)} kinds, none beyond chance and {LOPSIDED[1]}"
        )
    return Check("length by kind", verdict, reason, [], {"kinds": table})


def check_copies(preferences: Sequence[Preference], shingles: Sequence[Shingles]) -> list[Check]:
    """Rows that come twice, word for word and nearly so."""
    num = len(preferences)
    exact = copies.copies(preferences)
    near = copies.near_copies(shingles, skip={row for row, _ in exact})
    near.sort(key=lambda match: -match[2])
    return [
        Check(
            "duplicates",
            _share_verdict(len(exact), num, MANY_COPIES),
            f"{len(exact)} of {num} rows repeat an earlier one, case and white space aside",
            [FlaggedRows((first + 1, row + 1), "the same pair") for row, first in exact],
            {"rows": len(exact)},
        ),
        Check(
            "near-duplicates",
            _share_verdict(len(near), num, MANY_COPIES),
            f"{len(near)} of {num} rows share {copies.NEAR:.0%} of their word triples with an "
            "earlier one",
            [
                FlaggedRows((first + 1, row + 1), f"{int(100 * like)} % alike")
                for row, first, like in near
            ],
            {"rows": len(near), "similarity": copies.NEAR},
        ),
    ]


def check_contradictions(preferences: Sequence[Preference]) -> Check:
    """Pairs of which one can only be obeyed by breaking another."""
    groups = copies.contradictions(preferences)
    count = sum(map(len, groups))
    findings = [
        FlaggedRows(
            tuple(row + 1 for row in rows),
            "chosen and rejected are the same" if len(rows) == 1 else "prefer in a circle",
        )
        for rows in groups
    ]
    reason = f"{count} of {len(preferences)} rows contradict another, or themselves"
    verdict = _share_verdict(count, len(preferences), MANY_CONTRADICTIONS)
    return Check("contradictions", verdict, reason, findings, {"rows": count})


def check_leaks(
    preferences: Sequence[Preference],
    eval_preferences: Sequence[Preference] | None,
    shingles: Sequence[Shingles],
) -> Check:
    """Held-out pairs that training has seen measure memory.

    Without `eval_preferences`, the split of training is checked. `shingles` are the word triples of
    all rows, those of the held-out file last.
    """
    name = "held-out leaks"
    num = len(preferences)
    if eval_preferences is None:
        rows, where, begin = list(preferences), "in the split that training makes, ", 0
        is_held = held_out(preferences, RunConfig.eval_fraction)
    else:
        rows, where, begin = [*preferences, *eval_preferences], "", num
        is_held = [row >= num for row in range(len(rows))]
    num_held = sum(is_held)
    if not num_held:
        return Check(name, UNCHECKED, "too few prompts to hold any out")
    same, near = _leaks(rows, is_held, shingles)
    findings = [
        FlaggedRows((trained + 1,), f"has the prompt of held-out row {row - begin + 1}")
        for row, trained in same
    ] + [
        FlaggedRows((trained + 1,), f"is {int(100 * like)} % like held-out row {row - begin + 1}")
        for row, trained, like in near
    ]
    verdict = _share_verdict(len(same), num_held, MANY_LEAKS)
    reason = (
        f"{where}{len(same)} of {num_held} held-out pairs have a prompt that is trained on, "
        f"{len(near)} more are near-copies of a training pair"
    )
    return Check(
        name,
        LOOK if verdict == OK and near else verdict,
        reason,
        findings,
        {"held_out": num_held, "same_prompt": len(same), "near": len(near)},
    )


def check_truncation(measures: Measures, max_length: int) -> Check:
    """A cut answer has lost its end, and the closing token with it."""
    if measures.unit != "tokens":
        return Check("truncation", UNCHECKED, "token counts need --model")
    prompt, longer = measures.lengths[0], measures.lengths[1:].max(axis=0)
    full = prompt + longer
    gone = np.flatnonzero(prompt >= max_length)
    cut = np.flatnonzero((full > max_length) & (prompt < max_length))
    worst = sorted([*gone.tolist(), *cut.tolist()], key=lambda row: -int(full[row]))
    reason = (
        f"at {max_length} tokens {len(cut)} of {len(full)} pairs are cut and {len(gone)} more are "
        f"dropped, their prompt filling it; longest {full.max()}, 95 % under "
        f"{int(np.quantile(full, 0.95)) + 1}"
    )
    return Check(
        "truncation",
        _share_verdict(len(worst), len(full), MANY_CUT),
        reason,
        [FlaggedRows((row + 1,), f"{int(full[row])} tokens") for row in worst],
        {"cut": len(cut), "dropped": len(gone), "longest": int(full.max())},
    )


def check_template(measures: Measures) -> Check:
    """Words that are tokens, which training refuses, and tokens across prompt and answer."""
    if measures.unit != "tokens":
        return Check("template", UNCHECKED, "a model's markers need --model")
    findings = [
        FlaggedRows((row + 1,), f"{part} holds {text!r}, a token of this model")
        for row, part, text in measures.special
    ] + [FlaggedRows((row + 1,), "a token spans prompt and answer") for row in measures.merged]
    reason = (
        f"{len(measures.special)} of {len(measures.lengths.T)} pairs hold the text of a special "
        f"token, which training refuses; {len(measures.merged)} have a token across the boundary "
        "of prompt and answer"
    )
    figures = {"special": len(measures.special), "merged": len(measures.merged)}
    verdict = STOP if measures.special else LOOK if findings else OK
    return Check("template", verdict, reason, findings, figures)


def _check_first_word(preferences: Sequence[Preference]) -> Check:
    gaps = bias.first_word_gaps(preferences)
    score = bet(gaps)
    verdict = bet_verdict(score)
    reason = _surface_reason("the better first word", score)
    if verdict != OK:
        reason += "; " + ", ".join(bias.telling_first_words(preferences))
    findings = []
    for flagged in _widest(gaps, score, ""):
        row = preferences[flagged.rows[0] - 1]
        chosen, rejected = bias.first_word(row.chosen), bias.first_word(row.rejected)
        findings.append(FlaggedRows(flagged.rows, f"{chosen!r} over {rejected!r}"))
    return Check("first word", verdict, reason, findings, score.figures())


def _surface_reason(rule: str, score: Bet) -> str:
    return f'"{rule} wins" is right in {score}; no difference in {score.ties}'


def _widest(gaps: bias.Values, score: Bet, unit: str) -> list[FlaggedRows]:
    """The pairs that shape the bet's record most: the widest gaps on the side it leans to."""
    leaning = gaps if score.auc >= 0.5 else -gaps
    worst: list[int] = np.argsort(-leaning, kind="stable").tolist()
    return [
        FlaggedRows((row + 1,), f"gap {gaps[row]:+.3g} {unit}".rstrip())
        for row in worst[:_SHOWN]
        if leaning[row] > 0
    ]


def _share_verdict(count: int, total: int, many: float) -> str:
    """What so many faulty rows mean: some are mended by hand, many are a broken source."""
    return STOP if count > many * total else LOOK if count else OK


def _leaks(
    rows: Sequence[Preference], is_held: Sequence[bool], shingles: Sequence[Shingles]
) -> tuple[list[tuple[int, int]], list[tuple[int, int, float]]]:
    """``(held-out row, training row)`` with the same prompt; then those alike, and how much."""
    trained: dict[object, int] = {}
    index = copies.NearIndex()
    for row, is_out in enumerate(is_held):
        if not is_out:
            trained.setdefault(copies.prompt_key(rows[row]), row)
            index.match_or_add(row, shingles[row])
    same, near = [], []
    for row, is_out in enumerate(is_held):
        if is_out and (known := trained.get(copies.prompt_key(rows[row]))) is not None:
            same.append((row, known))
        elif is_out and (match := index.most_like(shingles[row])) is not None:
            near.append((row, *match))
    return same, near

"""Checks for rows that should not be there, or not as they are."""

from collections.abc import Sequence

import numpy as np

from mlx_dpo.insight.audit import copies
from mlx_dpo.insight.audit.bias import Measures
from mlx_dpo.insight.audit.copies import Shingles
from mlx_dpo.insight.audit.verdicts import (
    LOOK,
    MANY_CONTRADICTIONS,
    MANY_COPIES,
    MANY_CUT,
    MANY_LEAKS,
    OK,
    STOP,
    UNCHECKED,
    Check,
    Finding,
    share_verdict,
)
from mlx_dpo.preferences.split import held_out
from mlx_dpo.records import Preference
from mlx_dpo.runs.config import RunConfig


def check_copies(preferences: Sequence[Preference], shingles: Sequence[Shingles]) -> list[Check]:
    """Rows that come twice, word for word and nearly so."""
    num = len(preferences)
    exact = copies.copies(preferences)
    near = copies.near_copies(shingles, skip={row for row, _ in exact})
    near.sort(key=lambda found: -found[2])
    return [
        Check(
            "duplicates",
            share_verdict(len(exact), num, MANY_COPIES),
            f"{len(exact)} of {num} rows repeat an earlier one, case and white space aside",
            [Finding((first + 1, row + 1), "the same pair") for row, first in exact],
            {"rows": len(exact)},
        ),
        Check(
            "near-duplicates",
            share_verdict(len(near), num, MANY_COPIES),
            f"{len(near)} of {num} rows share {copies.NEAR:.0%} of their word triples with an "
            "earlier one",
            [
                Finding((first + 1, row + 1), f"{int(100 * like)} % alike")
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
        Finding(
            tuple(row + 1 for row in rows),
            "chosen and rejected are the same" if len(rows) == 1 else "prefer in a circle",
        )
        for rows in groups
    ]
    reason = f"{count} of {len(preferences)} rows contradict another, or themselves"
    verdict = share_verdict(count, len(preferences), MANY_CONTRADICTIONS)
    return Check("contradictions", verdict, reason, findings, {"rows": count})


def check_leaks(
    preferences: Sequence[Preference],
    eval_preferences: Sequence[Preference] | None,
    shingles: Sequence[Shingles],
) -> Check:
    """Held-out pairs that training has seen measure memory.

    Args:
        preferences: Rows to train on, and to hold out of where there is no other file.
        eval_preferences: Rows of the held-out file.
        shingles: Word triples of all rows, those of the held-out file last.
    """
    name = "held-out leaks"
    num = len(preferences)
    if eval_preferences is None:
        rows, where = list(preferences), "in the split that training makes, "
        is_held = held_out(preferences, RunConfig.eval_fraction)
    else:
        rows, where = [*preferences, *eval_preferences], ""
        is_held = [row >= num for row in range(len(rows))]
    num_held = sum(is_held)
    if not num_held:
        return Check(name, UNCHECKED, "too few prompts to hold any out")
    same, near = _leaks(rows, is_held, shingles)

    def held_row(row: int) -> str:
        return f"held-out row {row + 1 if eval_preferences is None else row - num + 1}"

    findings = [Finding((t + 1,), f"has the prompt of {held_row(row)}") for row, t in same]
    findings += [
        Finding((t + 1,), f"is {int(100 * like)} % like {held_row(row)}") for row, t, like in near
    ]
    verdict = share_verdict(len(same), num_held, MANY_LEAKS)
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
        share_verdict(len(worst), len(full), MANY_CUT),
        reason,
        [Finding((row + 1,), f"{int(full[row])} tokens") for row in worst],
        {"cut": len(cut), "dropped": len(gone), "longest": int(full.max())},
    )


def check_template(measures: Measures) -> Check:
    """Words that are tokens, which training refuses, and tokens across prompt and answer."""
    if measures.unit != "tokens":
        return Check("template", UNCHECKED, "a model's markers need --model")
    findings = [
        Finding((row + 1,), f"{part} holds {text!r}, a token of this model")
        for row, part, text in measures.special
    ] + [Finding((row + 1,), "a token spans prompt and answer") for row in measures.merged]
    reason = (
        f"{len(measures.special)} of {len(measures.lengths.T)} pairs hold the text of a special "
        f"token, which training refuses; {len(measures.merged)} have a token across the boundary "
        "of prompt and answer"
    )
    figures = {"special": len(measures.special), "merged": len(measures.merged)}
    verdict = STOP if measures.special else LOOK if findings else OK
    return Check("template", verdict, reason, findings, figures)


def _leaks(
    rows: Sequence[Preference], is_held: Sequence[bool], shingles: Sequence[Shingles]
) -> tuple[list[tuple[int, int]], list[tuple[int, int, float]]]:
    """``(held-out row, training row)`` of one prompt; then, with their similarity, those alike."""
    trained: dict[object, int] = {}
    index = copies.NearIndex()
    for row, is_out in enumerate(is_held):
        if not is_out:
            trained.setdefault(copies.prompt_key(rows[row]), row)
            if index.most_like(shingles[row]) is None:
                index.add(row, shingles[row])
    same, near = [], []
    for row, is_out in enumerate(is_held):
        if is_out and (known := trained.get(copies.prompt_key(rows[row]))) is not None:
            same.append((row, known))
        elif is_out and (match := index.most_like(shingles[row])) is not None:
            near.append((row, *match))
    return same, near

"""Checks for what a model could learn instead of what the pairs are meant to teach."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from mlx_dpo.errors import DataError
from mlx_dpo.insight.audit import shortcuts
from mlx_dpo.insight.audit.shortcuts import Bet, bet, feature_gaps, num_words, text_of
from mlx_dpo.insight.audit.verdicts import LOOK, OK, STOP, Check, Finding, bet_verdict
from mlx_dpo.preferences.chat import ChatFormat
from mlx_dpo.preferences.encoding import find_special, special_tokens
from mlx_dpo.preferences.store import LOPSIDED
from mlx_dpo.records import Preference

# --- How long prompts and answers are, in tokens of a model or,
# without one, in words.


_BATCH = 256  # rows tokenised together

Lengths = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Measures:
    """Lengths of N pairs, nothing cut.

    Attributes:
        unit: "tokens" or "words".
        lengths: int (3, N): prompt, chosen, rejected.
        merged: Rows where a token spans the boundary of prompt and answer; tokens only.
        special: Rows whose words hold the text of a token of the model's own: the row, the part
            (prompt, chosen or rejected) and the text; tokens only.
    """

    unit: str
    lengths: Lengths
    merged: list[int] = field(default_factory=list)
    special: list[tuple[int, str, str]] = field(default_factory=list)

    @property
    def gaps(self) -> Lengths:
        """Length of chosen minus length of rejected, (N,)."""
        gaps: Lengths = self.lengths[1] - self.lengths[2]
        return gaps


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar of a histogram: gaps from `low` to `high`, both included; None is open."""

    low: int | None
    high: int | None
    count: int


def in_words(preferences: Sequence[Preference]) -> Measures:
    """Lengths in words, for those who name no model."""
    rows = [
        [num_words(text_of(side)) for side in (p.prompt, p.chosen, p.rejected)] for p in preferences
    ]
    return Measures("words", np.array(rows, dtype=np.int64).T)


def in_tokens(
    preferences: Sequence[Preference],
    chat: ChatFormat,
    after_rows: Callable[[int], None] = lambda count: None,
    refused: list[int] | None = None,
) -> Measures:
    """Lengths in tokens, template and closing token counted as in training.

    Args:
        preferences: The rows.
        chat: The model's conversation format.
        after_rows: Called with how many more are done.
        refused: Gets the positions of rows that the chat template refuses, which are not measured.

    Raises:
        DataError: If the chat template refuses a row and there is no `refused`.
    """
    rows: list[list[int]] = []
    merged, special, pattern = [], [], special_tokens(chat)
    for start in range(0, len(preferences), _BATCH):
        batch = preferences[start : start + _BATCH]
        found = chat.encode_pairs(batch)
        for position, encoded in enumerate(found, start):
            if isinstance(encoded, DataError):
                if refused is None:
                    raise DataError(f"row {position + 1}: {encoded}")
                refused.append(position)
                continue
            example, has_merge = encoded
            row = len(rows)
            rows.append([len(ids) for ids in example])
            if has_merge:
                merged.append(row)
            if pattern and (words := find_special(batch[position - start], pattern)):
                special.append((row, *words))
        after_rows(len(found))
    return Measures("tokens", np.array(rows, dtype=np.int64).T, merged, special)


def histogram(gaps: npt.NDArray[Any], bars_each_side: int = 4) -> list[Bar]:
    """Count whole-number gaps in bars of one width around zero; the outermost are open.

    The width is odd, so that the middle bar reaches as far to either side, and wide enough for 19
    of 20 gaps to lie in closed bars.
    """
    reach = float(np.quantile(np.abs(gaps), 0.95))
    half = 0
    while (2 * half + 1) * (bars_each_side - 0.5) < reach:
        half += 1
    width = 2 * half + 1
    place = np.clip(np.floor_divide(gaps + half, width), -bars_each_side, bars_each_side)
    bars = []
    for number in range(-bars_each_side, bars_each_side + 1):
        low, high = number * width - half, number * width + half
        bars.append(
            Bar(
                None if number == -bars_each_side else low,
                None if number == bars_each_side else high,
                int((place == number).sum()),
            )
        )
    return bars


LENGTH, BY_KIND = "length bias", "length by kind"
_SHOWN = 20  # rows a check names; the widest gaps


def check_length(preferences: Sequence[Preference], measures: Measures) -> Check:
    """Can the pairs be learned by writing more, or less?"""
    gaps = measures.gaps
    score = bet(gaps)
    verdict = bet_verdict(score)
    num = len(gaps)
    longer, shorter = (gaps > 0).sum() / num, (gaps < 0).sum() / num
    reason = (
        f'"the longer one wins" is right in {_figure(score)} of {num} pairs; chosen longer '
        f"{longer:.0%}, shorter {shorter:.0%}; gap median {np.median(gaps):+g}, mean "
        f"{gaps.mean():+.1f} {measures.unit}"
    )
    figures = {
        **_figures(score),
        "chosen_longer": longer,
        "rejected_longer": shorter,
        "median_gap": float(np.median(gaps)),
        "mean_gap": float(gaps.mean()),
        "unit": measures.unit,
    }
    if measures.unit == "words":
        characters = bet(feature_gaps(preferences, len))
        verdict = max(verdict, bet_verdict(characters), key=[OK, LOOK, STOP].index)
        reason += f"; counted in characters {_figure(characters)}"
        figures["characters"] = _figures(characters)
    return Check(LENGTH, verdict, reason, _extremes(gaps, score, measures.unit), figures)


def check_surface(preferences: Sequence[Preference]) -> list[Check]:
    """Do marks, layout or the first word give the chosen answer away?"""
    gaps_of = partial(feature_gaps, preferences)
    features: list[tuple[str, str, npt.NDArray[Any]]] = [
        ("punctuation", "more punctuation a word", gaps_of(shortcuts.punctuation)),
        ("markdown", "more markdown", gaps_of(shortcuts.markdown)),
        ("sentences", "more sentences", gaps_of(shortcuts.sentences)),
        ("first word", "the better first word", shortcuts.first_word_gaps(preferences)),
    ]
    checks = []
    for name, rule, gaps in features:
        score = bet(gaps)
        verdict = bet_verdict(score)
        findings = _extremes(gaps, score, "")
        reason = f'"{rule} wins" is right in {_figure(score)}; no difference in {score.ties}'
        if name == "first word":
            if verdict != OK:
                reason += "; " + ", ".join(shortcuts.telling_first_words(preferences))
            findings = [_with_first_words(finding, preferences) for finding in findings]
        checks.append(Check(name, verdict, reason, findings, _figures(score)))
    return checks


def check_kinds(preferences: Sequence[Preference], measures: Measures) -> Check:
    """Lengths that balance over all and not within a kind teach length where that kind is asked."""
    gaps = measures.gaps
    table = []
    for kind, rows in shortcuts.rows_by_kind(preferences).items():
        score = bet(gaps[rows])
        table.append({"kind": kind, **_figures(score), "mean_gap": float(gaps[rows].mean())})
    lopsided = [
        f"{row['kind'] or '(none)'} {row['auc']:.2f}"
        for row in table
        if row["interval"][1] < LOPSIDED[0] or row["interval"][0] > LOPSIDED[1]
    ]
    figures = {"kinds": table}
    if len(table) == 1:
        return Check(BY_KIND, OK, "the pairs are of one kind", [], figures)
    if lopsided:
        # Not "stop": of many kinds one is lopsided by chance, and a kind may be about length.
        reason = f'"the longer one wins" tells in {len(lopsided)} of {len(table)} kinds: '
        return Check(BY_KIND, LOOK, reason + ", ".join(lopsided), [], figures)
    shares = [row["auc"] for row in table]
    reason = (
        f'"the longer one wins" is right in {min(shares):.2f} to {max(shares):.2f} of the '
        f"{len(table)} kinds, none beyond chance and {LOPSIDED[1]}"
    )
    return Check(BY_KIND, OK, reason, [], figures)


def _extremes(gaps: npt.NDArray[Any], score: Bet, unit: str) -> list[Finding]:
    """The pairs that make the bet's record most: the widest gaps on the side it leans to."""
    leaning = gaps if score.auc >= 0.5 else -gaps
    worst: list[int] = np.argsort(-leaning, kind="stable").tolist()
    return [
        Finding((row + 1,), f"gap {gaps[row]:+.3g} {unit}".rstrip())
        for row in worst[:_SHOWN]
        if leaning[row] > 0
    ]


def _with_first_words(finding: Finding, preferences: Sequence[Preference]) -> Finding:
    row = preferences[finding.rows[0] - 1]
    chosen, rejected = shortcuts.first_word(row.chosen), shortcuts.first_word(row.rejected)
    return Finding(finding.rows, f"{chosen!r} over {rejected!r}")


def _figure(score: Bet) -> str:
    low, high = score.interval
    return f"{score.auc:.2f} ({low:.2f}-{high:.2f})"


def _figures(score: Bet) -> dict[str, Any]:
    return {
        "auc": score.auc,
        "interval": list(score.interval),
        "ties": score.ties,
        "pairs": score.num_pairs,
    }

"""Pairs of text in memory to token ids, for those who call this project from their own code."""

import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from mlx_dpo.errors import DataError
from mlx_dpo.preferences.chat import chat_format
from mlx_dpo.preferences.encoding import PairEncoder, in_batches
from mlx_dpo.preferences.json_text import Finding
from mlx_dpo.preferences.reader import Repeats
from mlx_dpo.preferences.schema import ERROR, KEYS, LEVELS, WARNING, by_code, read_preference
from mlx_dpo.records import Preference, PreferenceExample


def encode(
    rows: Iterable[Mapping[str, Any] | Preference],
    tokenizer: Any,
    *,
    max_length: int = 512,
    drop_bad: bool = False,
    date: str | None = None,
) -> list[PreferenceExample]:
    """Token ids of preference pairs, as `mlx_dpo train` makes them from a file.

    The chat template is applied, each answer ends with one closing token, which is scored, and
    nothing follows it. Pairs that teach nothing (equal answers, a prompt that fills the length) are
    left out, and a `UserWarning` counts them and the answers that are cut.

    Args:
        rows: Each with ``prompt``, ``chosen`` and ``rejected``, texts or lists of messages, as in a
            preference file; or from `read_preferences`.
        tokenizer: As `load` returns it, or of transformers.
        max_length: Tokens kept of prompt + response.
        drop_bad: Whether rows with errors are left out, and counted, instead of refused.
        date: The date that a chat template gets if it asks, YYYY-MM-DD.

    Returns:
        The pairs to train on, in the order of the rows.

    Raises:
        DataError: If a row has an error and `drop_bad` is off, or no pair is left.
        UsageError: If the tokenizer has no closing token, or its template fails.
    """
    pairs, left_out = _checked(rows)
    encoder = PairEncoder(chat_format(tokenizer, date), max_length)
    fitted = [pair for batch in in_batches(list(pairs.values())) for pair in encoder(batch)]
    notes = Counter[str]()
    examples = []
    for number, pair in zip(pairs, fitted, strict=True):
        if pair.is_kept:
            examples.append(pair.example)
            notes.update([pair.finding.code] if pair.finding else [])
        elif pair.finding:
            left_out[number] = pair.finding
    notes.update(finding.code for finding in left_out.values())
    errors = sorted(number for number, why in left_out.items() if LEVELS[why.code] == ERROR)
    if errors and not drop_bad:
        text = _said(errors[0], left_out[errors[0]])
        raise DataError(text if len(errors) == 1 else f"{text} (the first of {len(errors)} errors)")
    if not examples:
        why = _said(*min(left_out.items())) if left_out else "there are no rows"
        raise DataError(f"no pair is left to train on: {why}")
    if notes:
        kept = f"{len(examples)} of {len(examples) + len(left_out)} rows are kept"
        warnings.warn(f"{kept}: {by_code(notes)}", stacklevel=2)
    return examples


def _checked(
    rows: Iterable[Mapping[str, Any] | Preference],
) -> tuple[dict[int, Preference], dict[int, Finding]]:
    """The usable pairs by number of their row, and why each of the others is not."""
    pairs: dict[int, Preference] = {}
    left_out: dict[int, Finding] = {}
    repeats, known = Repeats(), set(KEYS)
    for number, row in enumerate(rows, 1):
        findings: list[Finding] = []
        if isinstance(row, Preference):
            pair: Preference | None = row
        else:
            plain = dict(row) if isinstance(row, Mapping) else row
            pair = read_preference(plain, number, known, findings)
        if pair is not None:
            pairs[number] = pair
            again, opposite = repeats.look(pair, number)
            findings += again
            if opposite is not None:  # nobody knows which of the two is right
                reason = f"row {number} prefers the other way round"
                contradiction = Finding("contradiction", "chosen", reason, "decide, and remove one")
                left_out.setdefault(opposite, contradiction)
        for finding in findings:
            if LEVELS[finding.code] != WARNING:
                left_out.setdefault(number, finding)
    return {n: pair for n, pair in pairs.items() if n not in left_out}, left_out


def _said(number: int, finding: Finding) -> str:
    hint = f"; {finding.hint}" if finding.hint else ""
    # Hints are written for the command line.
    return f"row {number}: {finding.code}: {finding.reason}{hint}".replace(
        "--max-length", "max_length"
    )

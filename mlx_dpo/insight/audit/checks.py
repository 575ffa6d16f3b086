"""Is a preference file fit to train on? A verdict for each thing that spoils DPO unseen."""

from collections.abc import Sequence

from mlx_dpo.insight.audit.bias import Measures, check_kinds, check_length, check_surface
from mlx_dpo.insight.audit.copies import pair_texts, shingle_sets
from mlx_dpo.insight.audit.faults import (
    check_contradictions,
    check_copies,
    check_leaks,
    check_template,
    check_truncation,
)
from mlx_dpo.insight.audit.verdicts import Check
from mlx_dpo.records import Preference


def audit(
    preferences: Sequence[Preference],
    measures: Measures,
    *,
    max_length: int,
    eval_preferences: Sequence[Preference] | None = None,
) -> list[Check]:
    """Every check, in the order they are shown.

    Args:
        preferences: The rows to train on, at least one.
        measures: Their lengths.
        max_length: Tokens training would keep of prompt + response.
        eval_preferences: Held-out rows in a file of their own; None looks at the split that
            training would make of `preferences`.
    """
    held_out = eval_preferences or []
    shingles = shingle_sets([pair_texts(p) for p in (*preferences, *held_out)])
    return [
        check_length(preferences, measures),
        *check_surface(preferences),
        check_kinds(preferences, measures),
        *check_copies(preferences, shingles[: len(preferences)]),
        check_contradictions(preferences),
        check_leaks(preferences, eval_preferences, shingles),
        check_truncation(measures, max_length),
        check_template(measures),
    ]

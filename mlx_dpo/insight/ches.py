"""How alike the two answers of a pair are to a model: the CHES score (arXiv:2410.08847).

Training raises the chosen answer above the rejected one. Where the model's hidden states of both
are nearly the same, what lowers the rejected answer may lower the chosen one too, and a third
gains. docs/effects.md has how far that held where it was measured.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import numpy.typing as npt

from mlx_dpo.errors import DataError, UsageError
from mlx_dpo.insight.scoring import open_model
from mlx_dpo.models.parts import UnknownStructureError
from mlx_dpo.preferences.chat import pad_id_of
from mlx_dpo.preferences.collate import pad_and_collate_pref
from mlx_dpo.preferences.encoding import encode_preferences
from mlx_dpo.records import Preference, PreferenceExample
from mlx_dpo.training.head import hidden_states
from mlx_dpo.training.reference import score_in_batches

BATCH = 4  # pairs a forward

Progress = Callable[[str, int, int], None]  # called with what, how many, and how many more are done
Scores = npt.NDArray[np.float32]


def ches_scores(
    model: nn.Module,
    examples: Sequence[PreferenceExample],
    *,
    max_length: int,
    pad_id: int,
    by_length: bool = True,
    after_batch: Callable[[int], None] | None = None,
) -> Scores:
    """Centered hidden embedding similarity of each pair, (h+ . h-) - (h+ . h+).

    h is the sum of the trunk's output over the positions that predict an answer's tokens
    (Definition 2 of arXiv:2410.08847), or their mean (section 6): a sum grows with an answer's
    length, so that long answers would be called alike for being long.

    Args:
        model: The reference; it is only read.
        examples: N pairs.
        max_length: Tokens kept of prompt + response.
        pad_id: Any valid token id.
        by_length: Whether h is a mean.
        after_batch: Called with the number of pairs just scored.

    Returns:
        float32 (N,): the higher, the more alike; 0 where both are the same to the model.

    Raises:
        UnknownStructureError: If the model's trunk and head can't be told apart.
    """

    def score(batch: Sequence[PreferenceExample]) -> mx.array:
        longest = max(len(e.prompt_ids) + max(map(len, e[1:])) for e in batch)
        cx, _, cm, rx, _, rm = pad_and_collate_pref(
            batch, max_seq_len=min(max(longest, 2), max_length), pad_id=pad_id
        )
        chosen, rejected = (
            _over_answer(hidden_states(model, ids, None), mask, mean=by_length)
            for ids, mask in ((cx, cm), (rx, rm))
        )
        ches = ((rejected - chosen) * chosen).sum(axis=-1)
        return mx.stack([ches, ches])

    # A row for each side of a pair is what the batches are for: both hold the score.
    both = score_in_batches(score, examples, batch_size=BATCH, after_batch=after_batch)
    scores: Scores = both[0]
    return scores


def _over_answer(hidden: mx.array, mask: mx.array, *, mean: bool) -> mx.array:
    """Sum or mean over the positions of an answer: (B, T, H) and (B, T) to float32 (B, H)."""
    # where, not a product: padding may hold anything.
    total = mx.where(mask[..., None] > 0, hidden.astype(mx.float32), 0.0).sum(axis=1)
    return total / mx.maximum(mask.sum(axis=1, keepdims=True), 1) if mean else total


@dataclass(frozen=True)
class Scored:
    """Pairs of a file with their scores.

    Attributes:
        preferences: Those that fit the model.
        scores: Of `ches_scores`, in their order.
    """

    preferences: list[Preference]
    scores: Scores

    def most_alike(self, share: float) -> list[int]:
        """Indices of the pairs with the highest scores, highest first: at least one."""
        count = max(1, round(share * len(self.scores)))
        ranked: list[int] = np.argsort(-self.scores, kind="stable")[:count].tolist()
        return ranked

    def by_id(self) -> dict[str, float]:
        """The score of each pair."""
        pairs = zip(self.preferences, self.scores.tolist(), strict=True)
        return {preference.id: score for preference, score in pairs}


def score_file(
    model: str, preferences: Sequence[Preference], *, max_length: int, progress: Progress
) -> Scored:
    """The scores of preferences under a model of any form that `open_model` takes.

    Pairs that training would leave out have none.

    Raises:
        UsageError: If the model can't be loaded, or its head can't be told apart.
        DataError: If no pair is left.
    """
    loaded = open_model(model)
    pairs = encode_preferences(preferences, loaded.chat, max_length=max_length, drop_bad=True)
    if not pairs.examples:
        raise DataError("no pair is left to score; see --max-length")
    loaded.check_ids(pairs.examples)
    try:
        scores = ches_scores(
            loaded.model,
            pairs.examples,
            max_length=max_length,
            pad_id=pad_id_of(loaded.chat.tokenizer),
            after_batch=lambda more: progress("pairs", len(pairs.examples), more),
        )
    except UnknownStructureError as error:
        raise UsageError(f"{model}: CHES can't be computed: {error}") from None
    return Scored(list(pairs.preferences), scores)

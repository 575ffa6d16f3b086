"""Log-probability of responses: the quantity everything in DPO is made of.

Shapes: B pairs, T positions, V vocabulary.
"""

from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn

from mlx_dpo.preferences.collate import pad_and_collate_pref
from mlx_dpo.records import PreferenceExample
from mlx_dpo.training.prompts import caches_of_whole_rows


def sequence_logprob(logits: mx.array, targets: mx.array, mask: mx.array) -> mx.array:
    """Sum of log p(target) over masked positions, in nats.

    A sum and not a mean: a mean would reward a response for its length (the loss compares
    probabilities of whole responses, Eq. 7 of arXiv:2305.18290).

    Args:
        logits: (B, T, V), any float dtype; the log-softmax runs in float32, because bfloat16 sums
            of a hundred terms are off by more than a nat.
        targets: int (B, T), already shifted.
        mask: (B, T), 1 where the position counts, else 0.

    Returns:
        float32 (B,).

    Raises:
        ValueError: If the shapes disagree.
    """
    if logits.ndim != 3 or targets.shape != logits.shape[:2] or mask.shape != targets.shape:
        raise ValueError(
            "expected logits (B, T, V) with targets and mask (B, T), got "
            f"{logits.shape}, {targets.shape}, {mask.shape}"
        )
    logits = logits.astype(mx.float32)
    picked = mx.take_along_axis(logits, targets[..., None], axis=-1).squeeze(-1)
    token_logprob = picked - mx.logsumexp(logits, axis=-1)
    # where, not a product: 0 * inf on a position that does not count would be NaN.
    return mx.where(mask > 0, token_logprob, 0.0).sum(axis=-1)


def pair_logprobs(
    model: nn.Module,
    examples: Sequence[PreferenceExample],
    *,
    max_seq_len: int,
    pad_id: int,
    in_turn: bool = False,
) -> mx.array:
    """Response log-probs of a batch of pairs under a model, differentiable.

    The plain definition that every faster way must agree with: collate, two forwards, full logits.
    Rows are padded on the right to the longest of this batch, which is exact for causal models.

    Args:
        model: Called as ``model(ids)`` with int32 (B, T); returns logits (B, T, V). If layers read
            the keys of earlier ones, it gets caches for these, as it does when it generates.
        examples: B pairs.
        max_seq_len: Longest prompt + response in tokens; what is beyond it is cut.
        pad_id: Token id to pad with; any valid id, since padding is never scored.
        in_turn: Whether the second forward waits for the first, so that the logits of one are
            there at a time.

    Returns:
        float32 (2, B): chosen in row 0, rejected in row 1.
    """
    longest = max(len(e.prompt_ids) + max(len(e.chosen_ids), len(e.rejected_ids)) for e in examples)
    cx, cy, cm, rx, ry, rm = pad_and_collate_pref(
        examples, max_seq_len=min(max(longest, 2), max_seq_len), pad_id=pad_id
    )
    chosen = sequence_logprob(_logits(model, cx), cy, cm)
    if in_turn:
        (rx,) = mx.depends([rx], [chosen])
    rejected = sequence_logprob(_logits(model, rx), ry, rm)
    return mx.stack([chosen, rejected])


def _logits(model: nn.Module, ids: mx.array) -> mx.array:
    caches = caches_of_whole_rows(model)
    logits: mx.array = model(ids) if caches is None else model(ids, cache=caches)
    return logits

"""From token ids to padded arrays: the one place where targets are shifted."""

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from mlx_dpo.records import PreferenceExample


def pad_and_collate_pref(
    examples: Sequence[PreferenceExample], *, max_seq_len: int, pad_id: int
) -> tuple[mx.array, mx.array, mx.array, mx.array, mx.array, mx.array]:
    """Inputs, targets and mask for the chosen and the rejected side of each pair.

    Each row is prompt + response, cut to its first ``max_seq_len`` ids and padded on the right.
    Everything after this function gets arrays of equal shape and never slices. For the pair
    ``([7, 8], [1, 2], [3])`` with ``max_seq_len=5`` and ``pad_id=0`` the chosen side is::

        cx = [[7, 8, 1, 2]]      what the model reads
        cy = [[8, 1, 2, 0]]      what it should say next
        cm = [[0, 1, 1, 0]]      1 where the target is a response token

    The mask goes by length and not by id, so a pad id inside a response is scored like any other
    token. A response that is cut away whole has a mask of zeros; the data layer reports it.

    Args:
        examples: B pairs.
        max_seq_len: Tokens kept of prompt + response, at least 2.
        pad_id: Id that fills the rest of a row.

    Returns:
        ``(cx, cy, cm, rx, ry, rm)``, each (B, max_seq_len - 1): x and y int32, masks float32.

    Raises:
        ValueError: If there are no examples or ``max_seq_len`` is below 2.
    """
    if not examples:
        raise ValueError("pad_and_collate_pref needs at least one example")
    if max_seq_len <= 1:
        raise ValueError(f"max_seq_len must be at least 2, got {max_seq_len}")
    prompts = [e.prompt_ids for e in examples]
    chosen = _collate_side(prompts, [e.chosen_ids for e in examples], max_seq_len, pad_id)
    rejected = _collate_side(prompts, [e.rejected_ids for e in examples], max_seq_len, pad_id)
    return (*chosen, *rejected)


def _collate_side(
    prompts: list[list[int]], responses: list[list[int]], max_seq_len: int, pad_id: int
) -> tuple[mx.array, mx.array, mx.array]:
    tokens = np.full((len(prompts), max_seq_len), pad_id, dtype=np.int32)
    is_response = np.zeros((len(prompts), max_seq_len), dtype=np.float32)
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        ids = [*prompt, *response][:max_seq_len]
        tokens[row, : len(ids)] = ids
        is_response[row, len(prompt) : len(ids)] = 1
    return mx.array(tokens[:, :-1]), mx.array(tokens[:, 1:]), mx.array(is_response[:, 1:])

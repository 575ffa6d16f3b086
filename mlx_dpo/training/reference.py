"""Where reference log-probs come from: ``reference(examples) -> float32 (2, B)``.

The sources give the same numbers to float rounding. The frozen copy is the definition; the cached
one needs no second model in memory, because before the first update the policy *is* the reference.
With adapters the reference is the same weights with the adapter off.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import numpy.typing as npt
from mlx.utils import tree_flatten

from mlx_dpo.errors import DataError
from mlx_dpo.models.adapters import without_adapter
from mlx_dpo.models.device import tf32_enabled
from mlx_dpo.models.packed import is_packed
from mlx_dpo.models.parameters import is_float
from mlx_dpo.models.parts import in_training_mode, replaced
from mlx_dpo.preferences.store import lengths
from mlx_dpo.records import PreferenceExample
from mlx_dpo.training.peers import Alone

# Short pairs are scored so many times as many together as in a step, up to so many tokens. Products
# of more rows take less time a row, and what all prompts begin with is read once for all.
TIMES_AS_MANY, TOKENS_TOGETHER = 8, 2048

Score = Callable[[nn.Module, Sequence[PreferenceExample]], mx.array]
Reference = Callable[[Sequence[PreferenceExample]], mx.array]


def frozen_reference(model: nn.Module, score: Score) -> Reference:
    """Log-probs from a second model, which is frozen here and never changes.

    Args:
        model: The reference copy; frozen and put in the mode that the policy is in.
        score: The scoring path, shared with the policy so that step 0 is exact.
    """
    model.freeze()
    in_training_mode(model)

    def reference(examples: Sequence[PreferenceExample]) -> mx.array:
        return mx.stop_gradient(score(model, examples))

    return reference


def reference_path(path: Score, *, float32: bool) -> Score:
    """How reference log-probs are computed: by the path alone where products are exact enough.

    Args:
        path: The path of the policy's log-probs.
        float32: Whether the model is computed in float32; with TF32 its products are not.
    """
    return path if float32 and not tf32_enabled() else as_in_a_step(path)


def as_in_a_step(path: Score) -> Score:
    """The same log-probs, computed the way a training step computes them: under a gradient.

    MLX takes other kernels where a gradient is wanted (attention in parts instead of fused,
    activations that are not compiled). In float32 they differ by rounding; in bfloat16 by tenths
    of a nat, on one side of the loss only. The gradient is never evaluated, and keeps nothing.

    Args:
        path: Log-probs (2, B) of a batch under a model, which may be frozen.
    """

    def score(model: nn.Module, examples: Sequence[PreferenceExample]) -> mx.array:
        def logprobs(parameters: Any) -> tuple[mx.array, mx.array]:
            result = path(replaced(model, parameters), examples)
            return result.sum(), result

        parameters = model.trainable_parameters()
        if not tree_flatten(parameters):
            parameters = _differentiable(model)
        (_, result), _ = mx.value_and_grad(logprobs)(parameters)
        return mx.stop_gradient(result)

    return score


def adapter_off(model: nn.Module, score: Score) -> Reference:
    """Log-probs from the policy's own base: the same weights, its adapter counting nothing.

    Args:
        model: The policy, with an adapter.
        score: The scoring path, shared with the policy so that step 0 is exact.
    """
    base = without_adapter(model)

    def reference(examples: Sequence[PreferenceExample]) -> mx.array:
        return mx.stop_gradient(score(base, examples))

    return reference


def _differentiable(model: nn.Module) -> Any:
    """The parameters of a frozen model that have a gradient: packed ones do not."""

    def has_gradient(module: nn.Module, name: str, value: Any) -> bool:
        if not nn.Module.valid_parameter_filter(module, name, value):
            return False
        return isinstance(value, dict | list) or (is_float(value) and not is_packed(module))

    return model.filter_and_map(has_gradient)


def example_digest(example: PreferenceExample) -> bytes:
    """32 bytes that stand for the exact token ids of a pair."""
    text = ";".join(",".join(map(str, ids)) for ids in example)
    return hashlib.sha256(text.encode()).digest()


def cached_reference(
    examples: Sequence[PreferenceExample],
    logprobs: npt.NDArray[np.float32],
    batches: Iterable[Sequence[int]] = (),
) -> Reference:
    """Log-probs looked up by token ids.

    Args:
        examples: N pairs.
        logprobs: float32 (2, N), chosen and rejected, by the untrained policy.
        batches: Indices of the pairs of each forward they are from, where that counts: of a pair
            that is there twice, each copy rounds as its own forward does.

    Returns:
        A reference that raises DataError for a pair it does not hold: a missing value is never
        guessed.
    """
    digests = [example_digest(example) for example in examples]
    row_of = {digest: row for row, digest in enumerate(digests)}
    rows_of_batch = {tuple(digests[row] for row in rows): rows for rows in batches}

    def reference(batch: Sequence[PreferenceExample]) -> mx.array:
        wanted = tuple(map(example_digest, batch))
        try:
            rows = rows_of_batch.get(wanted) or [row_of[digest] for digest in wanted]
        except KeyError:
            raise DataError(
                "a pair has no cached reference log-prob: it was not among the pairs the reference "
                "was computed for; start the run again, or use --reference copy"
            ) from None
        return mx.array(logprobs[:, rows])

    return reference


def score_in_batches(
    score: Reference,
    examples: Sequence[PreferenceExample],
    *,
    batch_size: int,
    batches: Iterable[Sequence[int]] | None = None,
    before_batch: Callable[[], None] | None = None,
    after_batch: Callable[[int], None] | None = None,
    peers: Alone | None = None,
) -> npt.NDArray[np.float32]:
    """Score every pair once, without gradient.

    By default pairs of like length go into a batch together, so that little is spent on padding,
    and more of them than in a step, which keeps what its gradient needs. The result comes back in
    the order given.

    Args:
        score: Log-probs (2, B) of a batch, of the policy or the reference.
        examples: N pairs.
        batch_size: Pairs per forward, and more of short ones.
        batches: Indices of the pairs of each forward, instead.
        before_batch: Called before each forward; it may raise.
        after_batch: Called with the number of pairs just scored, by all processes.
        peers: The processes among whom the batches are shared out.

    Returns:
        float32 (2, N).
    """
    peers = peers or Alone()
    logprobs = np.zeros((2, len(examples)), dtype=np.float32)
    for mine, num_pairs in peers.rounds(batches or rows_by_length(examples, batch_size)):
        if before_batch is not None:
            before_batch()
        for rows in mine:
            logprobs[:, rows] = np.array(score([examples[row] for row in rows]))
        if after_batch is not None:
            after_batch(num_pairs)
    return peers.table("scores", logprobs)


def rows_by_length(examples: Sequence[PreferenceExample], batch_size: int) -> Iterator[list[int]]:
    """Indices of pairs of like length to score together.

    Those are `batch_size`, and up to `TIMES_AS_MANY` times as many where they are short.
    """
    sizes = lengths(examples)
    longer = sizes[:, 0] + sizes[:, 1:].max(axis=1)
    batch: list[int] = []
    held = 0
    for row in np.argsort(longer, kind="stable").tolist():
        tokens = int(sizes[row].sum())
        is_full = len(batch) == TIMES_AS_MANY * batch_size or held + tokens > TOKENS_TOGETHER
        if len(batch) >= batch_size and is_full:
            yield batch
            batch, held = [], 0
        batch.append(row)
        held += tokens
    if batch:
        yield batch

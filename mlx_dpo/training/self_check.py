"""Which path a run takes: the fastest that agrees with the plain one on this model and these pairs.

A fast path leans on how models of mlx-lm are built. Nothing promises that the next one is built so;
hence each run asks, and falls back with a reason rather than train on other numbers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import numpy.typing as npt
from mlx.utils import tree_unflatten

from mlx_dpo.errors import is_device_fault, is_shortage
from mlx_dpo.models.adapters import adapted_modules, small_updates
from mlx_dpo.models.device import tf32_enabled
from mlx_dpo.models.folder import num_positions
from mlx_dpo.models.packed import casting_again, is_packed
from mlx_dpo.models.parameters import is_float, is_float32, named_arrays
from mlx_dpo.models.parts import (
    UnknownStructureError,
    in_training_mode,
    is_embedding,
    replaced,
)
from mlx_dpo.preferences.store import lengths
from mlx_dpo.records import PreferenceExample
from mlx_dpo.training.gradient import Runtime, evaluated_layers
from mlx_dpo.training.paths import FastPath, PlainPath, ScoringPath
from mlx_dpo.training.prompts import UnknownCacheError, keeps_states


class Rounding(NamedTuple):
    """What rounding explains of a difference.

    Attributes:
        absolute: Between two sums of log-probs, in nats.
        relative: The same, as a share of the sum, on top.
        gradient: Between two norms of one tensor's gradient, relative. A gradient that is not
            followed through the prompt or counted twice is off by far more.
    """

    absolute: float
    relative: float
    gradient: float = 2e-3


FLOAT32, BFLOAT16 = Rounding(1e-4, 1e-6), Rounding(1.0, 1e-2)
# Where the user has turned TF32 on: operands of 10 mantissa bits, three more than bfloat16 has.
TF32 = Rounding(0.1, 1e-3, 2e-2)
_CUT_PROMPT, _CUT_RESPONSE = 32, 16  # tokens of a pair whose gradient is compared
_SHORTER = 4  # and of that, one part in so many where only adapters train
_SHORT_PRICE = 8  # of a forward, for pairs cut so: what longer ones would share, they share

Scores = npt.NDArray[np.float32]
Gradient = dict[str, float]
_Cast = Callable[[nn.Module], nn.Module]


class _DisagreesError(Exception):
    """A path gives other numbers than the plain one."""


@dataclass(frozen=True)
class Choice:
    """The path of a run.

    Attributes:
        path: The fastest that agrees with the plain path.
        num_pairs: Pairs it was compared on; 0 where nothing was compared.
        largest_difference: Between its log-probs and the plain path's, in nats.
        refused: What was tried before it, and why it was not taken, in a sentence for people:
            ``(name, reason)``.
        tf32: Whether the user has turned TF32 on, so that the comparison is that much coarser.
    """

    path: ScoringPath
    num_pairs: int = 0
    largest_difference: float = 0.0
    refused: tuple[tuple[str, str], ...] = ()
    tf32: bool = False


def choose_path(
    model: nn.Module,
    examples: Sequence[PreferenceExample],
    *,
    max_seq_len: int,
    pad_id: int,
    checkpoint: bool = False,
) -> Choice:
    """Compare each fast path with the plain one on a few of the user's own pairs.

    Log-probs are compared on short and middling pairs in one batch and on the longest alone, where
    windows and stretched positions show; gradients, by the norm of each tensor, on two pairs cut
    short, because the plain path keeps all activations and must not need more than a step does. A
    forward counts as cheap there, so that what prompts begin with is shared as in longer ones.
    All that in float32, where rounding hides no mistake; a bfloat16 model is then run as it is too.
    A step that trains adapters holds much less than one that trains all weights. There the pairs
    are cut shorter, and the plain path scores row by row.
    Where the user has turned TF32 on, it rounds these products as it will round those of the run.
    A new adapter, whose B is zero, is compared with a small random B: with zeros the gradient of A
    is zero too, and half of the comparison says nothing.

    Args:
        model: The policy. It is put in training mode, its dropout aside.
        examples: Training pairs, at least one.
        max_seq_len: Longest prompt + response in tokens.
        pad_id: Token id to pad with.
        checkpoint: Whether layers are to compute again for the gradient.
    """
    plain, refused, tf32 = PlainPath(max_seq_len, pad_id), [], tf32_enabled()
    in_training_mode(model)
    fast = FastPath(max_seq_len, pad_id, checkpoint, positions=num_positions(model))
    candidates = (
        fast,
        replace(fast, one_length=True),
        replace(fast, unpadded=True),
        replace(fast, share_prompts=False),
    )
    with small_updates(model):
        expected = PlainValues(plain, model, examples)
        for path in candidates:
            try:
                largest = expected.largest_difference(path, TF32 if tf32 else FLOAT32)
            except Exception as error:  # a model's code may fail in any way when called in parts
                if is_shortage(error) or is_device_fault(error):
                    raise  # no fault of the path: the plain one needs more memory, not less
                refused.append((path.name, _reason(model, path, error)))
            else:
                return Choice(path, expected.num_pairs, largest, tuple(refused), tf32)
    return Choice(plain, 0, 0.0, tuple(refused), tf32)


def _reason(model: nn.Module, path: FastPath, error: Exception) -> str:
    """Why a path is not taken; the error of a model's own code is not shown."""
    if isinstance(error, UnknownCacheError | UnknownStructureError):
        return str(error)
    if path.share_prompts and keeps_states(model):
        if path.unpadded:
            return "this model keeps recurrent state, and does not hand it on to the responses"
        return "this model keeps recurrent state, and does not leave padding out of it"
    if isinstance(error, _DisagreesError):
        return str(error)
    if path.share_prompts and not path.one_length:
        return "this model's layers do not go on from prompts of different lengths"
    if path.share_prompts:
        return "this model's layers do not go on from a prompt that was read before"
    return "this model's layers can't be called apart from its output layer"


class PlainValues:
    """Log-probs and gradient norms by the plain path, on a few of the user's own pairs.

    Args:
        plain: The plain path. A memory plan gives the fast one, too, for its part of the check.
        model: The policy.
        examples: Training pairs, at least one.
        runtime: Evaluates.

    Attributes:
        num_pairs: Pairs whose log-probs are compared.
    """

    def __init__(
        self,
        plain: ScoringPath,
        model: nn.Module,
        examples: Sequence[PreferenceExample],
        runtime: Runtime | None = None,
    ) -> None:
        self._model, self._runtime = model, runtime or Runtime()
        self._batch, self._longest = _sample_pairs(examples)
        adapted = bool(adapted_modules(model))
        self._short = _beginnings(self._batch[:2], _SHORTER if adapted else 1)
        self.num_pairs = len(self._batch) + 1
        score = self._in_turn if adapted and isinstance(plain, PlainPath) else self._at_once
        self._logprobs = self._logprobs_by(plain, score)
        is_wide = is_float32(model)
        # Before the gradient, which leaves other arrays in the model: a trace would lose them.
        self._rounded = None if is_wide else score(plain, self._batch, lambda model: model)
        self._norms = self._gradient_norms(plain)

    def largest_difference(self, path: ScoringPath, allowed: Rounding) -> float:
        """Largest difference between another path's log-probs and these, in nats.

        Raises:
            _DisagreesError: If rounding does not explain a difference.
        """
        pairs = zip(self._logprobs_by(path, self._at_once), self._logprobs, strict=True)
        largest = max(_compare_logprobs(*both, allowed) for both in pairs)
        small = replace(path, forward_price=_SHORT_PRICE) if isinstance(path, FastPath) else path
        _compare_gradients(self._gradient_norms(small), self._norms, allowed.gradient)
        if self._rounded is not None:
            rounded = self._runtime.values(path(self._model, self._batch))
            _compare_logprobs(rounded, self._rounded, BFLOAT16)
        return largest

    def _logprobs_by(self, path: Any, score: Callable[..., Scores]) -> list[Scores]:
        """Float32 (2, B) of the batch, and (2, 1) of the longest pair."""
        # Cast for each: what is cast for one would be held beside the next.
        return [score(path, pairs, in_float32) for pairs in (self._batch, [self._longest])]

    def _at_once(
        self, path: ScoringPath, pairs: Sequence[PreferenceExample], cast: _Cast
    ) -> Scores:
        return self._runtime.values(path(cast(self._model), pairs))

    def _in_turn(self, plain: Any, pairs: Sequence[PreferenceExample], cast: _Cast) -> Scores:
        """Row by row: no more than one row's logits are there at a time."""
        by_row: PlainPath = replace(plain, in_turn=True)
        return np.concatenate([self._at_once(by_row, [pair], cast) for pair in pairs], axis=1)

    def _gradient_norms(self, path: ScoringPath) -> Gradient:
        """Norm of the gradient of each tensor, for the sum of chosen less rejected log-probs.

        Empty for a frozen model, which is only scored.
        """
        if not named_arrays(self._model.trainable_parameters()):
            return {}

        def objective() -> mx.array:
            wide = in_float32(self._model, keep_casts=False)
            chosen, rejected = path(wide, self._short, gradient=True)
            # Unequal weights: where the two responses are alike, the gradient would be zero.
            return (chosen - 0.7 * rejected).sum()

        differentiate: Callable[[], tuple[mx.array, object]]
        differentiate = nn.value_and_grad(self._model, objective)
        # The value is let go of: unevaluated, it would hold on to all logits.
        flat = named_arrays(differentiate()[1])
        norms: dict[str, mx.array] = {}
        for layer in evaluated_layers(self._model, flat, self._runtime):
            norms |= {n: mx.sqrt(mx.square(g.astype(mx.float32)).sum()) for n, g in layer.items()}
            layer.clear()
            self._runtime.evaluate(norms)
        return self._runtime.numbers(norms)


def _sample_pairs(
    examples: Sequence[PreferenceExample],
) -> tuple[list[PreferenceExample], PreferenceExample]:
    """Three pairs of the shorter half, of different lengths, and the longest."""
    order = np.argsort(lengths(examples).sum(axis=1), kind="stable").tolist()
    rows = dict.fromkeys(order[(len(order) - 1) * i // 4] for i in range(3))
    return [examples[row] for row in rows], examples[order[-1]]


def _beginnings(examples: Sequence[PreferenceExample], part: int) -> list[PreferenceExample]:
    """The pairs, cut to a few tokens where prompts begin and around where responses do."""
    before, after = _CUT_PROMPT // part, _CUT_RESPONSE // part
    first = min(before // 2, _SHORT_PRICE + 2)
    return [
        PreferenceExample(
            prompt if len(prompt) <= before else [*prompt[:first], *prompt[first - before :]],
            chosen[:after],
            rejected[:after],
        )
        for prompt, chosen, rejected in examples
    ]


def in_float32(model: nn.Module, *, keep_casts: bool = True) -> nn.Module:
    """The model, computing in float32 from the weights it has; each is cast where it is used.

    Packed layers are left alone: their products cast for themselves.

    Args:
        model: It is not changed.
        keep_casts: Whether what packed layers cast is kept for the gradient, not cast again.
    """
    if is_float32(model):
        return model
    layers = {p: m for p, m in model.named_modules() if is_packed(m) and not is_embedding(m)}
    arrays: dict[str, Any] = {
        name: array.astype(mx.float32) if is_float(array) else array
        for name, array in named_arrays(model.parameters()).items()
        if name.rpartition(".")[0] not in layers
    }
    for path, layer in layers.items():
        arrays[path] = layer if keep_casts else casting_again(layer)
    widened: nn.Module = replaced(model, tree_unflatten(list(arrays.items())))
    return widened


def _compare_logprobs(found: Scores, expected: Scores, allowed: Rounding) -> float:
    difference = np.abs(found - expected)
    limit = allowed.absolute + allowed.relative * np.abs(expected)
    if not (difference <= limit).all():  # also where it is NaN
        raise _DisagreesError(
            f"its log-probs are off by {difference.max():.2g} from the plain path's"
        )
    return float(difference.max())


def _compare_gradients(found: Gradient, expected: Gradient, relative: float) -> None:
    floor = 1e-6 * max(expected.values(), default=0.0)
    for name, norm in expected.items():
        if not abs(found[name] - norm) <= relative * norm + floor:
            raise _DisagreesError(
                f"its gradient of {name} has norm {found[name]:.6g}, the plain path's {norm:.6g}"
            )

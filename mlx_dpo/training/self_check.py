"""Which path a run takes: the fastest that agrees with the plain one on this model and these pairs.

A fast path leans on how models of mlx-lm are built. Nothing promises that the next one is built so;
hence each run asks, and falls back with a reason rather than train on other numbers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import numpy.typing as npt
from mlx.utils import tree_map

from mlx_dpo.errors import is_shortage
from mlx_dpo.models.device import tf32_enabled
from mlx_dpo.models.parameters import named_arrays
from mlx_dpo.models.parts import replaced
from mlx_dpo.records import PreferenceExample
from mlx_dpo.training.paths import FastPath, PlainPath, ScoringPath
from mlx_dpo.training.step import Runtime, evaluated_layers

# What rounding in float32 explains of a difference between two sums of log-probs, and in bfloat16.
ABSOLUTE, RELATIVE = 1e-4, 1e-6
ROUNDED_ABSOLUTE, ROUNDED_RELATIVE = 1.0, 1e-2
# And where the user has turned TF32 on: operands of 10 mantissa bits, three more than bfloat16 has.
TF32_ABSOLUTE, TF32_RELATIVE = 0.1, 1e-3
# The same of the norm of one tensor's gradient; a gradient that is not followed through the prompt
# or counted twice is off by far more.
GRADIENT_RELATIVE, TF32_GRADIENT_RELATIVE = 2e-3, 2e-2
_CUT_PROMPT, _CUT_RESPONSE = 32, 16  # tokens of a pair whose gradient is compared

Scores = npt.NDArray[np.float32]
Gradient = dict[str, float]


class _DisagreesError(Exception):
    """A path gives other numbers than the plain one."""


@dataclass(frozen=True)
class Choice:
    """The path of a run.

    Attributes:
        path: The fastest that agrees with the plain path.
        num_pairs: Pairs it was compared on; 0 where nothing was compared.
        largest_difference: Between its log-probs and the plain path's, in nats.
        refused: What was tried before it, and why it was not taken: ``(name, reason)``.
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
    short, because the plain path keeps all activations and must not need more than a step does.
    All that in float32, where rounding hides no mistake; a bfloat16 model is then run as it is too.
    Where the user has turned TF32 on, it rounds these products as it will round those of the run.

    Args:
        model: The policy.
        examples: Training pairs, at least one.
        max_seq_len: Longest prompt + response in tokens.
        pad_id: Token id to pad with.
        checkpoint: Whether layers are to compute again for the gradient.
    """
    batch, longest = sample_pairs(examples)
    short = beginnings(batch[:2])
    plain = PlainPath(max_seq_len, pad_id)
    expected = [_evaluated(plain, model, pairs) for pairs in (batch, [longest])]
    gradient = _gradient_norms(plain, model, short)
    rounded = None if _is_float32(model) else np.array(plain(model, batch))
    refused = []
    tf32 = tf32_enabled()
    allowed = (TF32_ABSOLUTE, TF32_RELATIVE) if tf32 else (ABSOLUTE, RELATIVE)
    candidates: tuple[ScoringPath, ...] = (
        FastPath(max_seq_len, pad_id, checkpoint),
        FastPath(max_seq_len, pad_id, checkpoint, one_length=True),
        FastPath(max_seq_len, pad_id, checkpoint, share_prompts=False),
    )
    for path in candidates:
        try:
            found = [_evaluated(path, model, pairs) for pairs in (batch, [longest])]
            largest = max(
                _compare_logprobs(*both, *allowed) for both in zip(found, expected, strict=True)
            )
            _compare_gradients(
                _gradient_norms(path, model, short),
                gradient,
                TF32_GRADIENT_RELATIVE if tf32 else GRADIENT_RELATIVE,
            )
            if rounded is not None:
                as_it_is = np.array(path(model, batch))
                _compare_logprobs(as_it_is, rounded, ROUNDED_ABSOLUTE, ROUNDED_RELATIVE)
        except Exception as error:  # a model's code may fail in any way when called in parts
            if is_shortage(error):
                raise  # the plain path needs more, not less
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            refused.append((path.name, reason))
        else:
            return Choice(path, len(batch) + 1, largest, tuple(refused), tf32)
    return Choice(plain, 0, 0.0, tuple(refused), tf32)


def sample_pairs(
    examples: Sequence[PreferenceExample],
) -> tuple[list[PreferenceExample], PreferenceExample]:
    """Three pairs of the shorter half, of different lengths, and the longest."""
    order = sorted(range(len(examples)), key=lambda i: sum(map(len, examples[i])))
    rows = dict.fromkeys(order[(len(order) - 1) * i // 4] for i in range(3))
    return [examples[row] for row in rows], examples[order[-1]]


def beginnings(examples: Sequence[PreferenceExample]) -> list[PreferenceExample]:
    """The pairs, cut to a few tokens around where their responses begin."""
    return [
        PreferenceExample(prompt[-_CUT_PROMPT:], chosen[:_CUT_RESPONSE], rejected[:_CUT_RESPONSE])
        for prompt, chosen, rejected in examples
    ]


def _evaluated(
    path: ScoringPath, model: nn.Module, examples: Sequence[PreferenceExample]
) -> Scores:
    return np.array(path(in_float32(model), examples))


def in_float32(model: nn.Module) -> nn.Module:
    """The model, computing in float32 from the weights it has; each is cast where it is used."""
    if _is_float32(model):
        return model
    wide: nn.Module = replaced(model, tree_map(lambda a: a.astype(mx.float32), model.parameters()))
    return wide


def _is_float32(model: nn.Module) -> bool:
    return all(a.dtype == mx.float32 for a in named_arrays(model.parameters()).values())


def _gradient_norms(
    path: ScoringPath, model: nn.Module, examples: Sequence[PreferenceExample]
) -> Gradient:
    """Norm of the gradient of each tensor, for the sum of chosen less rejected log-probs.

    A frozen model, which is only scored, has none.
    """
    if not named_arrays(model.trainable_parameters()):
        return {}

    def objective() -> mx.array:
        chosen, rejected = path(in_float32(model), examples)
        # Unequal weights: where the two responses are alike, the gradient would be zero.
        return (chosen - 0.7 * rejected).sum()

    differentiate: Callable[[], tuple[mx.array, object]] = nn.value_and_grad(model, objective)
    flat = named_arrays(differentiate()[1])  # the value, unevaluated, would hold on to all logits
    norms: dict[str, mx.array] = {}
    for layer in evaluated_layers(model, flat, Runtime()):
        norms |= {name: mx.sqrt(mx.square(g.astype(mx.float32)).sum()) for name, g in layer.items()}
        layer.clear()
        mx.eval(norms)
    return {name: float(norm) for name, norm in norms.items()}


def _compare_logprobs(found: Scores, expected: Scores, absolute: float, relative: float) -> float:
    difference = np.abs(found - expected)
    if not (difference <= absolute + relative * np.abs(expected)).all():  # also where it is NaN
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

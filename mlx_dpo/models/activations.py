"""Activations of the MLPs that mlx-lm fixes for an architecture and transformers reads from config.

Most of mlx-lm's models compute one activation whatever config.json names.
"""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_dpo.errors import UsageError

Activation = Callable[[mx.array], mx.array]

_EXACT = ("gelu", "gelu_python")
_TANH = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_python_tanh", "gelu_accurate")

# The config's key of the activation, transformers' default, and what mlx-lm always computes.
_COMPUTED: dict[str, tuple[str, str, tuple[str, ...]]] = {
    **{
        name: ("hidden_act", "silu", ("silu", "swish"))
        for name in ("llama", "mistral", "qwen2", "qwen3", "phi3", "olmo2", "smollm3")
    },
    "gemma": ("hidden_act", "gelu_pytorch_tanh", _EXACT),
    "gemma2": ("hidden_activation", "gelu_pytorch_tanh", _TANH),
    "gemma3_text": ("hidden_activation", "gelu_pytorch_tanh", _TANH),
    "phi": ("hidden_act", "gelu_new", _TANH),
    "gpt2": ("activation_function", "gelu_new", _TANH),
    "gpt_bigcode": ("activation_function", "gelu_pytorch_tanh", _EXACT),
    "gpt_neox": ("hidden_act", "gelu", _TANH),
    "starcoder2": ("hidden_act", "gelu_pytorch_tanh", _EXACT),
}


def other_activation(kind: str, config: dict[str, Any]) -> Activation | None:
    """The activation a config names, where mlx-lm would compute another.

    Args:
        kind: The architecture of the language model.
        config: Of the language model.

    Raises:
        UsageError: If it is one that can't be computed instead.
    """
    if kind not in _COMPUTED:
        return None
    key, default, computed = _COMPUTED[kind]
    named = config.get(key) or default
    if named in computed:
        return None
    if named in _EXACT and computed is _TANH:
        return nn.gelu
    if named in _TANH and computed is _EXACT:
        return nn.gelu_approx
    raise UsageError(
        f"config.json: {key} is {named!r}, and mlx-lm computes {computed[0]!r} for {kind}"
    )


def set_activation(model: nn.Module, activation: Activation) -> None:
    """Make each MLP of a model compute `activation` between its layers."""
    classes: dict[type, type] = {}
    for module in model.modules():
        if type(module).__name__ == "MLP":
            classes.setdefault(type(module), _mlp_class(type(module), activation))
            module.__class__ = classes[type(module)]


def _mlp_class(base: type, activation: Activation) -> type:
    class MLP(base):  # type: ignore[misc]
        def __call__(self, x: mx.array) -> mx.array:
            if "gate_proj" in self:
                y: mx.array = self.down_proj(activation(self.gate_proj(x)) * self.up_proj(x))
            else:
                inner, outer = self.children().values()
                y = outer(activation(inner(x)))
            return y

    return MLP

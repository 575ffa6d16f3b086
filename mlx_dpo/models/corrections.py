"""What has to be done to a model of mlx-lm's so that it computes what its config says.

Each correction is one that the comparison with transformers asked for (see docs/conversion.md).
"""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_dpo.models.activations import other_activation, set_activation
from mlx_dpo.models.rotary import correct_rotary, is_scaled, scaling_of

Correction = Callable[[nn.Module], None]

# Architectures of which mlx-lm rotates whole heads, and the share that transformers rotates where
# the config names none.
_WHOLE_HEADS = {"glm": 0.5}


def corrections_of(kind: str, config: dict[str, Any]) -> list[Correction]:
    """The corrections of an architecture with a config.

    Args:
        kind: The architecture of the language model.
        config: Of the language model, as `for_mlx` gives it.

    Raises:
        UsageError: If the config asks for what can't be computed.
    """
    corrections: list[Correction] = []
    activation = other_activation(kind, config)
    if activation is not None:
        corrections.append(partial(set_activation, activation=activation))
    if kind == "gemma3_text":
        corrections.append(_scale_embeddings_exactly)
    if kind in ("gemma3n", "gemma3n_text"):
        corrections.append(_clip_copies)
    if is_scaled(config):
        corrections.append(partial(correct_rotary, kind=kind, config=config))
    if kind in _WHOLE_HEADS:
        corrections.append(partial(_rotate_a_share, kind=kind, config=config))
    if isinstance(groups := config.get("n_group"), int) and groups > 1:
        corrections.append(_choose_groups)
    if kind == "mistral" and slides_everywhere(config):
        corrections.append(partial(_slide, window=config["sliding_window"]))
    return corrections


def corrected(model: type[nn.Module], corrections: list[Correction], prefix: str) -> type:
    """A subclass of one of mlx-lm's models that is corrected when it is built.

    Args:
        model: The class.
        corrections: From `corrections_of`.
        prefix: Of names in the checkpoint that mlx-lm's model does not expect.
    """

    class Corrected(model):  # type: ignore[misc, valid-type]
        def __init__(self, arguments: Any) -> None:
            super().__init__(arguments)
            for correct in corrections:
                correct(self)

        def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
            weights = {name.removeprefix(prefix): value for name, value in weights.items()}
            return super().sanitize(weights) if hasattr(super(), "sanitize") else weights

    Corrected.__name__ = Corrected.__qualname__ = model.__name__
    Corrected.__module__ = model.__module__
    return Corrected


def _rotate_a_share(model: nn.Module, kind: str, config: dict[str, Any]) -> None:
    """Rotate only the share of each head that the config names."""
    share = scaling_of(config).get("partial_rotary_factor") or config.get("partial_rotary_factor")
    for module in model.modules():
        if isinstance(module, nn.RoPE):
            module.dims = int(module.dims * (share or _WHOLE_HEADS[kind]))


def _choose_groups(model: nn.Module) -> None:
    """Keep experts of groups that were not chosen from being chosen.

    mlx-lm gives them a score of 0, which beats a negative one: scores are the router's, which are
    positive, and a bias. A constant more on every bias changes no other choice.
    """
    classes: dict[type, type] = {}
    for module in model.modules():
        if "e_score_correction_bias" in module:
            base = type(module)
            classes.setdefault(base, _gate_class(base))
            module.__class__ = classes[base]


def _gate_class(base: type) -> type:
    class Gate(base):  # type: ignore[misc]
        def __call__(self, x: mx.array) -> Any:
            bias: mx.array = self["e_score_correction_bias"]
            self.e_score_correction_bias = bias - mx.minimum(bias.min(), 0)
            try:
                return super().__call__(x)
            finally:
                self.e_score_correction_bias = bias

    return Gate


def _clip_copies(model: Any) -> None:
    """Let each layer of Gemma 3n cast and clip copies of two of its weights.

    mlx-lm's puts the results into the model: what it computes is the same, but a bfloat16 model is
    another one after its first forward.
    """
    base = type(model.layers[0].altup)

    class AltUp(base):  # type: ignore[misc, valid-type]
        def predict(self, x: mx.array) -> Any:
            return self._copy().predict(x)

        def correct(self, predictions: mx.array, activated: mx.array) -> Any:
            return self._copy().correct(predictions, activated)

        def _copy(self) -> Any:
            other = copy.copy(self)
            other.__class__ = base
            for name in ("prediction_coefs", "correction_coefs"):
                other[name] = copy.copy(self[name])
            return other

    for layer in model.layers:
        layer.altup.__class__ = AltUp


def slides_everywhere(config: dict[str, Any]) -> bool:
    """Whether all layers of a Mistral have the sliding window."""
    kinds = config.get("layer_types")
    is_mixed = isinstance(kinds, list) and "full_attention" in kinds
    return bool(config.get("sliding_window")) and not is_mixed


def _slide(model: Any, window: int) -> None:
    """Give every layer a sliding window; mlx-lm's llama has them in some layers only."""
    model = getattr(model, "language_model", model)
    model.model.sliding_window, model.model.swa_idx = window, 0
    for layer in model.layers:
        layer.use_sliding = True


def _scale_embeddings_exactly(model: Any) -> None:
    """Undo the rounding of Gemma 3's embedding scale to bfloat16, unless that is the dtype.

    In front of the layers, and not in the embedding: that is another one once it is quantised.
    """
    model = getattr(model, "language_model", model)
    scale = model.args.hidden_size**0.5
    ratio = scale / mx.array(scale, mx.bfloat16).astype(mx.float32).item()

    class Exact(type(model.model)):  # type: ignore[misc]
        def __call__(self, inputs: mx.array, cache: Any = None, embedded: Any = None) -> Any:
            h = self.embed_tokens(inputs) if embedded is None else embedded
            return super().__call__(inputs, cache, h if h.dtype == mx.bfloat16 else h * ratio)

    model.model.__class__ = Exact

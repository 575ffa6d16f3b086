"""Names and layouts of tensors: those of mlx-lm's models, and the rules back to Hugging Face's.

The rules turn an MLX folder into a Hugging Face folder with nothing recorded about its source.
Where a conversion recorded the source's own tensors, `trace` follows those instead.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_dpo.errors import UsageError, one_line
from mlx_dpo.models.dialects import model_classes

Shape = tuple[int, ...]

_SHOWN = 5  # names listed in a message
_GPT2_LINEAR = re.compile(r"\.(attn\.c_attn|attn\.c_proj|mlp\.c_fc|mlp\.c_proj)\.weight$")

# Buffers that models compute for themselves and older checkpoints store as well.
BUFFERS = re.compile(
    r"(^|\.)(attn\.(masked_)?bias|attention\.(masked_)?bias|rotary_emb\.inv_freq|position_ids)$"
)


@dataclass(frozen=True)
class Rule:
    """The way from MLX names to Hugging Face names.

    Attributes:
        prefixes: Prefixes of MLX names, each with its replacement; the first that fits counts.
        transposed: Names of matrices that PyTorch stores transposed.
    """

    prefixes: tuple[tuple[str, str], ...] = ()
    transposed: re.Pattern[str] | None = None

    def torch_name(self, name: str) -> str:
        """The Hugging Face name of an MLX parameter."""
        for ours, theirs in self.prefixes:
            if name.startswith(ours):
                return theirs + name.removeprefix(ours)
        return name

    def mlx_name(self, name: str) -> str:
        """The MLX name of a Hugging Face parameter."""
        for ours, theirs in self.prefixes:
            if name.startswith(theirs):
                return ours + name.removeprefix(theirs)
        return name

    def is_transposed(self, name: str) -> bool:
        """Whether PyTorch stores this MLX parameter transposed."""
        return self.transposed is not None and self.transposed.search(name) is not None


_SAME_NAMES = (
    *("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi", "phi3"),
    *("olmo2", "smollm3", "starcoder2"),
)
RULES = {
    **{architecture: Rule() for architecture in _SAME_NAMES},
    # Conv1D: a linear layer whose matrix is (in, out).
    "gpt2": Rule((("model.", "transformer."),), _GPT2_LINEAR),
    "gpt_neox": Rule(
        (
            ("model.h.", "gpt_neox.layers."),
            ("model.embed_out.", "embed_out."),
            ("model.", "gpt_neox."),
        )
    ),
}


def without_code(config: dict[str, Any]) -> dict[str, Any]:
    """A config that names no code: the files are not copied, and nothing here would run them."""
    return {key: value for key, value in config.items() if key != "auto_map"}


def skeleton(config: dict[str, Any]) -> nn.Module:
    """mlx-lm's model of a config; its weights are random and not computed until used.

    Args:
        config: As `for_mlx` gives it.

    Raises:
        UsageError: If mlx-lm does not know the architecture or a setting is missing.
    """
    model_class, arguments = model_classes(config)
    try:
        model: nn.Module = model_class(arguments.from_dict(config))
    except Exception as error:  # each architecture checks its settings in its own way
        raise UsageError(
            f"config.json: mlx-lm can't build {config['model_type']} from it: {one_line(error)}"
        ) from None
    return model


def check_tensors(
    arrays: Mapping[str, mx.array], expected: Mapping[str, mx.array], folder: Path
) -> None:
    """Compare tensors with a model's parameters, name by name and shape by shape.

    Shapes must be equal: one that broadcasts would load and be wrong.

    Raises:
        UsageError: If a tensor is missing, superfluous or of another shape.
    """
    missing = [name for name in expected if name not in arrays]
    if missing:
        raise UsageError(f"{folder}: tensors are missing: {listed(missing)}")
    superfluous = [name for name in arrays if name not in expected]
    if superfluous:
        raise UsageError(f"{folder}: mlx-lm's model has no place for: {listed(superfluous)}")
    for name, value in expected.items():
        if arrays[name].shape != value.shape:
            raise UsageError(
                f"{folder}: {name}: expected shape {list(value.shape)}, "
                f"found {list(arrays[name].shape)}"
            )


def shapes_of(arrays: Mapping[str, mx.array]) -> dict[str, Shape]:
    """Shapes by name."""
    return {name: tuple(value.shape) for name, value in arrays.items()}


def listed(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more

"""The config of a PEFT adapter: what decides its scales, and what is refused."""

import math
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from mlx_dpo.convert.adapters.tensors import check_number, check_rank, shown
from mlx_dpo.errors import UsageError, one_line
from mlx_dpo.models.config import read_json

_MERGE = "merge it into its model with PEFT (merge_and_unload), and use the merged model"

# Settings with a value that changes what is computed, and that nothing here computes.
_REFUSED = {
    "bias": "biases of the model were trained",
    "lora_bias": "its matrices have biases",
    "modules_to_save": "whole layers of the model were trained",
    "trainable_token_indices": "rows of the embedding were trained",
    "target_parameters": "it adapts parameters that are no layers",
    "alora_invocation_tokens": "it counts only behind certain tokens (aLoRA)",
    "layer_replication": "it repeats layers of the model",
    "use_qalora": "its matrix A takes means of inputs (QALoRA)",
    "use_bdlora": "its matrices are of blocks (BD-LoRA)",
    "arrow_config": "it chooses among several adapters (Arrow)",
    "kasa_config": "it changes the model's weights (KaSA)",
    "monteclora_config": "its matrices are sampled (MonteCLoRA)",
    "velora_config": "it compresses activations (VeLoRA)",
    "megatron_config": "its layers are spread over devices (Megatron)",
}
# What was changed before training is not the model that an adapter is put onto here.
_INITIAL = (None, True, False, "gaussian", "orthogonal")

_NO_BIAS = ("bias", "none")

# A pattern comes from a file: a repeated group, or many repeats, may take very long to match.
_SLOW = re.compile(r"\)\s*[*+{]|.{300}", re.DOTALL)
_REPEATS = re.compile(r"[*+{]")
_MOST_REPEATS = 4
_READ = ("peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "use_dora")
# How the adapter was made, or what the names of its tensors say too.
_TOLD = (
    *("task_type", "base_model_name_or_path", "revision", "peft_version", "auto_mapping"),
    *("inference_mode", "target_modules", "exclude_modules", "layers_to_transform"),
    *("layers_pattern", "lora_dropout", "fan_in_fan_out", "init_lora_weights", "megatron_core"),
    *("qalora_group_size", "ensure_weight_tying", "runtime_config"),
)

Value = TypeVar("Value")


@dataclass(frozen=True)
class PeftConfig:
    """The settings of a PEFT adapter that decide what it computes.

    Attributes:
        rank: Of modules that no pattern names.
        alpha: Of the same.
        ranks: Of others, by pattern of their path.
        alphas: The same.
        is_stabilised: Whether alpha is divided by the root of the rank (rsLoRA).
        is_dora: Whether its modules have magnitudes.
    """

    rank: int
    alpha: float
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    is_stabilised: bool
    is_dora: bool

    def rank_of(self, path: str) -> int:
        """The rank of a module, by its path in PyTorch's model."""
        return _match(self.ranks, path, self.rank)

    def scale_of(self, path: str) -> float:
        """The factor of its product."""
        rank, alpha = self.rank_of(path), _match(self.alphas, path, self.alpha)
        return alpha / math.sqrt(rank) if self.is_stabilised else alpha / rank


def read_peft_config(path: Path) -> PeftConfig:
    """Read a PEFT adapter's config.

    Raises:
        UsageError: If it is not LoRA, or a setting is not known or can't be computed here.
    """
    config = read_json(path)
    if config.get("peft_type") != "LORA":
        raise UsageError(
            f"{path}: peft_type is {shown(config.get('peft_type'))}; only LORA is read"
        )
    for key, value in config.items():
        _check_setting(path, key, value)
    ranks, alphas = (_pattern(path, key, config) for key in ("rank_pattern", "alpha_pattern"))
    for value in (config.get("r"), *ranks.values()):
        check_rank(path, value)
    for value in (config.get("lora_alpha"), *alphas.values()):
        check_number(path, "lora_alpha", value)
    for key in ("use_rslora", "use_dora"):
        if config.get(key) not in (None, True, False):
            raise UsageError(f"{path}: {key} is {shown(config[key])}; expected true or false")
    return PeftConfig(
        rank=config["r"],
        alpha=config["lora_alpha"],
        ranks=ranks,
        alphas=alphas,
        is_stabilised=bool(config.get("use_rslora")),
        is_dora=bool(config.get("use_dora")),
    )


def _check_setting(path: Path, key: str, value: Any) -> None:
    if key == "init_lora_weights":
        if value not in _INITIAL:
            raise UsageError(
                f"{path}: {key} is {shown(value)}: it may fit only a model whose weights were "
                f"changed before training; {_MERGE}"
            )
        return
    if key in _READ or key in _TOLD or value in (None, False, [], {}) or (key, value) == _NO_BIAS:
        return
    reason = _REFUSED.get(key, "a setting that is not known here")
    raise UsageError(f"{path}: {key} is {shown(value)}: {reason}; {_MERGE}")


def _pattern(path: Path, key: str, config: Mapping[str, Any]) -> dict[str, Any]:
    table = config.get(key) or {}
    if not isinstance(table, dict):
        raise UsageError(f"{path}: {key} is {shown(table)}; expected an object")
    for pattern in table:
        if _SLOW.search(pattern) or len(_REPEATS.findall(pattern)) > _MOST_REPEATS:
            raise UsageError(f"{path}: {key}: {shown(pattern)} repeats too much to be matched")
        try:
            with warnings.catch_warnings(action="error"):
                re.compile(_whole(pattern))
        except (re.error, OverflowError, RecursionError, FutureWarning) as error:
            raise UsageError(
                f"{path}: {key}: {shown(pattern)} is not a pattern: {one_line(error)}"
            ) from None
    return table


def _whole(pattern: str) -> str:
    """PEFT's reading of a key: the path itself, or its end behind a dot."""
    return rf"(.*\.)?({pattern})$"


def _match(table: Mapping[str, Value], path: str, default: Value) -> Value:
    """The first entry whose pattern is the path, or its end behind a dot."""
    for pattern, value in table.items():
        if re.match(_whole(pattern), path):
            return value
    return default

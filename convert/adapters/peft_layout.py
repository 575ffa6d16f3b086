"""PEFT's layout: adapter_model.safetensors under PyTorch's names, and PEFT's config."""

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_dpo.convert.adapters.peft_config import PeftConfig, read_peft_config
from mlx_dpo.convert.adapters.tensors import (
    CONFIG,
    bare_modules,
    most_common,
    part_of,
    read_tensors,
    scaled_to,
    with_magnitudes,
    write_config,
)
from mlx_dpo.convert.hf.names import RULES, Rule
from mlx_dpo.errors import UsageError
from mlx_dpo.models.adapters import Adapter, Part
from mlx_dpo.models.dialects import names_embedding, names_head
from mlx_dpo.models.packed import is_packed
from mlx_dpo.models.parameters import save_arrays

FILE = "adapter_model.safetensors"

_PREFIX = "base_model.model."
_NAME = re.compile(
    rf"{re.escape(_PREFIX)}(.+?)\.(lora_A\.weight|lora_B\.weight|lora_embedding_[AB]|"
    r"lora_magnitude_vector(?:\.weight)?|(?:base_layer\.)?weight)"
)
_LEAF = {"A": "a", "B": "b", "r": "m"}  # by the last letter of a tensor's name
_EXPERT = re.compile(r"\.experts\.\d+\.")

Modules = Mapping[str, Any]


def read_peft(folder: Path, model: nn.Module) -> dict[str, Part]:
    """Read an adapter as PEFT writes it.

    Args:
        folder: Holds ``adapter_model.safetensors`` and ``adapter_config.json``.
        model: The model it is for, whose names its parts get.

    Raises:
        UsageError: If a file is missing or damaged, or the adapter is of a kind that is refused.
    """
    config = read_peft_config(folder / CONFIG)
    rule, modules = _rule(model), bare_modules(model)
    file = folder / FILE
    found: dict[str, dict[str, mx.array]] = {}
    for name, value in read_tensors(folder, FILE).items():
        match = _NAME.fullmatch(name)
        if not match:
            raise UsageError(f"{file}: holds {name}, which is not a tensor of a LoRA adapter")
        path, leaf = match[1], match[2].removesuffix(".weight")
        if leaf in ("weight", "base_layer"):  # of an embedding or head, which PEFT saves along
            _check_base(file, name, value, modules.get(_mlx_path(rule, path)))
        else:
            found.setdefault(path, {})[_LEAF[leaf[-1]]] = value if leaf[-1] == "r" else value.T
    if not found:
        raise UsageError(f"{file}: holds no matrices of an adapter")
    adapter = {}
    for theirs, tensors in found.items():
        path = _mlx_path(rule, theirs)
        _check_embedding(path, modules)
        adapter[path] = _part(theirs, tensors, config, file)
    return dict(sorted(adapter.items()))


def write_peft(folder: Path, adapter: Adapter, model: nn.Module, base_name: str | None) -> None:
    """Write an adapter that PEFT loads.

    One alpha, a whole number, holds for all: what it does not say of a scale goes into B. Several
    readers of this layout take no notice of ``alpha_pattern``, or demand a whole number.

    Args:
        folder: An existing folder.
        adapter: At least one part, of modules that `model` has.
        model: The model it is for, with or without it.
        base_name: The model's name for PEFT to look for, such as a hub id.

    Raises:
        UsageError: If PEFT has no such adapter.
        DiskError: If a file can't be written.
    """
    modules, rule = bare_modules(model), _rule(model)
    for path, part in adapter.items():
        _check_embedding(path, modules)
        if part.a.ndim == 3:
            raise UsageError(
                f"the adapter has {path}, experts in one array, and PEFT's layout holds experts "
                "one by one: that is not written; keep mlx-lm's layout"
            )
    parts = with_magnitudes(adapter, model)
    alpha = most_common(max(1, round(part.scale * part.rank)) for part in parts.values())
    arrays: dict[str, mx.array] = {}
    for path, part in parts.items():
        arrays |= _tensors(_torch_path(rule, path), part, modules[path], alpha)
    save_arrays(folder / FILE, arrays, {"format": "pt"})
    write_config(folder, _config(parts, modules, rule, alpha, base_name))


def _part(path: str, tensors: Mapping[str, mx.array], config: PeftConfig, file: Path) -> Part:
    if _EXPERT.search(path):
        raise UsageError(
            f"{file}: adapts {path}, one expert of many: MLX holds the experts of a layer in one "
            "array, and such adapters are not read"
        )
    if ("m" in tensors) != config.is_dora:
        raise UsageError(
            f"{file}: {path} has {'a' if 'm' in tensors else 'no'} magnitude, and {CONFIG} says "
            f"use_dora is {str(config.is_dora).lower()}"
        )
    return part_of(path, tensors, config.scale_of(path), config.rank_of(path), file)


def _tensors(path: str, part: Part, module: Any, alpha: int) -> dict[str, mx.array]:
    """A module's tensors under PEFT's names; its scale is to be alpha / rank."""
    a, b = part.a, scaled_to(part, alpha / part.rank).b
    is_table = isinstance(module, nn.Embedding | nn.QuantizedEmbedding)
    names = ("lora_embedding_A", "lora_embedding_B") if is_table else (
        "lora_A.weight", "lora_B.weight")  # fmt: skip
    matrices = {f"{_PREFIX}{path}.{n}": m.T for n, m in zip(names, (a, b), strict=True)}
    if part.magnitude is not None:
        matrices[f"{_PREFIX}{path}.lora_magnitude_vector"] = part.magnitude
    return {name: mx.contiguous(matrix) for name, matrix in matrices.items()}


def _config(
    parts: Adapter, modules: Modules, rule: Rule, alpha: int, base_name: str | None
) -> dict[str, Any]:
    ranks = {_torch_path(rule, path): part.rank for path, part in parts.items()}
    rank = most_common(ranks.values())
    layers = [_torch_path(rule, p) for p, module in modules.items() if p and "weight" in module]
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {path: own for path, own in ranks.items() if own != rank},
        "alpha_pattern": {},
        "use_rslora": False,
        "use_dora": any(part.magnitude is not None for part in parts.values()),
        "target_modules": _targets(ranks, layers),
        "fan_in_fan_out": any(rule.is_transposed(f"{path}.weight") for path in parts),
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
    }


def _targets(adapted: Collection[str], layers: Collection[str]) -> list[str]:
    """The last names of modules where all of that name are adapted, else whole paths."""
    targets = set()
    for path in adapted:
        last = path.rpartition(".")[2]
        alike = [other for other in layers if other.rpartition(".")[2] == last]
        targets.add(last if all(other in adapted for other in alike) else path)
    return sorted(targets)


def _check_embedding(path: str, modules: Modules) -> None:
    """Refuse an adapter on embeddings that are the output layer too.

    Raises:
        UsageError: If it is one.
    """
    is_tied = not any(names_head(f"{other}.weight") for other in modules)
    if names_embedding(f"{path}.weight") and is_tied:
        raise UsageError(
            f"the adapter has {path}, which is the model's output layer too (tied): PEFT adapts "
            "the embedding alone, and mlx-lm both; the layouts can't stand for one another"
        )


def _check_base(file: Path, name: str, value: mx.array, module: Any) -> None:
    """Refuse an adapter that brings along a layer that differs from the model's.

    Raises:
        UsageError: If it differs, or can't be compared.
    """
    if module is None or "weight" not in module:
        raise UsageError(f"{file}: holds {name}, which is not a tensor of a LoRA adapter")
    if is_packed(module):
        raise UsageError(
            f"{file}: holds {name}, and the model's is packed, so that they can't be compared; use "
            "the model in full precision"
        )
    own = module.weight
    # One of the two may have been cast.
    is_same = mx.array_equal(value, own.astype(value.dtype)) | mx.array_equal(
        value.astype(own.dtype), own
    )
    if not is_same.item():
        raise UsageError(
            f"{file}: holds {name}, and it differs from the model's: it was trained or resized, "
            "or the adapter is of another model"
        )


def _rule(model: nn.Module) -> Rule:
    return RULES.get(getattr(model, "model_type", ""), Rule())


def _mlx_path(rule: Rule, path: str) -> str:
    return rule.mlx_name(f"{path}.").removesuffix(".")


def _torch_path(rule: Rule, path: str) -> str:
    return rule.torch_name(f"{path}.").removesuffix(".")

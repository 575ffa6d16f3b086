"""The layers of a model that an adapter may be put onto, and those that have one."""

import difflib
import re
from collections.abc import Sequence
from typing import Any

import mlx.nn as nn

from mlx_dpo.errors import UsageError

INNER = ("linear", "embedding")  # what wrappers call the module they wrap
# Layers of a few rows whose weights a model clips or reads itself: Gemma 3n's AltUp, Kimi K3.
_WITHOUT = (
    *("modality_router", "prediction_coefs", "correction_coefs"),
    *("self_attention_res_proj", "mlp_res_proj"),
)


def choose_modules(model: nn.Module, modules: str = "all", layers: int | None = None) -> list[str]:
    """Paths of the layers to adapt: linear ones inside the blocks, without routers of experts.

    Args:
        model: A model of mlx-lm's kind.
        modules: ``all``, ``attention``, or names such as ``q_proj,v_proj``.
        layers: The last so many blocks; None for all.

    Raises:
        UsageError: If a name is no such layer, or there are fewer blocks.
    """
    blocks = list(model.layers)
    if layers is not None and not 0 < layers <= len(blocks):
        raise UsageError(f"--lora-layers {layers}: the model has {len(blocks)} blocks")
    first = len(blocks) - (layers or len(blocks))
    adaptable = [_adaptable(block) for block in blocks]
    wanted = [name for each in modules.split(",") if (name := each.strip())]
    if wanted not in (["all"], ["attention"]):
        _check_names(wanted, {name for names in adaptable for name in names})
    prefixes = _paths_of(model, blocks)
    chosen = [
        f"{prefix}.{name}"
        for prefix, names in zip(prefixes[first:], adaptable[first:], strict=True)
        for name in names
        if _is_wanted(name, wanted)
    ]
    if not chosen:
        raise UsageError(f"--lora-modules {modules}: no linear layer of the model is meant by it")
    return chosen


def wrapped_module(module: Any) -> Any:
    """The module inside an adapted one; of any other, the module itself."""
    if isinstance(module, nn.Module) and "lora_a" in module:
        return next(module[name] for name in INNER if name in module)
    return module


def is_linear(module: Any) -> bool:
    """Whether a module is a linear layer, packed or not."""
    return isinstance(module, nn.Linear | nn.QuantizedLinear)


def is_experts(module: Any) -> bool:
    """Whether a module holds the matrices of all experts of a layer."""
    from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear

    return isinstance(module, SwitchLinear | QuantizedSwitchLinear)


def _adaptable(block: nn.Module) -> list[str]:
    """Names of a block's linear layers, in order, without routers and `_WITHOUT`."""
    modules = [(name, wrapped_module(m)) for name, m in block.named_modules()]
    experts = max((len(m.weight) for _, m in modules if is_experts(m)), default=0)
    return sorted(
        name
        for name, module in modules
        if not name.endswith((*_WITHOUT, *(f".{inner}" for inner in INNER)))
        and (is_experts(module) or (is_linear(module) and not _is_router(name, module, experts)))
    )


def _is_router(name: str, module: Any, experts: int) -> bool:
    return name.endswith(("gate", "router")) and len(module.weight) <= experts


def _is_wanted(name: str, wanted: Sequence[str]) -> bool:
    if wanted == ["all"]:
        return True
    if wanted == ["attention"]:
        return re.search(r"(^|[._])(attn|attention)([._]|$)", name) is not None
    return any(name == each or name.endswith(f".{each}") for each in wanted)


def _check_names(wanted: Sequence[str], names: set[str]) -> None:
    known = sorted({name.rpartition(".")[2] for name in names})
    for each in wanted:
        if not any(_is_wanted(name, [each]) for name in names):
            near = difflib.get_close_matches(each, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UsageError(
                f"--lora-modules: no linear layer of the blocks is called {each!r}{hint} (there "
                f"are {', '.join(known)}; or all, or attention, alone)"
            )


def _paths_of(model: nn.Module, blocks: Sequence[nn.Module]) -> list[str]:
    path_of = {id(module): path for path, module in model.named_modules()}
    return [path_of[id(block)] for block in blocks]

"""Settings and sizes of models in words, for screens and pages."""

from collections.abc import Sequence

from mlx_dpo.runs.config import RunConfig


def parameters(count: int) -> str:
    """`45.1 K`, `0.7 M`, `134.5 M`, `4.0 B`."""
    if count < 1e5:
        return f"{count / 1e3:.1f} K"
    return f"{count / 1e9:.1f} B" if count >= 1e9 else f"{count / 1e6:.1f} M"


def numbers(values: Sequence[float]) -> str:
    """`16` where all are alike, `8, 16` where they are not."""
    return ", ".join(f"{value:g}" for value in values)


def adapted_layers(config: RunConfig) -> str:
    """Which layers of its model a run with LoRA adapts."""
    if config.adapter is not None:
        return f"the layers of {config.adapter}"
    named = {"all": "all linear layers", "attention": "the layers of attention"}
    modules = str(config.lora_modules)
    text = named.get(modules, modules)
    return f"{text} of the last {config.lora_layers} blocks" if config.lora_layers else text

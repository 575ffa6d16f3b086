"""Settings that were not given and depend on the model or on others: all are decided here.

docs/training.md has the table of what is decided, and the published recipes it was made from.
"""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlx_dpo.convert.sources import base_of, find, is_adapter
from mlx_dpo.errors import UsageError
from mlx_dpo.models.config import is_quantised, own_dtype, read_config
from mlx_dpo.models.tokenizer import asks_for_date
from mlx_dpo.preferences.chat import today
from mlx_dpo.runs.config import BEST, EMBEDDED_CONFIG, MEASURES, RunConfig, read_settings

FULL, LORA = "full", "lora"

# For a model of fewer parameters than the first number: the rate of a run of at most `_FEW` steps,
# and the least, which recipes for some 60,000 pairs have (SmolLM2-135M to 1.7B, Zephyr-7B).
_RATES = ((0.3e9, 1e-5, 1e-6), (1e9, 5e-6, 1e-6), (5e9, 2e-6, 1e-6), (math.inf, 2e-6, 5e-7))
_FEW = 100  # steps
# LoRA wants about ten times the rate of full fine-tuning (Schulman 2025, "LoRA Without Regret").
_TIMES = {FULL: 1, LORA: 10}
USUAL_BETA = (0.01, 0.5)  # Zephyr-7B's and SmolLM2's
_LARGE = 1e9  # parameters
_HOT = {FULL: 2e-6, LORA: 2e-5}  # the highest rates that recipes have for more than these
_ABSURD = 1e-2  # above it no model of any size was seen to learn
_MOST_WARMUP = 10  # steps
_EVAL_EVERY = 100  # steps
_FEWEST_STEPS, _MOST_EPOCHS = 50, 25  # of a run whose length was not given
LORA_SETTINGS: dict[str, Any] = {
    "lora_rank": 16,
    "lora_scale": 2.0,
    "lora_modules": "all",
    "adapter_format": "mlx",
}
_OF_ADAPTER = ("lora_rank", "lora_scale", "lora_layers", "lora_modules")  # come from --adapter


def decided(config: RunConfig, *, weights: bool = True) -> RunConfig:
    """The settings with all of them set that the model and the method decide.

    Args:
        config: The settings.
        weights: Whether a model on the hub is downloaded with its weights.

    Raises:
        UsageError: If there is no such model, or a setting contradicts the model or another one.
    """
    assert config.model is not None
    if config.best_by is not None and not config.selects:
        raise UsageError("--best-by takes --keep best or --patience")
    folder = find(config.model, weights=weights)
    if is_adapter(folder):
        raise UsageError(
            f"{config.model}: is an adapter; to train it further: --model {_base(folder)} "
            f"--adapter {config.model}"
        )
    packed = is_quantised(read_config(folder)) if (folder / "config.json").is_file() else False
    method = config.method or (LORA if packed or config.adapter else FULL)
    _check(config, method, packed=packed)
    chosen: dict[str, Any] = {"method": method}
    if method == FULL:
        chosen |= rate_of_model(folder)
    chosen["dtype"] = own_dtype(folder) if packed else "float32"
    if method == LORA:
        chosen |= LORA_SETTINGS
        if config.adapter is not None:
            chosen |= dict.fromkeys(_OF_ADAPTER) | {"adapter_reference": "start"}
    if asks_for_date(folder):
        chosen["date"] = today()
    if config.selects:
        chosen["best_by"] = MEASURES[0]
    return _filled(config, chosen)


def rate_of_model(folder: Path) -> dict[str, Any]:
    """The learning rate that suits a model trained whole, where its own ``train.toml`` has one.

    Very small models want a far larger one than the default, which would leave them as they are.
    """
    try:
        settings = read_settings(folder / EMBEDDED_CONFIG.name)
    except UsageError:  # there is none, or it is another program's
        return {}
    return {name: settings[name] for name in ("learning_rate",) if name in settings}


def decided_by_pairs(
    config: RunConfig, num_pairs: int, num_parameters: int | None = None
) -> tuple[RunConfig, int]:
    """The settings with those that depend on the number of training pairs, and the run's steps.

    Few pairs are seen several times: after the two steps that ten pairs make, no model has changed.

    Args:
        config: From `decided`.
        num_pairs: Training pairs.
        num_parameters: Of the model without adapters; None leaves the learning rate undecided.
    """
    per_epoch = -(-num_pairs // (config.batch_size * config.grad_accumulation))
    proposed = 1 if config.steps else min(_MOST_EPOCHS, -(-_FEWEST_STEPS // per_epoch))
    epochs = config.epochs or proposed
    max_steps = config.steps or epochs * per_epoch
    tenth = max(1, max_steps // 10)
    chosen: dict[str, Any] = {
        "epochs": epochs,
        "warmup_steps": min(_MOST_WARMUP, max_steps // 10),
        "eval_every": min(_EVAL_EVERY, tenth) if config.selects else _EVAL_EVERY,
    }
    if num_parameters is not None:
        chosen["learning_rate"] = rate_for(config.method, num_parameters, max_steps)
    return _filled(config, chosen), max_steps


def rate_for(method: str, num_parameters: int, max_steps: int) -> float:
    """The learning rate of a run whose rate was not given.

    AdamW moves a weight by about the rate at each step, so rate times steps says how far a run can
    go. Beyond `_FEW` steps that product is kept, until the rate is down at the published one. The
    rate is rounded to 1, 2 or 5.
    """
    few, least = next(rates for below, *rates in _RATES if num_parameters < below)
    exact = max(least, few * min(1.0, _FEW / max_steps))
    power = math.floor(math.log10(exact))
    rounded = min(
        (float(f"{digit}e{power}") for digit in (1, 2, 5, 10)),
        key=lambda rate: abs(math.log(rate / exact)),
    )
    return float(f"{rounded * _TIMES[method]:.0e}")


def why_rate(method: str, num_parameters: int, max_steps: int) -> str:
    """The reason for what `rate_for` gives, as it goes on after the rate."""
    few, rate, least = (
        rate_for(method, num_parameters, steps) for steps in (_FEW, max_steps, 1_000_000)
    )
    if max_steps <= _FEW:
        return f"because {max_steps} steps are few; with thousands it would be {least:g}"
    if rate == least:
        return f"the published rate for a model of this size; {_FEW} steps would get {few:g}"
    return f"for {max_steps} steps: between {few:g} for {_FEW} and {least:g} for thousands"


def warned_rate(config: RunConfig, num_parameters: int) -> str | None:
    """What is wrong with a learning rate that is far too high; None where nothing is."""
    rate, hot = config.learning_rate, _HOT[config.method]
    if rate > _ABSURD:
        return (
            f"learning rate {rate:g} is far above what is usual (1e-6 to 1e-4): models fall apart"
        )
    if num_parameters < _LARGE or rate <= hot:
        return None
    trained = "adapters on" if config.method == LORA else "all weights of"
    return (
        f"learning rate {rate:g} is high for {trained} a model of more than 1 billion parameters, "
        f"which published recipes train at {hot:g} or less: answers may become repetitive"
    )


def _filled(config: RunConfig, chosen: dict[str, Any]) -> RunConfig:
    unset = {name: value for name, value in chosen.items() if getattr(config, name) is None}
    return replace(config, **unset)


def check_selection(config: RunConfig, num_held_out: int) -> None:
    """Refuse to select a step by held-out pairs where there are none.

    Raises:
        UsageError: If so.
    """
    if config.selects and not num_held_out:
        option = "--keep best" if config.keep == BEST else "--patience"
        raise UsageError(
            f"{option} looks at held-out pairs, and this run holds out none: raise --eval-fraction "
            "or name some with --eval-data"
        )


def _check(config: RunConfig, method: str, *, packed: bool) -> None:
    given = [
        name
        for name in (*_OF_ADAPTER, "adapter", "adapter_reference", "adapter_format")
        if getattr(config, name) is not None
    ]
    if method == FULL:
        if packed:
            raise UsageError(
                f"{config.model}: is quantised, and packed weights can't train: leave --method "
                "out to train adapters (--method lora), or start from the full-precision model"
            )
        if given:
            raise UsageError(f"{_flag(given[0])} is for adapters: it takes --method lora")
        if config.reference == "adapters-off":
            raise UsageError("--reference adapters-off takes --method lora")
        if config.dtype == "float16":
            raise UsageError(
                "--dtype float16 is for the frozen base of adapters (--method lora): its range is "
                "too small to train in; take bfloat16"
            )
        return
    if config.adapter is None and config.adapter_reference is not None:
        raise UsageError("--adapter-reference takes --adapter: the adapter to start from")
    if config.adapter is not None and (own := [n for n in given if n in _OF_ADAPTER]):
        raise UsageError(f"{_flag(own[0])} and --adapter: rank, scale and layers are the adapter's")
    if config.adapter and config.reference != "cached" and config.adapter_reference != "base":
        raise UsageError(
            f"--reference {config.reference} is the model without adapter: with --adapter it takes "
            "--adapter-reference base, or leave --reference out"
        )
    if config.adapter is not None and not Path(config.adapter).expanduser().is_dir():
        raise UsageError(f"{config.adapter}: no such adapter folder")


def _base(adapter: Path) -> str:
    try:
        return base_of(adapter)
    except UsageError:
        return "ITS-MODEL"


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"

"""Settings that were not given and depend on the model or on others: all are decided here."""

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

# LoRA wants about ten times the rate of full fine-tuning (Schulman 2025, "LoRA Without Regret");
# docs/results.md has the trial on SmolLM2-135M that it was confirmed by.
_LEARNING_RATE = {FULL: 1e-5, LORA: 1e-4}
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
    """The settings with all of them set, as far as they mean something for the method.

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
    chosen: dict[str, Any] = {"method": method, "learning_rate": _LEARNING_RATE[method]}
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


def decided_by_pairs(config: RunConfig, num_pairs: int) -> tuple[RunConfig, int]:
    """The settings with those that depend on the number of training pairs, and the run's steps.

    Few pairs are seen several times: after the two steps that ten pairs make, no model has changed.
    """
    per_epoch = -(-num_pairs // (config.batch_size * config.grad_accumulation))
    proposed = 1 if config.steps else min(_MOST_EPOCHS, -(-_FEWEST_STEPS // per_epoch))
    epochs = config.epochs or proposed
    max_steps = config.steps or epochs * per_epoch
    tenth = max(1, max_steps // 10)
    chosen = {
        "epochs": epochs,
        "warmup_steps": min(_MOST_WARMUP, max_steps // 10),
        "eval_every": min(_EVAL_EVERY, tenth) if config.selects else _EVAL_EVERY,
    }
    return _filled(config, chosen), max_steps


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

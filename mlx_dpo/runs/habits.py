"""Settings of other trainers, their names and values turned into those of a run.

Names and values are those of mlx-lm's LoRA trainer, of TRL's DPOConfig and ModelConfig, of Hugging
Face's TrainingArguments, and of the config files of axolotl, the alignment handbook and soup. A
setting that would change what is learned and has no counterpart is refused; one that would not is
left unused, with a note.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlx_dpo.errors import UsageError

# The same setting by another name.
SAME = {
    **{"model_name_or_path": "model", "base_model": "model", "pretrained_model": "model"},
    **{"model_name": "model", "model_path": "model", "base": "model"},
    **{"dataset": "data", "dataset_name": "data", "train_data": "data", "train_file": "data"},
    **{"dataset_mixer": "data", "datasets": "data", "hf_dataset": "data", "data_path": "data"},
    **{"eval_dataset": "eval_data", "eval_file": "eval_data", "valid_data": "eval_data"},
    **{"test_datasets": "eval_data"},
    **{"test_size": "eval_fraction", "val_split": "eval_fraction", "val_set_size": "eval_fraction"},
    **{"output_dir": "out", "output": "out", "save_path": "out", "adapter_path": "out"},
    **{"output_path": "out"},
    **{"overwrite_output_dir": "overwrite", "lr": "learning_rate", "min_lr": "min_learning_rate"},
    **{"iters": "steps", "max_steps": "steps", "num_epochs": "epochs"},
    **{"num_train_epochs": "epochs", "dpo_beta": "beta", "rl_beta": "beta"},
    **{"per_device_train_batch_size": "batch_size", "train_batch_size": "batch_size"},
    **{"micro_batch_size": "batch_size"},
    **{"gradient_accumulation_steps": "grad_accumulation", "grad_accum": "grad_accumulation"},
    **{"grad_accumulation_steps": "grad_accumulation", "accumulation_steps": "grad_accumulation"},
    **{"gradient_checkpointing": "checkpoint_layers", "grad_checkpoint": "checkpoint_layers"},
    **{"use_gradient_checkpointing": "checkpoint_layers"},
    **{"max_seq_length": "max_length", "max_seq_len": "max_length", "max_len": "max_length"},
    **{"sequence_len": "max_length", "cutoff_len": "max_length"},
    **{"max_grad_norm": "grad_clip", "optim": "optimizer", "warmup": "warmup_steps"},
    **{"torch_dtype": "dtype", "fine_tune_type": "method", "train_type": "method"},
    **{"lora_r": "lora_rank", "rank": "lora_rank", "num_layers": "lora_layers"},
    **{"lora_target_modules": "lora_modules", "target_modules": "lora_modules"},
    **{"logging_steps": "log_every", "steps_per_report": "log_every"},
    **{"eval_steps": "eval_every", "steps_per_eval": "eval_every", "save_steps": "save_every"},
    **{"early_stopping_patience": "patience", "early_stopping": "patience"},
    **{"random_state": "seed", "r": "lora_rank"},
}
_RANKS = [name for name, setting in SAME.items() if setting == "lora_rank"]
# In other trainers, these are given when adapters are trained.
_OF_LORA = {*_RANKS, "lora_alpha", "num_layers", "lora_target_modules", "target_modules"}
# Settings that have other values elsewhere.
VALUED = ("optimizer", "dtype", "method", "epochs", "lora_modules")

# A switch that sets another setting.
MEANS = {
    **{"lora": ("method", "lora"), "use_peft": ("method", "lora"), "use_lora": ("method", "lora")},
    **{
        "qlora": ("method", "lora"),
        "full": ("method", "full"),
        "full_finetune": ("method", "full"),
    },
    **{"bf16": ("dtype", "bfloat16"), "fp32": ("dtype", "float32")},
    "load_best_model_at_end": ("keep", "best"),
    "lora_target_linear": ("lora_modules", "all"),
}

# Optimizers whose arithmetic is one of ours, in other kernels or with rounded state. Adam is AdamW
# without decay, our default.
_OPTIMIZERS = {
    **dict.fromkeys(("adam", "adamw", "adamw_hf", "adamw_torch", "adamw_torch_fused"), "adamw"),
    **dict.fromkeys(("adamw_torch_xla", "adamw_torch_npu_fused", "adamw_apex_fused"), "adamw"),
    **dict.fromkeys(("adamw_torch_4bit", "adamw_torch_8bit", "adamw_anyprecision"), "adamw"),
    **dict.fromkeys(("adamw_8bit", "adamw_bnb_8bit", "ao_adamw_4bit", "ao_adamw_8bit"), "adamw"),
    **dict.fromkeys(("ao_adamw_fp8", "optimi_adamw", "paged_adamw", "paged_adamw_8bit"), "adamw"),
    "paged_adamw_32bit": "adamw",
    **dict.fromkeys(("lion", "lion_8bit", "lion_32bit", "lion_pytorch", "paged_lion"), "lion"),
    **dict.fromkeys(("paged_lion_8bit", "paged_lion_32bit"), "lion"),
}

# What is done unasked.
_DONE = {
    *("train", "do_train", "do_eval", "mask_prompt", "precompute_ref_log_probs", "strict"),
    *("no_remove_unused_columns", "remove_unused_columns", "save_safetensors", "save_model"),
    "data_format",
}
# What changes nothing of what is learned: it is left unused. Switches stand apart, because no value
# follows them on a command line.
_UNUSED_SWITCHES = {
    *("test", "logging_first_step", "trust_remote_code", "push_to_hub", "push_model"),
    *("use_liger_kernel", "use_flash_attn", "flash_attention", "tf32", "disable_tqdm"),
    *(
        "dataset_streaming",
        "precompute_ref_log_probs",
        "group_by_length",
        "strict",
        "sample_packing",
    ),
    *("pad_to_sequence_len", "train_on_inputs", "generate_during_eval"),
    *("save_model", "push_model"),
}
_UNUSED = {
    *_UNUSED_SWITCHES,
    *("per_device_eval_batch_size", "eval_batch_size", "eval_accumulation_steps"),
    *("save_strategy", "save_total_limit", "logging_strategy", "logging_dir", "log_level"),
    *("run_name", "project_name", "wandb", "wandb_project", "wandb_name"),
    *("wandb_entity", "wandb_watch", "wandb_log_model", "hub_model_id", "hub_strategy"),
    *(
        "preprocessing_num_workers",
        "dataset_num_proc",
        "dataloader_num_workers",
        "dataset_processes",
    ),
    *("eval_strategy", "evaluation_strategy", "evals_per_epoch", "saves_per_epoch", "debug"),
    *("eval_table_size", "eval_max_new_tokens", "special_tokens", "xformers_attention"),
    *("dataset_prepared_path", "gradient_checkpointing_kwargs", "attn_implementation", "device"),
    *("max_prompt_length", "max_completion_length", "val_batches", "test_batches", "data_seed"),
    *("clear_cache_threshold", "model_type", "tokenizer_type", "truncation_mode", "ddp_timeout"),
    *("backend", "local_rank", "lora_fan_in_fan_out", "bias", "hub_token", "chat_template"),
}
_PROJECT = "give {report_to}; a project's name is read from WANDB_PROJECT or TRACKIO_PROJECT"
_INSTEAD = {
    **dict.fromkeys(("wandb", "wandb_project", "project_name"), _PROJECT),
    "run_name": "a tracker names the run after its folder, {run_dir}",
    "logging_dir": "TensorBoard's file lies in the run's folder, {run_dir}",
    "push_to_hub": "mlx_dpo push uploads the finished folder",
    "hub_model_id": "mlx_dpo push uploads the finished folder",
    "max_prompt_length": "{max_length} is that of prompt and answer together",
    "test": "mlx_dpo eval does that",
    **dict.fromkeys(
        ("eval_strategy", "evaluation_strategy", "evals_per_epoch", "saves_per_epoch"),
        "{eval_every} and {save_every} count steps",
    ),
    "trust_remote_code": "code from a model folder is never run",
    "chat_template": "the template is the model's own",
    "sample_packing": "a prompt that two answers share is read once",
    "warmup_ratio": "the warm-up is a tenth of all steps, 10 at most",
    "device": "MLX takes the GPU of a Mac, or the CPU",
}

_PACKED = "take a model in 4 bits, as mlx_lm.convert -q makes one; it trains by adapters unasked"
_ONE_LOSS = "there is one loss, the sigmoid loss of DPO: leave it out"
_SCHEDULE = "the schedule is a warm-up and a cosine to {min_learning_rate}: leave it out"
_REFERENCE = "the reference is the model that training starts from: leave it out"
_ONE_METHOD = "DPO is the only method: leave it out"
_SPLITS = "first mlx_dpo data import NAME --files '*train_prefs*', then give its file as {data}"

# What has no counterpart, and what to do; names in braces are settings.
_REFUSED = {
    "lora_dropout": "adapters train without dropout: in the policy alone it would start the loss "
    "anywhere but at log 2; leave it out",
    "lora_alpha": "give the factor itself, alpha / r, as {lora_scale}",
    "lora_parameters": "give {lora_rank}, {lora_scale} and {lora_modules} by themselves",
    "lora_modules_to_save": "only the adapters train: leave it out, or {method} full",
    "modules_to_save": "only the adapters train: leave it out, or {method} full",
    **dict.fromkeys(("use_dora", "use_rslora"), "plain LoRA is the only kind: leave it out"),
    "resume_adapter_file": "give the adapter's folder as {adapter}",
    "lora_model_dir": "give it as {adapter}",
    "warmup_ratio": "give {warmup_steps}; by default they are a tenth of all steps, 10 at most",
    **dict.fromkeys(("loss_type", "dpo_cpo_loss_type", "label_smoothing"), _ONE_LOSS),
    **dict.fromkeys(("lr_scheduler_type", "lr_schedule", "lr_scheduler"), _SCHEDULE),
    "optimizer_config": "of these, {weight_decay} alone can be set: leave it out",
    **dict.fromkeys(("ref_model", "reference_model_path", "sync_ref_model"), _REFERENCE),
    **dict.fromkeys(("train_mode", "training_mode", "rl", "task", "trainer"), _ONE_METHOD),
    **dict.fromkeys(("load_in_4bit", "load_in_8bit", "quantize", "quantization"), _PACKED),
    **dict.fromkeys(("load_in_4bits", "load_in_6bits", "load_in_8bits"), _PACKED),
    **dict.fromkeys(("dataset_splits", "dataset_config", "dataset_train_split"), _SPLITS),
    "dataset_test_split": _SPLITS,
    **dict.fromkeys(("deepspeed", "fsdp", "fsdp_config"), "one machine trains: leave it out"),
    "fuse": "mlx_dpo export ADAPTER OUT --fuse does that after training",
    "fp16": "float16 is for the frozen base of adapters: {dtype} float16 with {method} lora",
    "resume_from_checkpoint": "mlx_dpo train --resume --run-dir FOLDER goes on with a run",
}
_REFUSED_SWITCHES = {
    *("load_in_4bit", "load_in_8bit", "load_in_4bits", "load_in_6bits", "load_in_8bits", "fuse"),
    *("use_dora", "use_rslora", "sync_ref_model", "fp16"),
}
# Values with which a refused setting asks for nothing else than what is done.
_AGREES: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("lr_scheduler_type", "lr_scheduler"), ("cosine", "cosine_with_min_lr")),
    **dict.fromkeys(("loss_type", "dpo_cpo_loss_type"), ("sigmoid",)),
    **dict.fromkeys(("rl", "task", "trainer", "train_mode", "training_mode"), ("dpo", "normal")),
    "warmup_ratio": (0.1, "0.1"),
    "quantization": ("none",),
    **dict.fromkeys(("dataset_train_split", "dataset_test_split"), ("train", "test")),
}
_NOTHING: tuple[Any, ...] = (
    None,
    False,
    0,
    "",
    [],
    {},
    "false",
    "False",
    "None",
    "none",
    "null",
    "0",
    "0.0",
    "no",
)
_ON: tuple[Any, ...] = (True, "true", "True", "1", "1.0", "yes", "auto")  # True is 1 as well
# Where a config file has sections: names in them, and their names outside.
_SECTIONS: dict[str, dict[str, str]] = {
    "lora_parameters": {
        **{"keys": "lora_modules", "rank": "lora_rank", "scale": "lora_scale"},
        "dropout": "lora_dropout",
    },
    "lora": {
        **{"r": "lora_rank", "rank": "lora_rank", "alpha": "lora_alpha", "dropout": "lora_dropout"},
        **{"target_modules": "lora_modules", "enabled": "use_lora"},
    },
    "data": {"train": "data", "val": "eval_data", "path": "data", "format": "data_format"},
    "training": {},
    "base": {},
}


def ours(
    given: Mapping[str, Any], known: Collection[str], spelled: Callable[[str], str] = str
) -> tuple[dict[str, Any], list[str]]:
    """Settings by the names and values that they have here, and notes on those left unused.

    A name that no trainer has stays as it is.

    Args:
        given: Settings with underscores in their names; values are of a config file, or text.
        known: Names of the settings here.
        spelled: How a setting is written where the names stood.

    Raises:
        UsageError: If some would change what is learned and have no counterpart; it names all. Or
            if a switch is neither on nor off.
    """
    flat = _settled(dict(_flat(given, known)))
    settings: dict[str, Any] = {}
    meant: dict[str, Any] = {} if given.keys().isdisjoint(_OF_LORA) else {"method": "lora"}
    unused, refused = [], []
    for name, value in flat.items():
        if name in known or name in SAME:
            key, here = SAME.get(name, name), _value(SAME.get(name, name), value)
            if here is not None and key in settings:
                raise UsageError(f"{spelled(name)}: {spelled(key)} is given twice")
            settings |= {} if here is None else {key: here}
        elif name in MEANS:
            meant |= dict([MEANS[name]]) if _is_on(spelled(name), value) else {}
        elif not is_foreign(name):
            settings[name] = value
        elif value not in _NOTHING and name not in _DONE:
            if name not in _UNUSED and _one(value) not in _AGREES.get(name, ()):
                refused.append(name)
            elif name in _UNUSED or name in _INSTEAD:
                unused.append(name)
    if refused:
        raise UsageError("; ".join(_told(refused, _REFUSED, spelled)))
    return meant | settings, _told(unused, _INSTEAD, spelled)


def is_switch(name: str) -> bool:
    """Whether no value follows this name of another trainer on a command line."""
    return any(name in names for names in (MEANS, _DONE, _UNUSED_SWITCHES, _REFUSED_SWITCHES))


def is_foreign(name: str) -> bool:
    """Whether a name, with underscores, is known from another trainer."""
    return any(name in names for names in (SAME, MEANS, _DONE, _UNUSED, _REFUSED))


def _flat(given: Mapping[str, Any], known: Collection[str]) -> Iterator[tuple[str, Any]]:
    """Settings without sections."""
    for name, value in given.items():
        if name in _SECTIONS and isinstance(value, Mapping):
            names = _SECTIONS[name]
            if name in ("lora", "lora_parameters") and "enabled" not in value:
                yield "use_lora", True
            below = {str(key).replace("-", "_"): each for key, each in value.items()}
            yield from _flat({names.get(key, key): each for key, each in below.items()}, known)
        elif name == "adapter" and value in ("lora", "qlora") and not Path(value).exists():
            yield "method", "lora"  # axolotl's word for it
        else:
            yield name, value


def _told(
    names: Sequence[str], texts: Mapping[str, str], spelled: Callable[[str], str]
) -> list[str]:
    """A note for each text, with all its names."""
    by_text: dict[str, list[str]] = {}
    for name in names:
        by_text.setdefault(texts.get(name, ""), []).append(spelled(name))
    told = []
    for text, of_text in by_text.items():
        here = re.sub(r"\{(\w+)\}", lambda found: spelled(found[1]), text)
        told.append(", ".join(of_text) + (f": {here}" if here else ""))
    return told


def _settled(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings with alpha / r for these two, where both are numbers, and one length of the run."""
    if (settings.get("max_steps") or -1) not in (-1, "-1"):
        settings.pop("num_train_epochs", None)  # as in Hugging Face's trainer
    alpha = settings.get("lora_alpha")
    rank = next((settings[each] for each in ("lora_rank", *_RANKS) if each in settings), None)
    try:
        scale = float(alpha) / float(rank)  # type: ignore[arg-type]
    except (TypeError, ValueError, ArithmeticError):
        return settings
    rest = {name: value for name, value in settings.items() if name != "lora_alpha"}
    return {"lora_scale": scale} | rest


def _is_on(name: str, value: Any) -> bool:
    """Whether a switch is on.

    Raises:
        UsageError: If its value says neither.
    """
    if value in _NOTHING:
        return False
    if value not in _ON:
        raise UsageError(f"{name}: expected true or false, found {value!r:.60}")
    return True


def _one(value: Any) -> Any:
    """The only one of a list."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _value(key: str, value: Any) -> Any:
    """A value as it is said here; None leaves the setting out."""
    if key in ("data", "eval_data") and isinstance(value, Mapping | list):
        return _data_set(value)
    if key == "lora_modules" and isinstance(value, str | list):
        names = value if isinstance(value, list) else str(value).split(",")
        text = ",".join(str(name).strip().split(".")[-1] for name in names)
        return "all" if text == "all-linear" else text
    value = _one(value)
    if key == "optimizer" and isinstance(value, str):
        return _OPTIMIZERS.get(value, value)
    if key == "dtype" and isinstance(value, str):
        return {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "auto": None}.get(
            value, value
        )
    if key == "method":
        return "lora" if value == "qlora" else value
    if key in ("epochs", "steps", "lora_layers", "batch_size"):
        if value in ("auto", -1, "-1"):
            return None
        if isinstance(value, float | str) and re.fullmatch(r"\d+\.0*", str(value)):
            return value.partition(".")[0] if isinstance(value, str) else int(value)
    return value


def _data_set(value: Any) -> Any:
    """The name of the only data set of a list or mixture.

    Raises:
        UsageError: If there are several.
    """
    if isinstance(value, Mapping):
        value = (
            [value.get("path") or value.get("name")]
            if value.keys() & {"path", "name"}
            else [*value]
        )
    names = [each.get("path") if isinstance(each, Mapping) else each for each in value]
    if len(names) != 1:
        raise UsageError(
            f"{', '.join(map(str, names)) or 'no data'}: one file of pairs is taken; mlx_dpo data "
            "import makes one of each data set, and mlx_dpo data merge one of all"
        )
    return names[0]

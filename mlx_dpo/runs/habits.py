"""Names that settings have in other trainers, and what they are called here.

Those of mlx-lm's LoRA trainer, of TRL's DPOConfig and ModelConfig, and of Hugging Face's
TrainingArguments, all in the spelling of a config file's keys.
"""

import re
from collections.abc import Callable

# The same setting by another name.
SAME = {
    **{"model_name_or_path": "model", "base_model": "model", "pretrained_model": "model"},
    **{"dataset": "data", "dataset_name": "data", "train_data": "data", "train_file": "data"},
    **{"eval_dataset": "eval_data", "eval_file": "eval_data", "valid_data": "eval_data"},
    **{"test_size": "eval_fraction", "val_split": "eval_fraction"},
    **{"output_dir": "out", "output": "out", "save_path": "out", "adapter_path": "out"},
    **{"overwrite_output_dir": "overwrite", "lr": "learning_rate", "min_lr": "min_learning_rate"},
    **{
        "iters": "steps",
        "max_steps": "steps",
        "num_epochs": "epochs",
        "num_train_epochs": "epochs",
    },
    **{"per_device_train_batch_size": "batch_size", "train_batch_size": "batch_size"},
    **{"gradient_accumulation_steps": "grad_accumulation", "grad_accum": "grad_accumulation"},
    **{"grad_accumulation_steps": "grad_accumulation", "accumulation_steps": "grad_accumulation"},
    **{"gradient_checkpointing": "checkpoint_layers", "grad_checkpoint": "checkpoint_layers"},
    **{"max_seq_length": "max_length", "max_seq_len": "max_length", "max_len": "max_length"},
    **{"max_grad_norm": "grad_clip", "optim": "optimizer", "warmup": "warmup_steps"},
    **{"torch_dtype": "dtype", "fine_tune_type": "method", "train_type": "method"},
    **{"lora_r": "lora_rank", "rank": "lora_rank", "num_layers": "lora_layers"},
    **{"lora_target_modules": "lora_modules", "target_modules": "lora_modules"},
    **{"logging_steps": "log_every", "steps_per_report": "log_every"},
    **{"eval_steps": "eval_every", "steps_per_eval": "eval_every", "save_steps": "save_every"},
    **{"early_stopping_patience": "patience", "early_stopping": "patience"},
}

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
}

_PACKED = "take a model in 4 bits, as mlx_lm.convert -q makes it: it trains by adapters of itself"
_ONE_LOSS = "there is one loss, the sigmoid loss of DPO: leave it out"
_SCHEDULE = "the schedule is a warm-up and a cosine to {min_learning_rate}: leave it out"
_REFERENCE = "the reference is the model that training starts from: leave it out"
_PROJECT = "give {report_to}; a project's name is read from WANDB_PROJECT or TRACKIO_PROJECT"

# What has no counterpart, and what to do; names in braces are settings.
_REFUSED = {
    "lora_dropout": "adapters train without dropout: in the policy alone it would start the loss "
    "anywhere but at log 2; leave it out",
    "lora_alpha": "give the factor itself, alpha / r, as {lora_scale}",
    "lora_parameters": "give {lora_rank}, {lora_scale} and {lora_modules} by themselves",
    "resume_adapter_file": "give the adapter's folder as {adapter}",
    "warmup_ratio": "give {warmup_steps}; by default they are a tenth of all steps",
    **dict.fromkeys(("loss_type", "dpo_cpo_loss_type", "label_smoothing"), _ONE_LOSS),
    **dict.fromkeys(("lr_scheduler_type", "lr_schedule"), _SCHEDULE),
    **dict.fromkeys(("ref_model", "reference_model_path"), _REFERENCE),
    "precompute_ref_log_probs": "{reference} cached does that, the default: leave it out",
    "max_prompt_length": "{max_length} is that of prompt and answer together: leave it out",
    "mask_prompt": "only answers are ever scored: leave it out",
    "train": "mlx_dpo train does that: leave it out",
    "train_mode": "DPO is the only method: leave it out",
    "test": "mlx_dpo eval does that after training",
    "do_eval": "held-out pairs are always evaluated: leave it out",
    "eval_strategy": "give {eval_every}, in steps",
    **dict.fromkeys(("load_in_4bit", "load_in_8bit", "quantize"), _PACKED),
    "fp16": "float16 is for the frozen base of adapters: {dtype} float16 with {method} lora",
    **dict.fromkeys(("wandb", "wandb_project", "project", "project_name"), _PROJECT),
    "run_name": "a tracker names the run after its folder: give {run_dir}",
    "logging_dir": "TensorBoard's file lies in the run's folder: give {run_dir}",
    "resume_from_checkpoint": "mlx_dpo train --resume --run-dir FOLDER goes on with a run",
    "trust_remote_code": "code from a model folder is never run: leave it out",
    "push_to_hub": "hf upload takes the finished folder: leave it out",
    "device": "MLX takes the GPU of a Mac, or the CPU: leave it out",
}


def refusal(key: str, spelled: Callable[[str], str] = str) -> str | None:
    """Why there is no such setting and what to do instead; None where the name is not known.

    Args:
        key: The name, with underscores.
        spelled: How a setting of ours is written where the name stood.
    """
    text = _REFUSED.get(key)
    return text and re.sub(r"\{(\w+)\}", lambda name: spelled(name[1]), text)

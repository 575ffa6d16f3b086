"""Names and values of settings in other trainers.

They are those of mlx-lm's LoRA trainer, of TRL's DPOConfig and ModelConfig, of Hugging Face's
TrainingArguments, and of the config files of axolotl, the alignment handbook, LLaMA-Factory,
unsloth and soup. `runs.habits` turns them into those of a run.
"""

from typing import Any

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
    **{"finetuning_type": "method", "lora_target": "lora_modules", "pref_beta": "beta"},
    **{"val_size": "eval_fraction", "adapter_name_or_path": "adapter"},
    **{"dataset_mixture": "data", "gradient_clipping": "grad_clip"},
}
RANKS = [name for name, setting in SAME.items() if setting == "lora_rank"]
# In other trainers, these are given when adapters are trained.
OF_LORA = {*RANKS, "lora_alpha", "num_layers", "lora_target_modules", "target_modules"}
# Settings that have other values elsewhere.
VALUED = ("optimizer", "dtype", "method", "epochs", "lora_modules", "adapter")
# What mlx-lm counts in batches, also where they are accumulated, and what that is here.
OF_BATCHES = {
    **{"iters": "steps", "steps_per_eval": "eval_every", "steps_per_report": "log_every"},
    "save_every": "save_every",  # only beside one of the others: the name is ours too
}
# Settings of ours that decide what others mean.
DECIDING = ("lora_rank", "grad_accumulation", "save_every", "keep")
# Names that LLaMA-Factory alone has.
OF_LLAMA_FACTORY = {"stage", "finetuning_type", "dataset_dir", "pref_loss", "lora_target"}

# A switch that sets another setting.
MEANS = {
    **{"lora": ("method", "lora"), "use_peft": ("method", "lora"), "use_lora": ("method", "lora")},
    **{
        "qlora": ("method", "lora"),
        "full": ("method", "full"),
        "full_finetune": ("method", "full"),
    },
    **{"bf16": ("dtype", "bfloat16"), "fp32": ("dtype", "float32")},
    **{"full_finetuning": ("method", "full"), "pure_bf16": ("dtype", "bfloat16")},
    "load_best_model_at_end": ("keep", "best"),
    "lora_target_linear": ("lora_modules", "all"),
}

# Optimizers whose arithmetic is one of ours, in other kernels or with rounded state. Adam is AdamW
# without decay, our default.
OPTIMIZERS = {
    **dict.fromkeys(("adam", "adamw", "adamw_hf", "adamw_torch", "adamw_torch_fused"), "adamw"),
    **dict.fromkeys(("adamw_torch_xla", "adamw_torch_npu_fused", "adamw_apex_fused"), "adamw"),
    **dict.fromkeys(("adamw_torch_4bit", "adamw_torch_8bit", "adamw_anyprecision"), "adamw"),
    **dict.fromkeys(("adamw_8bit", "adamw_bnb_8bit", "ao_adamw_4bit", "ao_adamw_8bit"), "adamw"),
    **dict.fromkeys(("ao_adamw_fp8", "optimi_adamw", "paged_adamw", "paged_adamw_8bit"), "adamw"),
    "paged_adamw_32bit": "adamw",
    **dict.fromkeys(("lion", "lion_8bit", "lion_32bit", "lion_pytorch", "paged_lion"), "lion"),
    **dict.fromkeys(("paged_lion_8bit", "paged_lion_32bit"), "lion"),
}
# Values of settings, and what they are here; None leaves the setting out.
WORDS: dict[str, dict[str, Any]] = {
    "optimizer": OPTIMIZERS,
    "dtype": {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "auto": None},
    "method": {"qlora": "lora"},
    "checkpoint_layers": dict.fromkeys(("unsloth", "offload", "offload_disk"), True),
}

# What is done unasked.
DONE = {
    *("train", "do_train", "do_eval", "mask_prompt", "precompute_ref_log_probs", "strict"),
    *("no_remove_unused_columns", "remove_unused_columns", "save_safetensors", "save_model"),
    *("data_format", "disable_dropout", "ignore_bias_buffers", "shuffle_merged_datasets"),
}
# What changes nothing of what is learned: it is left unused. Switches stand apart, because no value
# follows them on a command line.
UNUSED_SWITCHES = {
    *("test", "logging_first_step", "trust_remote_code", "push_to_hub", "push_model"),
    *("use_liger_kernel", "use_flash_attn", "flash_attention", "tf32", "disable_tqdm"),
    *("dataset_streaming", "group_by_length"),
    *("sample_packing", "packing", "neat_packing", "padding_free", "eval_sample_packing"),
    *("do_predict", "plot_loss", "overwrite_cache", "streaming", "save_only_model"),
    *("use_unsloth", "use_unsloth_gc", "enable_liger_kernel", "use_fast_tokenizer"),
    *("upcast_layernorm", "upcast_lmhead_output", "train_on_prompt", "mask_history"),
    *("compute_accuracy", "include_num_input_tokens_seen", "include_tokens_per_second"),
    *("predict_with_generate", "use_flash_attention_2", "ddp_find_unused_parameters"),
    *("use_logits_to_keep", "use_num_logits_to_keep", "use_bnb_nested_quant"),
    *("dataloader_pin_memory", "dataloader_drop_last", "dataloader_persistent_workers"),
    *("greater_is_better", "save_on_each_node", "hub_private_repo", "bf16_full_eval"),
    *("fp16_full_eval", "torch_compile", "use_cpu", "no_cuda", "use_mps_device"),
    *("full_determinism", "auto_find_batch_size", "eval_on_start", "double_quantization"),
    *("skip_memory_metrics", "freeze_vision_tower", "freeze_multi_modal_projector"),
    *("is_llama_derived_model", "is_mistral_derived_model", "is_falcon_derived_model"),
    *("is_qwen_derived_model", "sdp_attention", "s2_attention", "eager_attention"),
    *("flash_attn_cross_entropy", "flash_attn_rms_norm", "save_first_step", "use_tensorboard"),
    *("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel", "hf_use_auth_token"),
    *("dataset_exact_deduplication", "auto_resume_from_checkpoints", "liger_rope"),
    *("liger_rms_norm", "liger_glu_activation", "liger_layer_norm", "skip_prepare_dataset"),
    *("liger_fused_linear_cross_entropy", "liger_cross_entropy", "fast_inference"),
    *("load_in_16bit", "lora_on_cpu", "auto_insert_empty_system_msg"),
    *("pad_to_sequence_len", "train_on_inputs", "generate_during_eval"),
}
UNUSED = {
    *UNUSED_SWITCHES,
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
    *("template", "dataset_dir", "tokenized_path", "media_dir", "cache_dir", "flash_attn"),
    *("quantization_method", "quantization_type", "buffer_size", "hf_hub_token", "token"),
    *("tokenizer_name_or_path", "tokenizer_name", "chat_template_path"),
    *("image_max_pixels", "video_max_pixels", "image_min_pixels", "tokenizer_config"),
    *("lora_task_type", "bnb_4bit_quant_type", "bnb_4bit_compute_dtype", "use_dpo_data_collator"),
    *("bnb_4bit_quant_storage", "pad_token", "padding_value", "label_pad_token_id"),
    *("max_target_length", "train_on_eos", "precompute_ref_batch_size", "model_init_kwargs"),
    *("ref_model_init_kwargs", "dataset_kwargs", "f_alpha_divergence_coef", "discopop_tau"),
    *("ref_model_mixup_alpha", "ref_model_sync_steps", "base_model_attribute_name"),
    *("metric_for_best_model", "save_at_end", "eval_delay", "hub_revision", "log_level_replica"),
    *("dataloader_prefetch_factor", "torch_empty_cache_steps", "base_model_config"),
    *("plugins", "tokens", "bnb_config_kwargs", "gpu_memory_limit", "loss_watchdog_threshold"),
    *("loss_watchdog_patience", "gpu_memory_utilization", "device_map", "max_memory"),
    *("chat_template_jinja", "default_system_message", "mlflow_experiment_name"),
    *("mlflow_tracking_uri", "comet_project_name", "wandb_run_id", "wandb_mode"),
    *("swanlab_project", "use_swanlab", "ray_run_name", "ray_storage_path", "world_size"),
    *("backend", "local_rank", "lora_fan_in_fan_out", "bias", "hub_token", "chat_template"),
}
_PROJECT = "give {report_to}; a project's name is read from WANDB_PROJECT or TRACKIO_PROJECT"
INSTEAD = {
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
    **dict.fromkeys(
        ("template", "chat_template", "chat_template_path", "chat_template_jinja"),
        "the template is the model's own",
    ),
    "dataset_dir": "{data} names the file itself, with its folder",
    "metric_for_best_model": "{best_by} says which result is best",
    "do_predict": "mlx_dpo eval does that",
    **dict.fromkeys(
        ("sample_packing", "packing", "neat_packing", "padding_free"),
        "a prompt that two answers share is read once",
    ),
    "warmup_ratio": "the warm-up is a tenth of all steps, 10 at most",
    "device": "MLX takes the GPU of a Mac, or the CPU",
}

_PACKED = "take a model in 4 bits, as mlx_lm.convert -q makes one; it trains by adapters unasked"
_ONE_LOSS = "there is one loss, the sigmoid loss of DPO: leave it out"
_SCHEDULE = "the schedule is a warm-up and a cosine to {min_learning_rate}: leave it out"
_REFERENCE = "the reference is the model that training starts from: leave it out"
_NO_OTHER = "the loss is the pairs' alone, without another term or weight: leave it out"
_PLAIN = "plain LoRA is the only kind: leave it out"
_CONSTANTS = "the optimizer's constants are 0.9, 0.999 and 1e-8: leave it out"
_NOISE = "training adds no noise to embeddings: leave it out"
_ONE_METHOD = "DPO is the only method: leave it out"
_SPLITS = "first mlx_dpo data import NAME --files '*train_prefs*', then give its file as {data}"

# What has no counterpart, and what to do; names in braces are settings.
REFUSED = {
    "lora_dropout": "adapters train without dropout: in the policy alone it would start the loss "
    "anywhere but at log 2; leave it out",
    "lora_alpha": "give the factor itself, alpha / r, as {lora_scale}",
    "lora_parameters": "give {lora_rank}, {lora_scale} and {lora_modules} by themselves",
    "lora_modules_to_save": "only the adapters train: leave it out, or {method} full",
    "modules_to_save": "only the adapters train: leave it out, or {method} full",
    **dict.fromkeys(("use_dora", "use_rslora", "peft_use_dora", "peft_use_rslora"), _PLAIN),
    **dict.fromkeys(("pissa_init", "loftq_config", "init_lora_weights", "relora_steps"), _PLAIN),
    **dict.fromkeys(("loraplus_lr_ratio", "loraplus_lr_embedding"), _PLAIN),
    **dict.fromkeys(("layer_replication", "rank_pattern", "alpha_pattern"), _PLAIN),
    **dict.fromkeys(
        ("use_galore", "use_apollo", "use_badam", "use_llama_pro"),
        "{method} is full or lora: leave it out",
    ),
    **dict.fromkeys(
        ("layers_to_transform", "peft_layers_to_transform"),
        "{lora_layers} counts layers from the top",
    ),
    **dict.fromkeys(
        ("freeze_trainable_layers", "unfrozen_parameters"),
        "{method} is full or lora; {lora_layers} says how many layers get adapters",
    ),
    "additional_target": "only the adapters train: leave it out, or {method} full",
    "peft_modules_to_save": "only the adapters train: leave it out, or {method} full",
    "model_revision": "download that revision and give its folder as {model}",
    "rope_scaling": "positions are as the model's config.json says: leave it out",
    "resize_vocab": "the vocabulary stays as it is: leave it out",
    "max_samples": "every pair of {data} is used: give a file of fewer",
    **dict.fromkeys(("rpo_alpha", "pref_ftx", "ld_alpha", "simpo_gamma"), _NO_OTHER),
    **dict.fromkeys(("use_weighting", "dpo_use_weighting", "loss_weights"), _NO_OTHER),
    **dict.fromkeys(("dpo_norm_loss", "pref_bco_weight", "sft_alpha"), _NO_OTHER),
    **dict.fromkeys(("adam_beta1", "adam_beta2", "adam_epsilon"), _CONSTANTS),
    **dict.fromkeys(("neftune_noise_alpha", "noisy_embedding_alpha"), _NOISE),
    **dict.fromkeys(("cosine_min_lr_ratio", "lr_scheduler_kwargs"), "give {min_learning_rate}"),
    **dict.fromkeys(("reference_free", "force_use_ref_model", "rl_adapter_ref_model"), _REFERENCE),
    "f_divergence_type": "the divergence is reverse KL: leave it out",
    "resume_adapter_file": "give the adapter's folder as {adapter}",
    "lora_model_dir": "give it as {adapter}",
    "warmup_ratio": "give {warmup_steps}; by default they are a tenth of all steps, 10 at most",
    **dict.fromkeys(("loss_type", "dpo_cpo_loss_type", "label_smoothing"), _ONE_LOSS),
    **dict.fromkeys(("pref_loss", "dpo_loss", "dpo_loss_type"), _ONE_LOSS),
    **dict.fromkeys(("dpo_label_smoothing", "rl_loss"), _ONE_LOSS),
    **dict.fromkeys(("lr_scheduler_type", "lr_schedule", "lr_scheduler"), _SCHEDULE),
    **dict.fromkeys(("ref_model_adapters", "ref_model_quantization_bit"), _REFERENCE),
    "optimizer_config": "of these, {weight_decay} alone can be set: leave it out",
    **dict.fromkeys(("ref_model", "reference_model_path", "sync_ref_model"), _REFERENCE),
    **dict.fromkeys(("train_mode", "training_mode", "rl", "task", "trainer"), _ONE_METHOD),
    **dict.fromkeys(("stage", "rlhf_type"), _ONE_METHOD),
    **dict.fromkeys(("load_in_4bit", "load_in_8bit", "quantize", "quantization"), _PACKED),
    **dict.fromkeys(("quantization_bit", "quant_bits", "load_in_fp8", "gptq"), _PACKED),
    **dict.fromkeys(("load_in_4bits", "load_in_6bits", "load_in_8bits"), _PACKED),
    **dict.fromkeys(("dataset_splits", "dataset_config", "dataset_train_split"), _SPLITS),
    "dataset_test_split": _SPLITS,
    **dict.fromkeys(("deepspeed", "fsdp", "fsdp_config"), "one machine trains: leave it out"),
    "fuse": "mlx_dpo export ADAPTER OUT --fuse does that after training",
    "fp16": "float16 is for the frozen base of adapters: {dtype} float16 with {method} lora",
    "resume_from_checkpoint": "mlx_dpo train --resume --run-dir FOLDER goes on with a run",
}
REFUSED_SWITCHES = {
    *("load_in_4bit", "load_in_8bit", "load_in_4bits", "load_in_6bits", "load_in_8bits", "fuse"),
    *("use_dora", "use_rslora", "sync_ref_model", "fp16", "peft_use_dora", "peft_use_rslora"),
    *("pissa_init", "use_galore", "use_apollo", "use_badam", "use_llama_pro", "resize_vocab"),
    *("use_weighting", "dpo_use_weighting", "dpo_norm_loss", "reference_free", "gptq"),
    *("force_use_ref_model", "rl_adapter_ref_model", "load_in_fp8"),
}
# Values with which a refused setting asks for nothing else than what is done.
AGREES: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("lr_scheduler_type", "lr_scheduler"), ("cosine", "cosine_with_min_lr")),
    **dict.fromkeys(("loss_type", "dpo_cpo_loss_type"), ("sigmoid",)),
    **dict.fromkeys(("pref_loss", "dpo_loss", "dpo_loss_type"), ("sigmoid",)),
    **dict.fromkeys(("stage", "rlhf_type"), ("dpo",)),
    **{"adam_beta1": (0.9, "0.9"), "adam_beta2": (0.999, "0.999")},
    "adam_epsilon": (1e-8, "1e-8", "1e-08", "0.00000001"),
    **{"loss_weights": (1, "1", "1.0"), "init_lora_weights": (True, "true", "True")},
    "model_revision": ("main",),
    "f_divergence_type": ("reverse_kl", "FDivergenceType.REVERSE_KL"),
    **dict.fromkeys(("rl", "task", "trainer", "train_mode", "training_mode"), ("dpo", "normal")),
    "warmup_ratio": (0.1, "0.1"),
    "quantization": ("none",),
    **dict.fromkeys(("dataset_train_split", "dataset_test_split"), ("train", "test")),
}
NOTHING: tuple[Any, ...] = (
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
ON: tuple[Any, ...] = (True, "true", "True", "1", "1.0", "yes", "auto")  # True is 1 as well
# Where a config file has sections: names in them, and their names outside.
SECTIONS: dict[str, dict[str, str]] = {
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

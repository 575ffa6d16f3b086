"""Config files as the examples of other programs have them, and what they are here."""

from pathlib import Path
from typing import Any

import pytest

from mlx_dpo.cli import cli
from mlx_dpo.cli.habits import translated
from mlx_dpo.errors import UsageError
from mlx_dpo.runs.config import read_settings
from mlx_dpo.runs.config_file import read_file

RECIPES: dict[str, tuple[str, dict[str, Any]]] = {
    "mlx-lm": (
        """
model: m
train: true
fine_tune_type: lora
optimizer: adam
data: d
num_layers: 16
iters: 1000
learning_rate: 1e-5
resume_adapter_file: null
adapter_path: adapters
test: false
max_seq_length: 2048
grad_checkpoint: false
lora_parameters:
  keys: ["self_attn.q_proj", "self_attn.v_proj"]
  rank: 8
  scale: 20.0
  dropout: 0.0
""",
        {
            **{"model": "m", "method": "lora", "optimizer": "adamw", "data": "d"},
            **{"lora_layers": 16, "steps": 1000, "learning_rate": 1e-5, "out": "adapters"},
            **{"max_length": 2048, "checkpoint_layers": False, "lora_modules": "q_proj,v_proj"},
            **{"lora_rank": 8, "lora_scale": 20.0},
        },
    ),
    "alignment-handbook": (
        """
model_name_or_path: m
torch_dtype: null
dataset_mixer:
  d: 1.0
bf16: true
beta: 0.01
do_eval: true
evaluation_strategy: steps
eval_steps: 100
gradient_checkpointing_kwargs:
  use_reentrant: False
learning_rate: 5.0e-7
lr_scheduler_type: cosine
max_prompt_length: 512
num_train_epochs: 1.0
optim: adamw_torch
push_to_hub: true
save_strategy: "steps"
warmup_ratio: 0.1
""",
        {
            **{"model": "m", "data": "d", "dtype": "bfloat16", "beta": 0.01, "eval_every": 100},
            **{"learning_rate": 5e-7, "epochs": 1, "optimizer": "adamw"},
        },
    ),
    "axolotl": (
        """
base_model: m
model_type: AutoModelForCausalLM
load_in_4bit: false
rl: dpo
datasets:
  - path: d.jsonl
    type: chatml.intel
val_set_size: 0.1
adapter: qlora
sequence_len: 1024
lora_r: 64
lora_alpha: 32
lora_target_linear: true
micro_batch_size: 1
optimizer: paged_adamw_32bit
lr_scheduler: cosine
bf16: auto
xformers_attention:
evals_per_epoch: 1
deepspeed:
""",
        {
            **{"model": "m", "data": "d.jsonl", "eval_fraction": 0.1, "method": "lora"},
            **{"max_length": 1024, "lora_rank": 64, "lora_scale": 0.5, "lora_modules": "all"},
            **{"batch_size": 1, "optimizer": "adamw", "dtype": "bfloat16"},
        },
    ),
    "soup": (
        """
base: m
task: dpo
data:
  train: d.jsonl
  format: dpo
training:
  lr: 5e-6
  batch_size: auto
  dpo_beta: 0.1
  lora:
    r: 64
    alpha: 16
output: o
""",
        {
            **{"model": "m", "data": "d.jsonl", "learning_rate": 5e-6, "beta": 0.1, "out": "o"},
            **{"lora_rank": 64, "lora_scale": 0.25, "method": "lora"},
        },
    ),
    "mlx-lm with accumulation": (
        """
model: m
data: d
fine_tune_type: lora
iters: 1000
steps_per_report: 20
steps_per_eval: 200
save_every: 100
grad_accumulation_steps: 4
val_batches: 25
""",
        {
            **{"model": "m", "data": "d", "method": "lora", "steps": 250, "log_every": 5},
            **{"eval_every": 50, "save_every": 25, "grad_accumulation": 4},
        },
    ),
    "LLaMA-Factory": (
        """
model_name_or_path: m
trust_remote_code: true
stage: dpo
do_train: true
finetuning_type: lora
lora_rank: 8
lora_alpha: 16
lora_target: all
pref_beta: 0.1
pref_loss: sigmoid
template: llama3
cutoff_len: 2048
overwrite_cache: true
preprocessing_num_workers: 16
dataloader_num_workers: 4
output_dir: o
logging_steps: 10
save_steps: 500
plot_loss: true
overwrite_output_dir: true
save_only_model: false
report_to: none
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 5.0e-6
num_train_epochs: 3.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: true
ddp_timeout: 180000000
resume_from_checkpoint: null
val_size: 0.1
per_device_eval_batch_size: 1
eval_strategy: steps
eval_steps: 500
""",
        {
            **{"model": "m", "method": "lora", "lora_rank": 8, "lora_scale": 2.0, "beta": 0.1},
            **{"lora_modules": "all", "max_length": 2048, "out": "o", "log_every": 10},
            **{"save_every": 500, "overwrite": True, "report_to": "none", "batch_size": 1},
            **{"grad_accumulation": 8, "learning_rate": 5e-6, "epochs": 3, "dtype": "bfloat16"},
            **{"eval_fraction": 0.1, "eval_every": 500},
        },
    ),
    "TRL and unsloth": (
        """
model_name: m
model_revision: main
max_seq_length: 1024
load_in_4bit: false
full_finetuning: false
r: 16
target_modules: [q_proj, v_proj]
lora_alpha: 16
lora_dropout: 0
bias: none
use_gradient_checkpointing: unsloth
random_state: 3407
use_rslora: false
loftq_config: null
reference_free: false
rpo_alpha: null
f_divergence_type: reverse_kl
adam_beta2: 0.999
disable_dropout: true
padding_free: false
dataset_mixture:
  datasets: [{id: d, split: train}]
""",
        {
            **{"model": "m", "max_length": 1024, "method": "lora", "lora_rank": 16, "seed": 3407},
            **{"lora_scale": 1.0, "lora_modules": "q_proj,v_proj", "checkpoint_layers": True},
            "data": "d",
        },
    ),
}


@pytest.mark.parametrize("program", RECIPES)
def test_a_recipe_of_another_program_is_a_config_file(tmp_path: Path, program: str) -> None:
    text, settings = RECIPES[program]
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    assert read_settings(file) == settings


# The content of a file, what is typed behind it, and what it is together or why not.
TOGETHER = {
    "accumulates": ("grad_accumulation_steps: 4", "--iters 100", "--steps=25"),
    "is overruled": ("grad_accumulation: 2", "--iters 100 --grad-accum 4", "--steps=25"),
    "counts in steps": ("max_steps: 100", "--grad-accum 4", "--grad-accumulation=4"),
    "is for others": ("iters: 100", "--grad-accum=4 --steps 9", "--grad-accumulation=4"),
}


@pytest.mark.parametrize("case", TOGETHER)
def test_batches_are_counted_across_file_and_options(tmp_path: Path, case: str) -> None:
    text, typed, expected = TOGETHER[case]
    file = tmp_path / "a.yaml"
    file.write_text(text)
    told: list[str] = []
    words = translated(["train", str(file), *typed.split()], cli, told.append)
    assert expected in words
    assert len([word for word in words if word.startswith("--grad")]) == ("--grad" in typed)
    assert bool(told) is ("--iters" in typed)


def test_a_note_says_what_became_of_batches_and_who_looks_names_up(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("iters: 100\ngrad_accumulation_steps: 4")
    _, notes = read_file(file, ["steps", "grad_accumulation"])
    assert notes == [
        "iters 100 is steps 25: mlx-lm counts batches, of which 4 make a step here",
    ]
    file.write_text("stage: dpo\ndataset: dpo_en_demo")
    with pytest.raises(UsageError, match="dataset dpo_en_demo: LLaMA-Factory looks such a name up"):
        read_settings(file)
    file.write_text("iters: 100")
    with pytest.raises(UsageError, match=r"iters: mlx-lm counts batches: .* or type --steps"):
        translated(["train", str(file), "--grad-accum=4"], cli)

"""What people type who come from other trainers works, or gets one hint that is right."""

from pathlib import Path
from typing import Any

import pytest

from mlx_dpo.cli import cli, main
from mlx_dpo.cli.habits import translated
from mlx_dpo.errors import UsageError
from mlx_dpo.runs.config import RunConfig, read_settings

# Typed after `mlx_dpo train`, and what it is here.
SAME = {
    "--lr 1e-5": "--learning-rate 1e-5",
    "--learning_rate=1e-5": "--learning-rate 1e-5",
    "--iters 100": "--steps 100",
    "--max_steps 100": "--steps 100",
    "--num_train_epochs 2": "--epochs 2",
    "--num-epochs 2": "--epochs 2",
    "--per_device_train_batch_size 2": "--batch-size 2",
    "--gradient_accumulation_steps 4": "--grad-accumulation 4",
    "--grad-accumulation-steps 4": "--grad-accumulation 4",
    "--gradient_checkpointing": "--checkpoint-layers",
    "--gradient_checkpointing True": "--checkpoint-layers",
    "--gradient_checkpointing false": "",
    "--grad-checkpoint": "--checkpoint-layers",
    "--output_dir x": "--out x",
    "--output-dir x": "--out x",
    "--adapter-path x": "--out x",
    "--model_name_or_path m": "--model m",
    "--dataset_name d": "--data d",
    "--max_seq_length 256": "--max-length 256",
    "--max-seq-length 256": "--max-length 256",
    "--max_grad_norm 1": "--grad-clip 1",
    "--optim adafactor": "--optimizer adafactor",
    "--warmup 5": "--warmup-steps 5",
    "--logging_steps 5": "--log-every 5",
    "--steps-per-report 5": "--log-every 5",
    "--steps-per-eval 50": "--eval-every 50",
    "--eval_steps 50": "--eval-every 50",
    "--save_steps 50": "--save-every 50",
    "--lora_r 8": "--method lora --lora-rank 8",
    "--num-layers 8": "--method lora --lora-layers 8",
    "--lora_target_modules attention": "--method lora --lora-modules attention",
    "--fine-tune-type lora": "--method lora",
    "--lora": "--method lora",
    "--use_peft": "--method lora",
    "--bf16 True": "--dtype bfloat16",
    "--load_best_model_at_end": "--keep best",
    "--early-stopping-patience 3": "--patience 3",
    "--train --data d": "--data d",
    "--mask-prompt": "",
    "--optimizer adam": "--optimizer adamw",
    "--optim paged_adamw_32bit": "--optimizer adamw",
    "--optim lion_8bit": "--optimizer lion",
    "--optim adamw_torch_fused": "--optimizer adamw",
    "--optim schedule_free_adamw": "--optimizer schedule_free_adamw",  # another method: no choice
    "--bf16 1": "--dtype bfloat16",
    "--dtype bf16": "--dtype bfloat16",
    "--torch_dtype auto": "",
    "--max_steps -1 --num_train_epochs 3.0": "--epochs 3",
    "--max_steps 60 --num_train_epochs 3": "--steps 60",
    "--num-layers -1": "--method lora",
    "--lora_target_modules q_proj v_proj": "--method lora --lora-modules q_proj,v_proj",
    "--lora_target_modules all-linear": "--method lora --lora-modules all",
    "--lora_r 32 --lora_alpha 16": "--method lora --lora-scale 0.5 --lora-rank 32",
    "--lora-rank 8 --lora-alpha 16": "--lora-rank 8 --method lora --lora-scale 2.0",
    "--r 16 --lora_alpha 16": "--method lora --lora-scale 1.0 --lora-rank 16",
    "--loss_type sigmoid --label_smoothing 0.0": "",
    "--lr_scheduler_type cosine": "",
    "--train-mode dpo --train-type lora": "--method lora",
    "--load_in_4bit False --fp16 false": "",
    "--use_gradient_checkpointing unsloth --random_state 7": "--checkpoint-layers --seed 7",
    "--no_remove_unused_columns --lora_dropout 0": "",
    "--report_to wandb": "--report-to wandb",
    "-c run.toml": "run.toml",
    "--config run.yaml --beta 0.2": "run.yaml --beta 0.2",
    "--config=run.toml": "run.toml",
}
REFUSED = {
    "--lora-alpha 32": "--lora-alpha: give the factor itself, alpha / r, as --lora-scale",
    "--lora_dropout 0.1": "adapters train without dropout",
    "--loss_type ipo": "there is one loss, the sigmoid loss of DPO",
    "--lr_scheduler_type linear": "a cosine to --min-learning-rate",
    "--warmup_ratio 0.03": "give --warmup-steps",
    "--load_in_4bit": "take a model in 4 bits",
    "--load-in-4bits": "take a model in 4 bits",
    "--train-mode orpo": "DPO is the only method",
    "--dataset_train_split train_prefs": "first mlx_dpo data import NAME --files",
    "--deepspeed z.json": "one machine trains",
    "--fuse": "mlx_dpo export ADAPTER OUT --fuse",
    "--lora_dropout 0.05 --lora_alpha 32": "leave it out; --lora-alpha: give the factor",
    "--resume-adapter-file a.safetensors": "give the adapter's folder as --adapter",
    "--reference-model-path m": "the model that training starts from",
}
COMMANDS = {
    "chat --model m": "mlx_lm.chat --model FOLDER talks to a model",
    "label c.jsonl": "mlx_dpo data label",
    "fuse m": "mlx_dpo export ADAPTER OUT --fuse",
    "lora --model m": "mlx_dpo train --method lora",
    "--model m": "a command comes first: mlx_dpo train --model ...",
    "orpo --model m": "DPO is the only method",
    "merge-lora a.yaml": "mlx_dpo export ADAPTER OUT --fuse",
    "convert --hf-path a --mlx-path b": "mlx_dpo convert SRC DST",
    "convert a b -q": "mlx_dpo export MODEL OUT --quantize 4",
    "export m o -q": "--quantize 4 packs",
}
# What is left unused, and what the line about it says.
UNUSED = {
    "--wandb x --run_name y": "--wandb: give --report-to",
    "--push_to_hub --hub_model_id a/b": "--push-to-hub, --hub-model-id: mlx_dpo push",
    "--save_total_limit 1 --val-batches -1": "--save-total-limit, --val-batches",
    "--trust-remote-code": "code from a model folder is never run",
    "--warmup_ratio 0.1": "the warm-up is a tenth of all steps",
    "--max_prompt_length 512": "--max-length is that of prompt and answer together",
    "--eval_strategy steps": "--eval-every and --save-every count steps",
}


@pytest.mark.parametrize("typed", SAME)
def test_a_habit_is_the_option_it_means(typed: str) -> None:
    words = translated(["train", *typed.split()], cli)
    assert " ".join(words).replace("=", " ").split() == ["train", *SAME[typed].split()]


@pytest.mark.parametrize("typed", UNUSED)
def test_a_habit_that_changes_nothing_is_left_unused_with_a_line(typed: str) -> None:
    told: list[str] = []
    assert translated(["train", *typed.split()], cli, told.append) == ["train"]
    assert [line.partition(":")[0] for line in told] == ["warning"]
    assert UNUSED[typed] in told[0]


@pytest.mark.parametrize("typed", REFUSED)
def test_a_habit_without_a_counterpart_gets_a_hint(typed: str) -> None:
    with pytest.raises(UsageError) as refused:
        translated(["train", *typed.split()], cli)
    assert REFUSED[typed] in str(refused.value)


@pytest.mark.parametrize("typed", COMMANDS)
def test_a_command_of_another_program_gets_a_hint(typed: str) -> None:
    with pytest.raises(UsageError) as refused:
        translated(typed.split(), cli)
    assert COMMANDS[typed] in str(refused.value)


@pytest.mark.parametrize(
    "typed",
    [
        "train --beta 0.2 --out x",
        "data label c.jsonl --out --lr",  # a value that looks like a habit is click's business
        "generate --model m --prompt --",
        "train --unknown 3",
        "--version",
        "data",
        "",
    ],
)
def test_what_is_ours_or_nobodys_stays_as_it_was_typed(typed: str) -> None:
    assert translated(typed.split(), cli) == typed.split()


def test_other_commands_take_hyphens_and_underscores_and_mlx_lms_adapter() -> None:
    typed = ["generate", "--model", "m", "--adapter-path", "a", "--max_tokens", "5"]
    ours = ["generate", "--model", "m", "--adapter", "a", "--max-tokens", "5"]
    assert translated(typed, cli) == ours
    assert translated(["data", "sample", "--max_tokens", "5"], cli)[-2:] == ["--max-tokens", "5"]


def written(folder: Path, name: str, text: str) -> Path:
    file = folder / name
    file.write_text(text)
    return file


def test_a_yaml_file_is_a_config_file(tmp_path: Path) -> None:
    text = "model: m\ndata: d\nlearning-rate: 1e-5\nnum_train_epochs: 2\nbf16: true\n"
    settings = read_settings(written(tmp_path, "run.yaml", f"{text}date: 2026-01-31\n"))
    assert settings == {
        **{"model": "m", "data": "d", "learning_rate": 1e-5, "epochs": 2},
        **{"dtype": "bfloat16", "date": "2026-01-31"},
    }


# Config files as their programs' own examples have them, and what they are here.
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
}


@pytest.mark.parametrize("program", RECIPES)
def test_a_recipe_of_another_program_is_a_config_file(tmp_path: Path, program: str) -> None:
    text, settings = RECIPES[program]
    assert read_settings(written(tmp_path, "recipe.yaml", text)) == settings


@pytest.mark.parametrize("value", ["1", "true", "auto", "'True'"])
def test_a_switch_of_another_program_may_be_a_number_or_text(tmp_path: Path, value: str) -> None:
    assert read_settings(written(tmp_path, "a.yaml", f"bf16: {value}")) == {"dtype": "bfloat16"}
    assert read_settings(written(tmp_path, "a.yaml", "bf16: 0")) == {}


def test_keys_of_toml_may_have_hyphens(tmp_path: Path) -> None:
    assert read_settings(written(tmp_path, "a.toml", "learning-rate = 1e-4")) == {
        "learning_rate": 1e-4
    }


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.yaml", "beta: [", "a.yaml: not YAML: "),
        ("a.yaml", "- beta", "a.yaml: holds no settings"),
        ("a.yaml", "lr_schedule: {name: cosine_decay}", "a warm-up and a cosine"),
        ("a.yaml", "datasets: [a, b]", "a, b: one file of pairs is taken"),
        ("a.yaml", "lr: 1e-5\nlora_dropout: 0.1\nload_in_4bit: true", "leave it out; load_in_4bit"),
        ("a.yaml", "!!python/object/apply:os.system ['true']", "a.yaml: not YAML: "),
        ("a.yaml", "beta: high", "a.yaml: beta: expected float, found str 'high'"),
        ("a.yaml", "optim: grokadamw", "must be adamw or lion or adafactor, found 'grokadamw'"),
        ("a.yaml", "optimizer: adamax", "must be adamw or lion or adafactor, found 'adamax'"),
        ("a.yaml", "optim: {name: adam}", "optimizer: expected str, found dict"),
        ("a.yaml", "dtype: {bf16: 1}", "dtype: expected str, found dict"),
        ("a.yaml", "bf16: maybe", "a.yaml: bf16: expected true or false, found 'maybe'"),
        ("a.toml", "lora = 2", "a.toml: lora: expected true or false, found 2"),
        ("a.yaml", "beta: 0.1\ndate: 2026-02-30", "valid timestamp: '2026-02-30' in \"<unicode"),
        ("a.yaml", "beta: 0.1\ndate: 2026-02-30", ", line 2, column 7"),
        ("a.yaml", f"seed: {'9' * 5000}", "a.yaml: not YAML: not a valid int: '999"),
        ("a.yaml", "beta: !!float x", "a.yaml: not YAML: not a valid float: 'x'"),
        ("a.yaml", 'model: "\\U99999999"', "not YAML: a number or character is out of range"),
        ("a.yaml", f"x: {'[' * 1000}", "a.yaml: not YAML: nested too deeply"),
        ("a.yaml", "data: &d [*d]", "a.yaml: not YAML: nested too deeply"),
        ("a.yaml", f"seed: 0x{'f' * 5000}", "a.yaml: seed: a whole number is beyond 64 bits"),
        ("a.toml", f"seed = 0x{'f' * 5000}", "a.toml: seed: a whole number is beyond 64 bits"),
        ("a.toml", f"seed = {'9' * 5000}", "a.toml: not TOML: a number or character is out of"),
        ("a.toml", f"beta = 1{'0' * 400}", "a.toml: beta: a whole number is beyond 64 bits"),
        ("a.toml", "date = 2026-02-30", "a.toml: not TOML: Invalid date or datetime (at line 1"),
        ("a.toml", f"x = {'[' * 3000}", "a.toml: not TOML: nested too deeply"),
        ("a.toml", f"epochs = '{'9' * 400}.0'", "a.toml: epochs: expected int, found str"),
        ("a.toml", "lr = 1e-5\nlearning_rate = 1e-5", "learning_rate is given twice"),
        ("a.toml", "lora_alpha = 32", "a.toml: lora_alpha: give the factor itself"),
    ],
)
def test_a_mistake_in_a_file_of_habits_is_named(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    with pytest.raises(UsageError) as refused:
        read_settings(written(tmp_path, name, text))
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_path_with_a_character_that_toml_wants_escaped_is_read_back(tmp_path: Path) -> None:
    config: Any = RunConfig(model="a\x7fb", data="d")
    settings = read_settings(written(tmp_path, "a.toml", config.to_toml()))
    assert settings["model"] == "a\x7fb"


@pytest.mark.parametrize(
    ("words", "found"), [("mlx_dpo tr", "train"), ("mlx_dpo train --learn", "--learning-rate")]
)
def test_a_shell_completes_commands_and_options(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: str, found: str
) -> None:
    monkeypatch.setenv("_MLX_DPO_COMPLETE", "zsh_complete")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 0
    assert found in capsys.readouterr().out.split("\n")

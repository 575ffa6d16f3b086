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
    "--lora-rank 8 --lora-alpha 16": "--method lora --lora-scale 2.0 --lora-rank 8",
    "--lora_rank=8 --lora_alpha=16": "--method lora --lora-scale 2.0 --lora-rank 8",
    "--lora-alpha 16 --lora-rank=8": "--method lora --lora-scale 2.0 --lora-rank 8",
    "--iters 100 --grad-accumulation-steps 4": "--steps 25 --grad-accumulation 4",
    "--grad_accumulation=4 --iters=100": "--grad-accumulation 4 --steps 25",
    "--iters 100 --grad-accumulation-steps 1": "--steps 100 --grad-accumulation 1",
    "--max_steps 100 --gradient_accumulation_steps 4": "--steps 100 --grad-accumulation 4",
    "--eval_steps 9 --save-every 9 --grad-accum 4": "--eval-every 9 --save-every 9 "
    "--grad-accumulation 4",
    "--save-every 8 --steps-per-eval 16 --steps-per-report 4 --grad-accumulation 4": "--save-every "
    "2 --eval-every 4 --log-every 1 --grad-accumulation 4",
    "--iters 8 --steps-per-report 10 --grad-accum 4": "--steps 2 --log-every 3 --grad-accumulation "
    "4",
    "--stage dpo --do_train true --finetuning_type lora --lora_target q_proj,v_proj": "--method "
    "lora --lora-modules q_proj,v_proj",
    "--finetuning-type full --pref_beta=0.2 --pref_loss sigmoid": "--method full --beta 0.2",
    "--lora_target all --val_size 0.1": "--lora-modules all --eval-fraction 0.1",
    "--adapter qlora --rl=dpo --num_epochs 3 --max_steps 9": "--method lora --steps 9",
    "--adam_beta1 0.9 --adam_epsilon 1e-08 --f_divergence_type reverse_kl": "",
    "--full_finetuning true --loftq_config None --max_samples 0": "--method full",
    "--load_best_model_at_end --keep=last": "--keep last",
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
    "--stage sft": "--stage: DPO is the only method",
    "--pref_loss orpo": "--pref-loss: there is one loss",
    "--val_size 500": "--val-size 500: is a number of pairs: give their share of all, below 1",
    "--quantization_bit=4": "take a model in 4 bits",
    "--max_samples 1000": "every pair of --data is used: give a file of fewer",
    "--rpo_alpha 1": "without another term",
    "--adam_beta2 0.95": "--adam-beta2: the optimizer's constants",
    "--stage dpo --dataset dpo_en_demo": "--dataset dpo_en_demo: LLaMA-Factory looks such a name",
    "--iters 102 --grad-accumulation 4": "--iters 102: mlx-lm counts batches, of which 4 make a "
    "step here: give a multiple of 4, or steps as --steps",
    "--lora-rank=16 --lora_r 8": "--lora-rank is given twice",
    "--seed 1 --random_state 2": "--seed is given twice",
    "--reference-model-path m": "the model that training starts from",
}
COMMANDS = {
    "chat --model m": "mlx_lm.chat --model FOLDER talks to a model",
    "label c.jsonl": "mlx_dpo data label",
    "fuse m": "mlx_dpo export ADAPTER OUT --fuse",
    "lora --model m": "mlx_dpo train --method lora",
    "--model m": "a command comes first: mlx_dpo train --model ...",
    "--stage=dpo": "a command comes first: mlx_dpo train --stage=dpo ...",
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
    "--template llama3 --plot_loss": "--template: the template is the model's own; --plot-loss",
    "--dataset_dir data --overwrite_cache true": "--data names the file itself, with its folder",
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
    assert [line[:23] for line in told] == ["warning: not used here:"]
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

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
    "--learning_rate=1e-5": "--learning-rate=1e-5",
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
    "--lora_r 8": "--lora-rank 8",
    "--num-layers 8": "--lora-layers 8",
    "--lora_target_modules attention": "--lora-modules attention",
    "--fine-tune-type lora": "--method lora",
    "--lora": "--method lora",
    "--use_peft": "--method lora",
    "--bf16 True": "--dtype bfloat16",
    "--load_best_model_at_end": "--keep best",
    "--early-stopping-patience 3": "--patience 3",
    "--report_to wandb": "--report-to wandb",
    "-c run.toml": "run.toml",
    "--config run.yaml --beta 0.2": "run.yaml --beta 0.2",
    "--config=run.toml": "run.toml",
}
REFUSED = {
    "--lora-alpha 32": "--lora-alpha: give the factor itself, alpha / r, as --lora-scale",
    "--lora_dropout 0.1": "adapters train without dropout",
    "--loss_type ipo": "there is one loss, the sigmoid loss of DPO",
    "--lr_scheduler_type cosine": "a cosine to --min-learning-rate",
    "--warmup_ratio 0.1": "give --warmup-steps",
    "--load_in_4bit": "take a model in 4 bits",
    "--wandb": "give --report-to; a project's name is read from WANDB_PROJECT",
    "--trust-remote-code": "code from a model folder is never run",
    "--mask-prompt": "only answers are ever scored",
    "--resume-adapter-file a.safetensors": "give the adapter's folder as --adapter",
    "--train": "mlx_dpo train does that",
    "--reference-model-path m": "the model that training starts from",
}
COMMANDS = {
    "chat --model m": "mlx_lm.chat --model FOLDER talks to a model",
    "label c.jsonl": "mlx_dpo data label",
    "fuse m": "mlx_dpo export ADAPTER OUT --fuse",
    "lora --model m": "mlx_dpo train --method lora",
    "--model m": "a command comes first: mlx_dpo train --model ...",
}


@pytest.mark.parametrize("typed", SAME)
def test_a_habit_is_the_option_it_means(typed: str) -> None:
    assert translated(["train", *typed.split()], cli) == ["train", *SAME[typed].split()]


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


def test_keys_of_toml_may_have_hyphens(tmp_path: Path) -> None:
    assert read_settings(written(tmp_path, "a.toml", "learning-rate = 1e-4")) == {
        "learning_rate": 1e-4
    }


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.yaml", "beta: [", "a.yaml: not YAML: "),
        ("a.yaml", "- beta", "a.yaml: holds no settings"),
        ("a.yaml", "lora_parameters: {rank: 8}", "give lora_rank, lora_scale and lora_modules"),
        ("a.yaml", "!!python/object/apply:os.system ['true']", "a.yaml: not YAML: "),
        ("a.yaml", "beta: high", "a.yaml: beta: expected float, found str 'high'"),
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

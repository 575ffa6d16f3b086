"""What a person types and what comes back: text, one-line errors, exit codes."""

import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from html import unescape
from pathlib import Path

import click
import pytest

import mlx_dpo
from mlx_dpo.cli import cli, main
from mlx_dpo.errors import DiskError
from tests.runs.conftest import ORACLE, ROWS

MODEL = str(ORACLE)
TRAIN = ["train", "--model", MODEL, "--data", "pairs.json"]


@pytest.fixture(autouse=True)
def files(workplace: Path) -> None:
    (workplace / "empty.json").write_text("")
    (workplace / "typo.toml").write_text("betta = 0.1\n")


def exit_code(*args: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(args))
    assert isinstance(ended.value.code, int)
    return ended.value.code


def commands(group: click.Command, name: str = "") -> Iterator[tuple[str, click.Command]]:
    yield name, group
    if isinstance(group, click.Group):
        for child, command in group.commands.items():
            yield from commands(command, f"{name} {child}")


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["train", "--beta", "much"], 2, "Invalid value for '--beta': 'much' is not a valid float"),
        ([*TRAIN, "--beta", "-1"], 2, "--beta: must be above 0, found -1.0"),
        ([*TRAIN, "--lora-dropout", "0.1"], 2, "--lora-dropout: adapters train without dropout"),
        ([*TRAIN, "--betta", "1"], 2, "No such option '--betta'"),
        ([*TRAIN, "--epochs", "1", "--steps", "2"], 2, "give one"),
        (["train", "--model", "absent", "--data", "pairs.json"], 2, "absent: no such model folder"),
        (["train", "--model", MODEL, "--data", "absent.json"], 2, "absent.json: no such file"),
        (["train", "--model", MODEL, "--data", "empty.json"], 3, "empty.json: the file is empty"),
        (["train", "--model", MODEL], 2, "no data given: pass --data"),
        (["train"], 2, "no model given: pass --model and --data"),
        (["train", "typo.toml"], 2, "typo.toml: unknown key 'betta'; did you mean 'beta'"),
        ([*TRAIN, "--beta", "inf"], 2, "--beta: must be a finite number"),
        (["train", "--model", "~nosuchuser/x", "--data", "pairs.json"], 2, "no such user"),
        (["train", "--model", MODEL, "--data", "pairs.json/x"], 2, "pairs.json/x: not readable"),
        ([*TRAIN, "--run-dir", "pairs.json"], 2, "pairs.json: is a file"),
        (["train", "absent.toml"], 2, "absent.toml: not readable: No such file or directory"),
        ([*TRAIN, "--resume"], 2, "--resume needs --run-dir"),
        (["data", "preview", "pairs.json", "--model", MODEL, "--row", "99"], 3, "no row 99"),
        (["data", "preview", "absent.json", "--model", MODEL], 2, "no such file"),
        (["generate", "--model", "absent", "--prompt", "x"], 2, "no such model folder"),
        (["nonsense"], 2, "No such command 'nonsense'"),
    ],
)
def test_a_mistake_is_one_line_with_its_exit_code(
    args: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(*args) == code
    shown = capsys.readouterr()
    assert message in shown.err
    assert shown.err.count("\n") == 1
    assert shown.out == ""


def test_every_command_has_help_that_reads_like_documentation(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, command in commands(cli):
        assert exit_code(*name.split(), "--help") == 0
        assert "Usage: mlx_dpo" + name in capsys.readouterr().out
        for parameter in command.params:
            if isinstance(parameter, click.Option) and not parameter.hidden:
                assert parameter.help, f"{name} {parameter.name}"


def test_the_surface_of_train_is_a_decision() -> None:
    """A new option is meant: this list and docs change with it."""
    options = {
        name
        for p in cli.commands["train"].params
        if not getattr(p, "hidden", False)
        for name in p.opts
    }
    assert options == {
        *("config", "--model", "--data", "--eval-data", "--drop-bad"),
        *("--eval-fraction", "--out", "--overwrite"),
        *("--run-dir", "--beta", "--learning-rate", "--min-learning-rate", "--warmup-steps"),
        *("--weight-decay", "--grad-clip", "--batch-size", "--grad-accumulation", "--epochs"),
        *(
            "--steps",
            "--max-length",
            "--memory-budget",
            "--seed",
            "--date",
            "--eval-every",
            "--save-every",
            "--log-every",
        ),
        *("--keep", "--best-by", "--patience", "--report-to"),
        *("--sample-every", "--optimizer", "--dtype", "--checkpoint-layers"),
        *("--method", "--lora-rank", "--lora-scale", "--lora-layers", "--lora-modules"),
        *("--adapter", "--adapter-reference", "--adapter-format"),
        *("--ranks", "--hosts", "--peer-timeout"),
        *(
            "--skip-nonfinite",
            "--allow-sleep",
            "--reference",
            "--plain",
            "--resume",
            "--dry-run",
            "--supervise",
            "--verbose",
            "-v",
            "--quiet",
            "-q",
            "--json",
        ),
    }


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("--version") == 0
    assert mlx_dpo.__version__ in capsys.readouterr().out


def test_the_command_line_starts_without_the_heavy_libraries() -> None:
    code = (
        "import sys, mlx_dpo.cli;"
        "print(sorted({'mlx_lm', 'transformers', 'mlx.nn', 'numpy', 'rich'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_training_shows_a_self_check_progress_a_result_and_what_to_type_next(
    capsys: pytest.CaptureFixture[str],
) -> None:
    args = [*TRAIN, "--steps", "4", "--learning-rate", "1e-3", "--out", "out", "--log-every", "2"]
    args.append("--verbose")
    assert exit_code(*args) == 0
    shown = capsys.readouterr()
    assert "loss 0.6931 = log 2; gradient norm" in shown.err
    known = "forward pass: llama, every setting of config.json verified against transformers"
    assert known in shown.err
    assert "way back" not in shown.err  # it is open
    assert "<|end|> closes 28 of 28 answers; 14 pairs read, 0 dropped, 0 cut" in shown.err
    assert "chosen longer in" in shown.err
    for part in ("step 2/4", "loss", "margin", "accuracy", "pairs/s", "ETA", "peak"):
        assert part in shown.err
    for part in ("right", "likelier", "Tokens computed", "tone", "format", "SFT", "DPO"):
        assert part in shown.out
    assert "mlx_dpo generate --model out" in shown.out


def test_kinds_that_no_training_pair_is_of_stand_at_the_foot_of_the_table(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("train.json").write_text(json.dumps(ROWS[:4]))
    other = [{**row, "kind": "sums"} for row in ROWS[4:7]]
    Path("valid.json").write_text(json.dumps([*other, *ROWS[8:]]))
    data = ["--data", "train.json", "--eval-data", "valid.json"]
    assert exit_code("train", "--model", MODEL, *data, "--steps", "2", "--out", "out") == 0
    table = capsys.readouterr().out.split("Held-out pairs")[1].split("\n\n")[0].splitlines()[2:]
    rows = [re.split(r" {2,}", line)[:2] for line in table]
    assert rows == [["all", "6"], ["format", "3"], ["tone", "3"], ["not trained on", "3"]]


def test_an_unusual_beta_lopsided_lengths_and_a_closed_way_back_are_told_before_training(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = "mlx-lm's model leaves out vision_tower.patch.weight"
    monkeypatch.setattr("mlx_dpo.cli.run_screen.closed_way_back", lambda folder: reason)
    monkeypatch.setattr("mlx_dpo.runs.job.tuned_before", lambda *names: "its card says so")
    rows = [dict(row, user=f"{row['user']} {n}", rejected="No.") for n in range(3) for row in ROWS]
    Path("long.json").write_text(json.dumps(rows))
    args = ["train", "--model", MODEL, "--data", "long.json", "--beta", "0.9", "--dry-run"]
    assert exit_code(*args) == 0
    shown = capsys.readouterr().err
    assert "warning: beta 0.9 lies outside the usual 0.01-0.5" in shown
    assert (
        "history     this model seems to have had preference training: its card says so. It is the"
        in shown
    )
    assert "rate        1e-05, because 54 steps are few; with thousands it would be 1e-06" in shown
    assert "lengths     stop: chosen longer in 100% of the pairs" in shown
    assert "warning: length bias: the model may learn length" in shown
    assert f"way back    closed: {reason}, so convert can't make a PyTorch model of it" in shown


def test_a_run_that_ends_within_its_warm_up_is_warned_about(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert exit_code(*TRAIN, "--steps", "10", "--warmup-steps", "10", "--dry-run") == 0
    shown = capsys.readouterr().err
    assert "warning: all 10 steps lie within the warm-up of 10: lower --warmup-steps" in shown
    assert exit_code(*TRAIN, "--steps", "2", "--dry-run") == 0  # of the default, a tenth of them
    assert "warm-up" not in capsys.readouterr().err


def test_few_pairs_are_warned_about(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(*TRAIN, "--steps", "2", "--dry-run") == 0
    shown = capsys.readouterr().err
    assert "pairs to train on: fewer than 50 rarely change" in shown
    assert "forward pass" not in shown  # all of the model's settings are known


def test_a_setting_of_a_model_that_nobody_has_compared_is_said_before_training(
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(ORACLE, "model")
    config = json.loads(Path("model/config.json").read_text())
    Path("model/config.json").write_text(json.dumps(config | {"attention_sinks": 4}))
    assert exit_code("train", "--model", "model", *TRAIN[3:], "--steps", "2", "--dry-run") == 0
    assert "but NOT for attention_sinks in config.json" in capsys.readouterr().err


def test_reference_log_probs_of_an_earlier_run_are_said_to_be_found(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for expected in ("log-probs of 14 pairs computed", "found from an earlier run"):
        assert exit_code(*TRAIN, "--steps", "2", "--overwrite", "-v") == 0
        assert expected in capsys.readouterr().err


def test_resuming_a_finished_run_says_done(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(*TRAIN, "--steps", "2", "--run-dir", "run") == 0
    capsys.readouterr()
    assert exit_code("train", "--resume", "--run-dir", "run") == 0
    assert "run: done" in capsys.readouterr().out
    Path("run/report.html").unlink()  # as where the run was killed before it wrote the page
    Path("run/.lock.json").write_text("{}")
    assert exit_code("train", "--resume", "--run-dir", "run") == 0
    assert Path("run/report.html").is_file()
    assert not Path("run/.lock.json").exists()
    assert exit_code(*TRAIN, "--steps", "2", "--run-dir", "run", "--resume") == 0, "it was asked so"
    assert exit_code("train", "--resume", "--run-dir", "run", "--steps", "500") == 2
    assert "the run had finished, with other settings" in capsys.readouterr().err


def test_a_finished_run_leaves_its_report_and_says_where(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert exit_code(*TRAIN, "--steps", "2", "--run-dir", "run") == 0
    assert "The report is run/report.html." in capsys.readouterr().out
    page = Path("run/report.html").read_text()
    assert "<h1>run</h1>" in page
    # The command on it runs as it stands: it takes folders of its own.
    (again,) = re.findall("<pre>(.*)</pre>", page)
    assert exit_code(*shlex.split(unescape(again))[1:]) == 0
    assert "The report is runs/model-1/report.html." in capsys.readouterr().out


def test_a_report_that_fails_is_a_warning_and_the_run_is_kept(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, text: str) -> None:
        raise DiskError(f"{path}: No space left on device")

    monkeypatch.setattr("mlx_dpo.insight.report.page.write_file", full)
    assert exit_code(*TRAIN, "--steps", "2", "--run-dir", "run", "--out", "out") == 0
    shown = capsys.readouterr().err
    assert "warning: no report: run/report.html: No space left on device\n" in shown
    assert Path("run/result.json").is_file()
    assert Path("out/model.safetensors").is_file()


def test_a_run_that_ended_before_it_began_to_train_has_no_report_and_goes_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def end() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("mlx_dpo.runs.run.environment", end)
        assert exit_code(*TRAIN, "--steps", "2", "--run-dir", "run") == 75
    assert Path("run/config.toml").is_file()
    capsys.readouterr()
    assert exit_code("report", "run") == 2
    assert capsys.readouterr().err == (
        "mlx_dpo: run: ended before it began to train (no environment.json); "
        "mlx_dpo train --resume --run-dir run goes on\n"
    )
    assert not Path("run/report.html").exists()
    assert exit_code("train", "--resume", "--run-dir", "run") == 0
    assert Path("run/report.html").is_file()


def test_a_run_of_so_many_steps_is_resumed_by_its_folder_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlx_dpo.cli.run_screen import TerminalScreen

    def stop(self: TerminalScreen, step: int, *rest: object) -> None:
        if step == 1:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(TerminalScreen, "stepped", stop)
        assert exit_code(*TRAIN, "--steps", "4", "--run-dir", "run") == 75
    assert "train --resume --run-dir run" in capsys.readouterr().err
    assert exit_code("train", "pairs.toml", "--resume", "--run-dir", "run") == 2
    assert "leave pairs.toml out" in capsys.readouterr().err
    assert exit_code("train", "--resume", "--dry-run", "--run-dir", "run", "--beta", "0.3") == 2
    assert "another beta" in capsys.readouterr().err
    assert exit_code("train", "--resume", "--run-dir", "run") == 0
    assert "going on after step 2" in capsys.readouterr().err


def test_resuming_where_there_is_no_run_starts_one_or_says_so(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert exit_code("train", "--resume", "--run-dir", "typo") == 2
    assert "typo: no run there to continue" in capsys.readouterr().err
    assert exit_code(*TRAIN, "--steps", "2", "--resume", "--run-dir", "new") == 0
    assert "no checkpoint yet: starting from step 0" in capsys.readouterr().err


def test_kinds_prompts_and_answers_are_text_and_not_markup(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for row in (rows := json.loads(json.dumps(ROWS))):
        row["kind"] = "[/x]\nx" if row["kind"] == "tone" else "[red]a:smile:"
        row["user"] += " :smile: [bold]"
    Path("pairs.json").write_text(json.dumps(rows))
    assert exit_code(*TRAIN, "--steps", "2") == 0
    shown = capsys.readouterr().out
    assert "[/x] x" in shown
    assert "[red]a:smile:" in shown
    assert ":smile: [bold]" in shown


def test_preview_shows_which_tokens_are_scored(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("data", "preview", "pairs.json", "--model", MODEL, "--row", "2") == 0
    lines = capsys.readouterr().out.splitlines()
    rejected = lines.index(next(line for line in lines if line.startswith("rejected: ")))
    closing = [line for line in lines if line.endswith("'<|end|>'")]
    assert [line.split()[0] for line in closing] == ["0", "1", "1"]  # end of the user turn, answers
    assert all(line.startswith("  1") for line in lines[rejected + 1 : -2])


def test_generate_answers_and_says_when_it_was_cut_off(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("generate", "--model", MODEL, "--prompt", "Hello", "--max-tokens", "3") == 0
    assert "cut off after 3 tokens" in capsys.readouterr().err


def test_an_interrupt_before_the_first_step_ends_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mlx_dpo.runs.run.train", interrupted)
    assert exit_code(*TRAIN) == 75
    assert capsys.readouterr().err.strip() == "mlx_dpo: interrupted"


def test_generate_reads_its_prompt_from_stdin(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = ["generate", "--model", MODEL, "--max-tokens", "3", "--prompt"]
    assert exit_code(*ask, "Who is\nthere?") == 0
    typed = capsys.readouterr()
    monkeypatch.setattr("sys.stdin", io.StringIO("Who is\nthere?\n"))
    assert exit_code(*ask, "-") == 0
    assert capsys.readouterr() == typed
    assert exit_code(*ask, "-") == 2  # there is no more
    assert "nothing came on stdin to answer" in capsys.readouterr().err

"""Adapters as a person types them: every command that takes a model takes one."""

import json
import shutil
from pathlib import Path

import mlx.core as mx
import pytest

from mlx_dpo.convert.adapters import write_mlx
from mlx_dpo.convert.sources import load_model
from mlx_dpo.models.adapters import Part
from tests.cli.conftest import run
from tests.insight.conftest import (
    policy_folder,
)
from tests.runs.conftest import ORACLE

__all__ = ["policy_folder"]  # a fixture, used by its name

MODEL = str(ORACLE)
EVAL = ["--data", "pairs.json", "--num-prompts", "1", "--max-tokens", "4"]
LORA = [
    *("train", "--data", "pairs.json", "--steps", "4", "--batch-size", "2", "--warmup-steps", "0"),
    *("--out", "out", "--run-dir", "run"),
]


@pytest.fixture(autouse=True)
def files(workplace: Path) -> None:
    (workplace / "prompts.txt").write_text("Hello?\nTell me about the otter.\n")


@pytest.fixture
def bare(adapter_folder: Path, tmp_path: Path) -> str:
    """The adapter without its record, as others make them."""
    shutil.copytree(
        adapter_folder,
        tmp_path / "bare",
        ignore=shutil.ignore_patterns("d*.json", "README.md"),
    )
    return str(tmp_path / "bare")


def test_generate_answers_with_an_adapter_however_it_is_named(
    adapter_folder: Path, bare: str, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ("generate", "--prompt", "Tell me about the otter.", "--max-tokens", "12")
    answers = [
        run(capsys, *args, *model)
        for model in (
            ["--model", str(adapter_folder)],
            ["--model", MODEL, "--adapter", str(adapter_folder)],
            ["--model", MODEL, "--adapter", bare],
            ["--model", MODEL, "--adapter", str(adapter_folder / "peft")],
        )
    ]
    assert answers == answers[:1] * 4
    assert answers[0][0] == 0
    assert answers[0] != run(capsys, *args, "--model", MODEL)


@pytest.mark.parametrize(
    "command",
    [
        ["generate", "--prompt", "x"],
        ["eval", "--data", "pairs.json"],
        ["score", "--data", "pairs.json"],
        ["data", "sample", "--prompts", "prompts.txt"],
    ],
    ids=lambda command: command[0],
)
def test_an_adapter_that_can_not_be_used_is_one_line(
    command: list[str],
    adapter_folder: Path,
    policy_folder: Path,
    bare: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for args, message in (
        (["--model", str(policy_folder), "--adapter", str(adapter_folder)], "with other weights"),
        (["--model", str(adapter_folder), "--adapter", bare], "is an adapter itself"),
        (["--model", bare], "names its model: pass the model as --model"),
        (["--model", MODEL, "--adapter", MODEL], "no adapter"),
        (["--model", MODEL, "--adapter", "absent"], "absent: no such"),
    ):
        code, out, err = run(capsys, *command, *args)
        assert (code, out) == (2, "")
        assert message in err
        assert err.count("\n") == 1


def test_pairs_are_shown_to_an_adapter_as_to_its_base(
    adapter_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in (["data", "preview", "pairs.json"], ["data", "check", "pairs.json"]):
        (_, one, _), (code, other, _) = (
            run(capsys, *command, "--model", model) for model in (MODEL, str(adapter_folder))
        )
        assert code == 0
        assert one == other


def test_an_adapter_whose_base_is_gone_says_what_to_pass(
    adapter_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(adapter_folder, "moved")
    record = json.loads(Path("moved/dpo.json").read_text())
    record["trained_from"]["model"] = "./gone"
    Path("moved/dpo.json").write_text(json.dumps(record))
    Path("moved/digests.json").unlink()
    code, _, err = run(capsys, "generate", "--model", "moved", "--prompt", "x")
    assert code == 2
    assert "moved: is an adapter of ./gone, which can't be used here (./gone: no such" in err
    assert "pass the model as --model and this folder as --adapter" in err


def test_eval_of_an_adapter_is_beside_its_base_without_a_warning(
    adapter_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, "eval", "--model", str(adapter_folder), *EVAL)
    assert (code, err) == (0, "")
    assert f"reference  {MODEL}\n" in out
    assert "those its run held out" in out
    named = ["--model", str(adapter_folder), "--reference", MODEL]
    assert run(capsys, "eval", *named, *EVAL)[1] == out
    again = run(capsys, "eval", "--model", MODEL, "--adapter", str(adapter_folder), *EVAL)
    assert again[1].split("\n", 1)[1] == out.split("\n", 1)[1]


def test_eval_of_an_adapter_beside_another_model_warns(
    adapter_folder: Path, continued_adapter: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = ["eval", "--model", str(continued_adapter), *EVAL]
    code, out, err = run(capsys, *own)
    assert (code, err) == (0, "")
    assert f"reference  {MODEL} + {adapter_folder}\n" in out
    assert run(capsys, *own, "--reference", str(adapter_folder))[2] == ""
    for other in (MODEL, str(continued_adapter)):
        code, _, err = run(capsys, *own, "--reference", other)
        assert code == 0
        assert f"warning: {other} is not the model {continued_adapter} was trained from" in err


def test_eval_of_an_adapter_whose_start_is_gone_says_so(
    continued_adapter: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(continued_adapter, "moved")
    record = json.loads(Path("moved/dpo.json").read_text())
    record["settings"]["adapter"] = "gone"
    Path("moved/dpo.json").write_text(json.dumps(record))
    Path("moved/digests.json").unlink()
    for command in ("eval", "score"):
        code, out, err = run(capsys, command, "--model", "moved", "--data", "pairs.json")
        assert (code, out) == (2, "")
        assert "the adapter it started from, gone, which is not there any more" in err


def test_score_of_an_adapter_is_by_its_base(
    adapter_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["score", "--model", str(adapter_folder), "--data", "pairs.json"]
    code, out, err = run(capsys, *args)
    assert code == 0
    assert "held out of its run: 2 at beta 0.1" in err
    assert run(capsys, *args, "--reference", MODEL)[1] == out
    assert any(json.loads(line)["margin"] for line in out.splitlines())
    code, out, _ = run(capsys, *args, "--reference", str(adapter_folder))
    assert {json.loads(line)["margin"] for line in out.splitlines()} == {0.0}


def test_compare_takes_adapters_on_either_side(
    adapter_folder: Path, bare: str, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--prompts", "prompts.txt", "--max-tokens", "6", "--json"]
    (_, one, _), (_, other, _) = (
        run(capsys, "compare", MODEL, str(adapter_folder), *more),
        run(capsys, "compare", MODEL, MODEL, "--adapter", bare, *more),
    )
    one, other = json.loads(one), json.loads(other)
    assert one["prompts"] == other["prompts"]
    assert other["b"] == f"{MODEL} + {bare}"
    assert one["prompts"][0]["sampled"][0] != one["prompts"][0]["sampled"][1]


def test_sampled_answers_know_which_adapter_gave_them(
    adapter_folder: Path, continued_adapter: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = set()
    for number, more in enumerate(
        (
            ["--model", MODEL],
            ["--model", str(adapter_folder)],
            ["--model", str(continued_adapter)],
            ["--model", MODEL, "--adapter", str(continued_adapter)],
        )
    ):
        out = f"{number}.jsonl"
        args = ["data", "sample", *more, "--prompts", "prompts.txt", "--max-tokens", "4"]
        assert run(capsys, *args, "--out", out)[0] == 0
        rows = [json.loads(line) for line in Path(out).read_text().splitlines()]
        weights |= {(a["model"], a["weights"]) for row in rows for a in row["answers"]}
    assert len({digest for _, digest in weights}) == 3
    assert {name for name, _ in weights} == {"model", "adapter", "model+adapter"}


def test_an_adapter_judges_and_its_replies_are_its_own(
    adapter_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": "Hello?", "answers": ["Good day.", "No."]}]
    Path("candidates.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    judge = ["data", "judge", "candidates.jsonl", "--out", "won.jsonl"]
    keys = []
    for more in (
        ["--judge", MODEL],
        ["--judge", str(adapter_folder)],
        ["--judge", MODEL, "--adapter", str(adapter_folder)],
    ):
        code, _, err = run(capsys, *judge, *more)
        assert code == 0, err
        Path("won.jsonl").unlink()
        replies = Path("won.jsonl.replies.jsonl").read_text().splitlines()
        keys.append(len({json.loads(line)["key"] for line in replies}))
    assert keys == [1, 2, 2]  # one order each, which decides nothing; the last reply is found again
    code, _, err = run(capsys, *judge, "--judge", "rule:shorter", "--adapter", MODEL)
    assert code == 2
    assert "--adapter is for a model's folder or hub id" in err


def test_training_an_adapter_says_what_trains_and_how_to_serve_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, out, err = run(capsys, *LORA, "--model", MODEL, "--method", "lora", "--lora-rank", "4")
    assert code == 0
    (line,) = [line for line in err.splitlines() if line.startswith("model ")]
    assert "(0.4 M parameters, float32; LoRA: rank 4, scale 2, all linear layers, 27.1 K" in line
    assert "learning rate 0.0001" in err
    assert "self-check  passed: the loss starts at log 2" in err
    assert "The adapter is out. Next:\n" in out
    assert "generate --model out --prompt" in out
    assert f"mlx_lm.server --model {MODEL} --adapter-path out" in out
    assert "export out FOLDER --fuse" in out
    assert "bits" not in out
    assert "To add it to the weights of its base:\n" in out
    page = Path("run/report.html").read_text()
    assert "LoRA on all linear layers, rank 4, scale 2: 27.1 K parameters, 0." in page
    assert "--method lora" in page
    assert "--lora-rank 4" in page


def test_training_on_a_packed_model_says_its_weights_and_bits(
    packed_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, *LORA, "--model", str(packed_folder), "--lora-modules", "q_proj")
    assert code == 0, err
    (line,) = [line for line in err.splitlines() if line.startswith("model ")]
    assert (
        "(0.4 M parameters in 4 bits, bfloat16; quantised, so LoRA: rank 16, scale 2, q_proj"
        in line
    )
    assert "Beside its base it is exact." in out
    assert "Packed again in 4 bits (--quantize 4) it is not exact" in out
    assert "LoRA on q_proj, rank 16" in Path("run/report.html").read_text()
    code, out, err = run(capsys, "eval", "--model", "out", *EVAL)
    assert (code, err) == (0, "")
    assert f"reference  {packed_folder}" in out


def test_a_start_that_is_not_at_log_2_is_announced_and_not_claimed(
    adapter_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--model", MODEL, "--adapter", str(adapter_folder), "--adapter-reference", "base"]
    code, out, err = run(capsys, *LORA, *more)
    assert code == 0, err
    assert "does not start at log 2, and the self-check of the start is off" in err
    assert "starts at log 2" not in err
    assert f"reference cached, without {adapter_folder}" in err
    assert "do not start at log 2 and 0" in Path("run/report.html").read_text()
    code, out, err = run(capsys, "eval", "--model", "out", *EVAL)
    assert (code, err) == (0, "")
    assert f"reference  {MODEL}\n" in out


def test_a_sweep_of_adapters_measures_each_from_its_base(
    partly_packed_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = [
        *("sweep", "--model", str(partly_packed_folder), "--data", "pairs.json", "--steps", "2"),
        *("--run-dir", "s", "--num-prompts", "2", "--lora-rank", "2", "--beta", "0.1,1"),
        *("--warmup-steps", "0", "--max-length", "96"),
    ]
    code, out, err = run(capsys, *args)
    assert code == 0, err
    assert "quantised, so LoRA: rank 2" in err
    assert Path("s/beta-1/model/adapters.safetensors").is_file()
    assert "<tr><td>0.1</td>" in Path("s/report.html").read_text()
    code, again, err = run(capsys, *args)
    assert (code, again) == (0, out)
    assert err.count(": finished earlier") == 2


@pytest.mark.parametrize("command", ["train --dry-run", "plan", "profile --steps 1"])
def test_a_dora_adapter_is_not_trained_and_every_command_says_so(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its magnitudes would stay as they are, and the adapter would be another one."""
    model = load_model(ORACLE)
    path = "model.layers.0.self_attn.q_proj"
    size = dict(model.named_modules())[path].weight.shape
    part = Part(mx.ones((size[1], 2)), mx.ones((2, size[0])), 1.0, mx.ones(size[0]))
    (tmp_path / "dora").mkdir()
    write_mlx(tmp_path / "dora", {path: part}, model)
    words = [
        *command.split(),
        "--model",
        MODEL,
        "--data",
        "pairs.json",
        "--adapter",
        str(tmp_path / "dora"),
    ]
    code, _, err = run(capsys, *words)
    assert code == 2
    assert "DoRA adapters can be evaluated and fused, not trained" in err

"""Sampling: the same command gives the same bytes, whatever happens in between."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mlx_dpo.cli import cli
from mlx_dpo.errors import DataError, DiskError, LockedError
from mlx_dpo.workshop import sampling
from mlx_dpo.workshop.candidates import Origin, load_candidates, origins_of
from mlx_dpo.workshop.journal import LineFile
from mlx_dpo.workshop.sampling import read_prompts

ROOT = Path(__file__).parent.parent.parent
MODEL = ROOT / "checkpoints" / "tiny-sft"
QUESTIONS = [
    "What does a baker do?",
    "I am late.",
    "Say the word happy four times.",
    "What is 7 plus 5?",
    "Tell me about the sea and about all that lives in it.",
]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.txt"
    file.write_text("\n".join([*QUESTIONS, "", QUESTIONS[0]]))
    return file


def sample(prompts: Path, out: Path, *more: str) -> Result:
    args = ["data", "sample", "--model", str(MODEL), "--prompts", str(prompts), "--out", str(out)]
    args += ["--max-tokens", "12", "--batch-size", "6", "-n", "3", *more]
    return CliRunner().invoke(cli, args)


def test_each_prompt_is_answered_once_with_all_that_reproduces_it(
    tmp_path: Path, prompts: Path
) -> None:
    out = tmp_path / "out.jsonl"
    result = sample(prompts, out)
    assert result.exit_code == 0, result.output
    assert "(6 read, 5 different)" in result.stdout
    rows = load_candidates(out)
    assert [row.prompt[0].content for row in rows] == QUESTIONS
    for row in rows:
        texts = [answer.text for answer in row.answers]
        assert len(set(texts)) == len(texts), "equal answers are kept once"
        assert not any("<|end|>" in text for text in texts)
        assert all(answer.model == "tiny-sft" and answer.weights for answer in row.answers)
        assert {answer.seed for answer in row.answers} <= {0, 1, 2}
        assert row.sampling["max_tokens"] == 12
    assert origins_of(rows) == [Origin(str(MODEL))]
    assert any(answer.finished for row in rows for answer in row.answers)


def test_stopped_at_any_byte_it_goes_on_to_the_same_bytes(tmp_path: Path, prompts: Path) -> None:
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    sample(prompts, whole)
    content = whole.read_bytes()
    first_line = content.index(b"\n") + 1
    for kept in (1, first_line - 1, first_line, len(content) - 1):
        out.write_bytes(content[:kept])
        result = sample(prompts, out)
        assert result.exit_code == 0, result.output
        assert out.read_bytes() == content, f"stopped after {kept} bytes"


def test_a_file_is_one_session_s_and_one_deleted_meanwhile_is_noticed_and_kept(
    tmp_path: Path, prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, calls = tmp_path / "out.jsonl", list[int]()

    def speak(model: object, asks: list[object], **_: object) -> list[list[int]]:
        calls.append(len(asks))
        with pytest.raises(LockedError):
            LineFile(out)
        if len(calls) == 2:
            out.unlink()
        return [[17 + number] for number in range(len(asks))]

    monkeypatch.setattr(sampling, "generate_together", speak)
    result = sample(prompts, out)
    assert isinstance(result.exception, DiskError)
    assert "was deleted by another program meanwhile" in str(result.exception)
    (tmp_path / "out.jsonl.kept").rename(out)
    assert sample(prompts, out).exit_code == 0
    assert [row.prompt[0].content for row in load_candidates(out)] == QUESTIONS
    assert calls == [6, 6, 6, 3]


def test_what_is_finished_is_not_made_again(
    tmp_path: Path, prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.jsonl"
    sample(prompts, out)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("an answer was made again")

    monkeypatch.setattr(sampling, "generate_together", never)
    result = sample(prompts, out)
    assert result.exit_code == 0, result.output
    assert "5 of 5 prompts are answered" in result.stdout


def test_a_model_that_was_moved_meanwhile_goes_on(tmp_path: Path, prompts: Path) -> None:
    out = tmp_path / "out.jsonl"
    sample(prompts, out)
    elsewhere = tmp_path / "tiny-sft"
    elsewhere.symlink_to(MODEL)
    result = sample(prompts, out, "--model", str(elsewhere))
    assert result.exit_code == 0, result.output
    assert "5 of 5 prompts are answered" in result.stdout


@pytest.mark.parametrize(
    ("more", "said"),
    [(("--seed", "1"), "seed 0, now 1"), (("--temperature", "0.5"), r"temperatures \[1.0\], now")],
)
def test_a_file_made_otherwise_is_left_alone(
    tmp_path: Path, prompts: Path, more: tuple[str, ...], said: str
) -> None:
    out = tmp_path / "out.jsonl"
    sample(prompts, out)
    before = out.read_bytes()
    result = sample(prompts, out, *more)
    assert result.exit_code != 0
    with pytest.raises(Exception, match=said):
        raise result.exception or AssertionError
    assert out.read_bytes() == before


def test_temperatures_are_those_of_the_first_answer_and_the_second(
    tmp_path: Path, prompts: Path
) -> None:
    out = tmp_path / "out.jsonl"
    sample(prompts, out, "--temperature", "0", "--temperature", "1.2")
    for row in load_candidates(out):
        assert [answer.temperature for answer in row.answers][:1] == [0.0]
        assert {answer.seed: answer.temperature for answer in row.answers}.items() <= {
            0: 0.0,
            1: 1.2,
            2: 0.0,
        }.items()


def test_a_file_of_pairs_gives_each_of_its_prompts_once(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    texts = [("a", "x", "y"), ("b", "x", "y"), ("a", "x", "z")]
    rows = [{"prompt": p, "chosen": c, "rejected": r, "kind": "k"} for p, c, r in texts]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    prompts, read = read_prompts(file)
    assert ([row.prompt[0].content for row in prompts], read) == (["a", "b"], 3)
    assert {prompt.kind for prompt in prompts} == {"k"}
    file.write_text('{"no": "prompt"}\n')
    with pytest.raises(DataError, match=r"pairs\.jsonl:1:1: missing-key"):
        read_prompts(file)


def test_an_answer_that_begins_another_turn_is_left_out_and_the_file_still_goes_on(
    tmp_path: Path, prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlx_dpo.convert.sources import load_tokenizer

    tokenizer = load_tokenizer(MODEL)
    closing = tokenizer.eos_token_id
    spoken = [
        [*tokenizer.encode(text, add_special_tokens=False), closing]
        for text in ("Yes.", "<|user|>\nMore?", "No.<|end|><|assistant|>\nNo.")
    ]
    monkeypatch.setattr(
        sampling, "generate_together", lambda model, asks, **_: spoken * (len(asks) // 3)
    )
    out = tmp_path / "out.jsonl"
    assert sample(prompts, out).exit_code == 0
    assert [[a.text for a in row.answers] for row in load_candidates(out)] == [["Yes."]] * 5
    spoken[0] = spoken[1]
    out.unlink()
    assert sample(prompts, out).exit_code == 0
    assert [row.answers for row in load_candidates(out)] == [()] * 5
    assert "5 of 5 prompts are answered" in sample(prompts, out).stdout

"""Answers given while a run trains are kept, change nothing, and don't keep a stop waiting."""

import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from mlx_dpo.errors import StoppedError
from mlx_dpo.runs.callbacks import Screen
from mlx_dpo.runs.guards import Stop
from mlx_dpo.runs.run import train
from tests.runs.conftest import settings
from tests.runs.test_run import StopAfter, digest


def samples(run: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(run, "samples.jsonl").read_text().splitlines()]


def test_answers_are_kept_every_n_steps_and_at_the_end(workplace: Path) -> None:
    told: list[tuple[int, Sequence[tuple[str, str]]]] = []

    class Listener(Screen):
        def sampled(self, step: int, answers: Sequence[tuple[str, str]]) -> None:
            told.append((step, answers))

    train(settings(run_dir="run", out="out", sample_every=3), screen=Listener())
    rows = samples("run")
    assert [row["step"] for row in rows] == [2, 5, 7]
    assert told[0] == (2, [(a["prompt"], a["answer"]) for a in rows[0]["answers"]])
    # The last ones are those the finished model gives.
    finished = json.loads(Path("run/result.json").read_text())["answers"]
    assert [a["answer"] for a in rows[-1]["answers"]] == [a["dpo"] for a in finished]
    assert len(finished) > 0


def test_asking_on_the_way_changes_no_weight(workplace: Path) -> None:
    train(settings(run_dir="quiet", out="a"))
    train(settings(run_dir="asked", out="b", sample_every=2))
    assert digest(Path("a/model.safetensors")) == digest(Path("b/model.safetensors"))
    assert not Path("quiet/samples.jsonl").exists()


def test_a_resumed_run_gives_each_answer_once(workplace: Path) -> None:
    train(settings(run_dir="straight", out="a", sample_every=2))
    with pytest.raises(StoppedError):
        train(settings(run_dir="broken", out="b", sample_every=2), screen=StopAfter(4))
    with Path("broken/samples.jsonl").open("a") as file:
        file.write('{"step": 5, "answers": []}\n{"st')  # a killed run's last words
    train(settings(run_dir="broken", out="b", sample_every=2), resume=True)
    assert samples("broken") == samples("straight")


def test_a_stop_is_not_kept_waiting_by_questions(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def answer(*args: object, **options: object) -> object:
        asked.append("a question")
        stop.requested = True
        return type("Said", (), {"text": "x"})()

    stop = Stop()

    class Keep(Screen):
        def stepped(self, step: int, metrics: object, timing: object) -> None:
            monkeypatch.setattr("mlx_dpo.runs.callbacks.answer", answer)

    monkeypatch.setattr("mlx_dpo.runs.run.stop_on_signal", lambda told: nullcontext(stop))
    with pytest.raises(StoppedError, match="after step 1 of 8"):
        train(settings(run_dir="run", sample_every=1), screen=Keep())
    assert asked == ["a question"]
    assert not Path("run/samples.jsonl").exists()

"""Timings, answers during training that change nothing, and the watch on rewards."""

import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from mlx_dpo.errors import StoppedError
from mlx_dpo.runs.callbacks import RewardWatch, Screen
from mlx_dpo.runs.collapse import FLOOR_WINDOW
from mlx_dpo.runs.guards import Stop
from mlx_dpo.runs.job import Job
from mlx_dpo.runs.run import train
from mlx_dpo.training.loss import Metrics
from mlx_dpo.training.phases import PHASES
from mlx_dpo.training.self_check import Choice
from tests.runs.conftest import StopAfter, digest, settings


def test_phases_are_parts_of_the_step_and_tokens_are_counted(workplace: Path) -> None:
    result = train(settings(steps=3, run_dir="run"))
    assert result is not None
    lines = [json.loads(line) for line in Path("run/timings.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2]
    for line in lines:
        spent = [line[f"{phase}_seconds"] for phase in PHASES]
        assert all(seconds > 0 for seconds in spent)
        assert sum(spent) <= line["seconds"]
        assert 0 < line["real_tokens"] <= line["computed_tokens"]
        assert line["real_tokens"] < line["unshared_tokens"]
    for name in ("data_seconds", "pairs", "computed_tokens"):
        assert result.totals[name] == sum(line[name] for line in lines)


def samples(run: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(run, "samples.jsonl").read_text().splitlines()]


def test_answers_are_kept_every_n_steps_and_at_the_end(workplace: Path) -> None:
    sampled: list[tuple[int, Sequence[tuple[str, str]]]] = []

    class AnswerScreen(Screen):
        def sampled(self, step: int, answers: Sequence[tuple[str, str]]) -> None:
            sampled.append((step, answers))

    train(settings(run_dir="run", out="out", sample_every=3), screen=AnswerScreen())
    rows = samples("run")
    assert [row["step"] for row in rows] == [2, 5, 7]
    assert sampled[0] == (2, [(a["prompt"], a["answer"]) for a in rows[0]["answers"]])
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

    def complete(*args: object, after_token: Callable[[], None], **options: object) -> None:
        asked.append("a question")
        stop.requested = True
        after_token()
        asked.append("another token")

    stop = Stop()

    class PatchingScreen(Screen):
        def stepped(self, step: int, metrics: object, timing: object) -> None:
            monkeypatch.setattr("mlx_dpo.runs.callbacks.complete", complete)

    monkeypatch.setattr("mlx_dpo.runs.run.stop_on_signal", lambda on_deferred: nullcontext(stop))
    with pytest.raises(StoppedError, match="after step 1 of 8"):
        train(settings(run_dir="run", sample_every=1), screen=PatchingScreen())
    assert asked == ["a question"]
    assert not Path("run/samples.jsonl").exists()


def test_a_collapse_of_the_rewards_is_warned_about_once_while_training() -> None:
    warnings: list[str] = []

    class Warned(Screen):
        def warned(self, text: str) -> None:
            warnings.append(text)

    trainer: Any = None
    watch, rewards = RewardWatch(Warned()), {"chosen_reward": -1.5, "rejected_reward": -3.0}
    for step in range(3 * FLOOR_WINDOW):
        watch.after_step(trainer, step, rewards if step % 2 else None)  # half are left out
    (warning,) = warnings
    assert warning.startswith(f"reward collapse at step {2 * FLOOR_WINDOW - 1}: ")
    assert warning.endswith(". Training goes on; --patience would end it")


def test_each_phase_that_may_take_long_is_announced_before_it(workplace: Path) -> None:
    told: list[str] = []

    class Told(Screen):
        def working(self, what: str) -> None:
            told.append(what)

        def prepared(self, job: Job, folder: Path | None) -> None:
            told.append("prepared")

        def path_chosen(self, choice: Choice) -> None:
            told.append("path chosen")

        def checked(self, job: Job, start: Metrics) -> None:
            told.append("checked")

        def stepped(self, step: int, metrics: Metrics, timing: Metrics) -> None:
            told.append("stepped")

    train(settings(steps=1, eval_every=1), screen=Told())
    assert told == [
        *("finding the model", "reading the pairs", "loading the model", "prepared"),
        *(
            "choosing the fastest way to score",
            "path chosen",
            "answering 2 prompts before training",
        ),
        *("self-check: scoring the largest batch", "checked", "making the first step", "stepped"),
        *("scoring the held-out pairs", "answering 2 prompts after training", "writing the model"),
    ]

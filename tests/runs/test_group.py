"""What ranks compare before the first step: a difference is named, and alike on all of them."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.nn as nn
import pytest

from mlx_dpo.errors import UsageError
from mlx_dpo.runs import group
from mlx_dpo.runs.callbacks import Screen
from mlx_dpo.runs.config import RunConfig
from mlx_dpo.runs.folder import RunFolder
from mlx_dpo.runs.follower import Elsewhere
from mlx_dpo.runs.group import Rejoin, compare_jobs, compare_scoring, same_start
from mlx_dpo.runs.watchdog import ALONE, Watchdog
from mlx_dpo.training.peers import Group

CONFIG = Path("train.toml")


class Rank(Group):
    """One of two, which sends nothing: what the other one says is given, by default the same."""

    def __init__(self, rank: int, other: str = "") -> None:
        both: Any = SimpleNamespace(rank=lambda: rank, size=lambda: 2)
        super().__init__(both, ["mac-a", "mac-b"])
        self.other, self.mine = other, ""

    def texts(self, what: str, mine: str) -> list[str]:
        self.mine = mine
        other = self.other or mine
        return [other, mine] if self.rank else [mine, other]


def refusal(act: Callable[[Group, str], object]) -> str:
    """What both of two ranks are refused with, of which the first has "one" and the second not."""
    first = Rank(0)
    act(first, "one")
    said, other = [], first.mine
    for rank, has in ((1, "two"), (0, "one")):
        peers = Rank(rank, other)
        with pytest.raises(UsageError) as refused:
            act(peers, has)
        assert peers.is_over  # all know
        said.append(str(refused.value))
        other = peers.mine
    assert said[0] == said[1]
    return said[0]


def test_another_way_to_score_is_named_and_another_chip_is_a_warning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    warnings = list[str]()
    screen = Screen()
    monkeypatch.setattr(screen, "warned", warnings.append)

    def act(peers: Group, has: str) -> None:
        compare_scoring(peers, has, screen)

    assert "rank 1 (mac-b) differs from rank 0 (mac-a) in way to score" in refusal(act)
    assert not warnings
    second = Rank(1)
    monkeypatch.setattr(group, "architecture", lambda: "applegpu_g13s")
    act(second, "same")
    monkeypatch.setattr(group, "architecture", lambda: "applegpu_g17s")
    act(Rank(0, second.mine), "same")
    expected = "rank 1 (mac-b) computes on applegpu_g13s, rank 0 (mac-a) on applegpu_g17s: "
    assert [line[: len(expected)] for line in warnings] == [expected]


def test_tf32_on_one_machine_alone_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def act(peers: Group, has: str) -> None:
        monkeypatch.setenv("MLX_ENABLE_TF32", "1" if has == "two" else "0")
        same_start(peers, None, {})

    assert "differs from rank 0 (mac-a) in MLX_ENABLE_TF32: on, not off" in refusal(act)


def test_ranks_meet_after_steps_where_the_first_may_save_or_answer() -> None:
    met = list[tuple[int, str]]()
    trainer: Any = SimpleNamespace(is_done=False, step=0)
    meet: Any = lambda what: met.append((trainer.step, what))  # noqa: E731
    trainer.stages = SimpleNamespace(peers=SimpleNamespace(meet=meet))
    rejoin = Rejoin(RunConfig(save_every=4, sample_every=3, eval_every=100))
    rejoin.at_start(trainer)
    for step in range(10):
        trainer.step, trainer.is_done = step + 1, step == 9
        rejoin.after_step(trainer, step, None)
    assert met == [(step, ALONE) for step in (0, 3, 4, 6, 8, 9, 10)]
    for rank, what, seconds in ((1, "step", 300), (1, ALONE, 3000), (0, ALONE, 300)):
        watchdog = Watchdog(300.0, rank)
        with watchdog.waiting(what):
            assert watchdog._waits is not None
            assert watchdog._waits[2] == seconds


def test_a_rank_without_the_run_s_folder_touches_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("metrics.jsonl").write_text('{"step": 1}\n')
    log = Elsewhere([{"step": 4}, {"step": 5}])
    log.append("metrics.jsonl", {"step": 6})
    assert log.write_json("result.json", {}) == Path("result.json")
    assert log.last_rows("metrics.jsonl", 5) == [{"step": 5}]
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [
        ("metrics.jsonl", '{"step": 1}\n')
    ]
    assert not isinstance(log, RunFolder)  # cut_to, finish and others act on files


@pytest.mark.parametrize("name", ["mlx", "mlx-lm", "transformers"])
def test_another_version_of_a_library_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def act(peers: Group, has: str) -> None:
        monkeypatch.setattr(group, "version", lambda asked: has if asked == name else "1.0")
        same_start(peers, None, {})

    expected = f"rank 1 (mac-b) differs from rank 0 (mac-a) in {name}: two, not one; nothing was"
    assert refusal(act).startswith(expected)


def test_another_version_of_this_program_is_named_before_its_source(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def act(peers: Group, has: str) -> None:
        monkeypatch.setattr(group, "VERSION", has)
        monkeypatch.setattr(group, "__file__", str(Path(has) / "runs" / "group.py"))
        same_start(peers, None, {})

    assert "differs from rank 0 (mac-a) in mlx-dpo: two, not one" in refusal(act)


def test_another_source_of_the_same_version_is_named_links_included(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def act(peers: Group, has: str) -> None:
        package = tmp_path / has
        (package / "runs").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"convert-{has}").mkdir(exist_ok=True)
        (tmp_path / f"convert-{has}" / "weights.py").write_text(has)
        if not (package / "convert").exists():
            (package / "convert").symlink_to(tmp_path / f"convert-{has}")
        monkeypatch.setattr(group, "__file__", str(package / "runs" / "group.py"))
        same_start(peers, None, {})

    assert "rank 1 (mac-b) differs from rank 0 (mac-a) in source of mlx-dpo: " in refusal(act)


def test_other_words_and_another_config_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = refusal(lambda peers, has: same_start(peers, None, {"eval_data": has, "steps": None}))
    assert "differs from rank 0 (mac-a) in --eval-data: two" in said
    said = refusal(
        lambda peers, has: same_start(peers, None, {"resume": True if has == "two" else None})
    )
    assert "differs from rank 0 (mac-a) in --resume: True, not none" in said

    def act(peers: Group, has: str) -> None:
        CONFIG.write_text(has)
        same_start(peers, CONFIG, {})

    assert "differs from rank 0 (mac-a) in content of CONFIG: " in refusal(act)


@pytest.mark.parametrize("what", ["model", "data", "set of trained weights"])
def test_another_model_and_other_pairs_are_named(what: str) -> None:
    def act(peers: Group, has: str) -> None:
        size = 2 if what == "set of trained weights" and has == "two" else 1
        job: Any = SimpleNamespace(
            policy=nn.Linear(size, 1),
            model_digest=has if what == "model" else "same",
            data=SimpleNamespace(digest=has if what == "data" else "same"),
        )
        compare_jobs(peers, job, resumes=has == "one")

    assert f"rank 1 (mac-b) differs from rank 0 (mac-a) in {what}: " in refusal(act)


@pytest.mark.parametrize(
    ("host", "here", "there", "least"),
    [
        ("mac-b", 8 << 30, 16 << 30, 8 << 30),
        ("mac-b", 16 << 30, 8 << 30, 8 << 30),
        ("mac-b", None, 8 << 30, 8 << 30),
        ("mac-b", None, None, None),
        ("mac-a", 8 << 30, 8 << 30, 4 << 30),  # they share it
    ],
)
def test_the_rank_with_the_least_memory_decides(
    host: str,
    here: int | None,
    there: int | None,
    least: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: host)
    monkeypatch.setattr(group, "recommended_here", lambda: there)
    second = Rank(1)
    same_start(second, None, {})
    monkeypatch.setattr("socket.gethostname", lambda: "mac-a")
    monkeypatch.setattr(group, "recommended_here", lambda: here)
    assert same_start(Rank(0, second.mine), None, {}) == least

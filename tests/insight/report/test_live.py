"""The live page follows its run, ends with it, and never leaves a page that reloads for ever."""

import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from mlx_dpo.errors import UsageError
from mlx_dpo.insight.report.live import REFRESH, follow
from mlx_dpo.runs.guards import locked
from tests.cli.test_cli import exit_code


@pytest.fixture
def unfinished(run: Path) -> Path:
    """A run that has made its 60 steps and no result."""
    (run / "result.json").rename(run / "later.json")
    return run


def reloads(page: Path) -> bool:
    return f'http-equiv="refresh" content="{REFRESH}"' in page.read_text()


class Clock:
    """Does one thing a wait, in turn; fails the test when nothing is left to do."""

    def __init__(self, *acts: Callable[[], object]) -> None:
        self.acts, self.said = list(acts), list[str]()

    def wait(self, seconds: float) -> None:
        assert seconds == REFRESH
        self.acts.pop(0)()

    def follow(self, run: Path) -> Path:
        return follow(run, None, wait=self.wait, say=self.said.append)


def test_the_page_follows_the_run_until_it_is_finished(unfinished: Path) -> None:
    page = unfinished / "report.html"
    rows = (unfinished / "metrics.jsonl").read_text().splitlines()
    shown = list[object]()

    def write(count: int) -> None:
        (unfinished / "metrics.jsonl").write_text("\n".join(rows[:count]) + "\n")

    def look() -> None:
        shown.append((reloads(page), "Training: 20 of 60 steps" in page.read_text()))
        page.unlink()  # what is written again shows that there was something new

    write(10)
    clock = Clock(
        lambda: write(20),
        look,
        lambda: shown.append(page.exists()),
        lambda: (unfinished / "later.json").rename(unfinished / "result.json"),
    )
    with locked(unfinished):
        assert clock.follow(unfinished) == page
    assert shown == [(True, True), False]
    assert clock.acts == []
    assert clock.said == [f"live: {page} until the run ends or Ctrl-C"]
    assert not reloads(page)
    assert "Not finished" not in page.read_text()


def test_a_run_that_stopped_ends_it_after_three_looks(unfinished: Path) -> None:
    held = ExitStack()
    held.enter_context(locked(unfinished))
    again = ExitStack()

    clock = Clock(
        held.close,
        lambda: None,
        lambda: again.enter_context(locked(unfinished)),  # a supervised run starts again
        *(again.close, lambda: None, lambda: None),
    )
    page = clock.follow(unfinished)
    assert clock.acts == []
    assert not reloads(page)
    assert "Not finished: 60 of 60 steps." in page.read_text()


def test_ctrl_c_leaves_a_page_that_does_not_reload(unfinished: Path) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with locked(unfinished):
        assert not reloads(Clock(interrupt).follow(unfinished))
        (unfinished / "split.json").unlink()  # before the first step there is no page to leave
        clock = Clock(lambda: None, interrupt)
        with pytest.raises(KeyboardInterrupt):
            clock.follow(unfinished)
    assert clock.said == [f"{unfinished}: not training yet; the page comes with the first step"]


def test_a_run_that_is_over_is_written_at_once(run: Path, tmp_path: Path) -> None:
    assert not reloads(Clock().follow(run))
    with pytest.raises(UsageError, match="no run there"):
        Clock().follow(tmp_path / "absent")
    assert exit_code("report", "--live", str(run)) == 0
    assert exit_code("report", "--live", str(run), str(run)) == 2


def test_the_data_is_read_once(unfinished: Path) -> None:
    shown = []

    def change() -> None:
        shown.append((unfinished / "report.html").read_text())
        (unfinished.parent / "pairs.json").unlink()
        with (unfinished / "metrics.jsonl").open("a") as file:
            file.write("\n" + json.dumps({"step": 60}) + "\n")

    clock = Clock(change, lambda: (unfinished / "later.json").rename(unfinished / "result.json"))
    with locked(unfinished):
        page = clock.follow(unfinished).read_text()
    for each in (*shown, page):
        assert "not checked" not in each

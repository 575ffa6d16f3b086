"""A machine whose memory runs out while a run goes on. No Mac is needed: the probe is handed in."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mlx_dpo.errors import StoppedError
from mlx_dpo.runs import machine
from mlx_dpo.runs.callbacks import Screen
from mlx_dpo.runs.machine import EVERY, PressureWatch, Reading, parse, read_pressure
from mlx_dpo.runs.run import train
from tests.runs.conftest import settings
from tests.runs.test_run import digest

GIB = 2**30
CALM = Reading(0.6, 2 * GIB)
SHORT = Reading(0.12, 2 * GIB)
GONE = Reading(0.03, 2 * GIB)

# As macOS prints them.
SAID = """The system has 17179869184 (1048576 pages with a page size of 16384).
System-wide memory free percentage: 43%
"""
SWAP = "total = 3072.00M  used = 1832.25M  free = 1239.75M  (encrypted)\n"


def watch_of(*readings: Reading | None) -> PressureWatch:
    """A watch that sees one reading after the other, each after its time."""
    found: Iterator[Reading | None] = iter(readings)
    times = iter(range(10_000))
    return PressureWatch(lambda: next(found), lambda: next(times) * EVERY)


def test_what_macos_prints_is_read() -> None:
    assert parse(SAID, SWAP) == Reading(0.43, int(1832.25 * 2**20))
    assert parse(SAID, SWAP.replace("1832.25M", "1,50G")) == Reading(0.43, int(1.5 * GIB))


@pytest.mark.parametrize(("said", "swap"), [("", SWAP), (SAID, ""), ("free", "used = M")])
def test_what_is_not_understood_is_no_reading(said: str, swap: str) -> None:
    assert parse(said, swap) is None


def test_a_system_that_does_not_say_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    assert read_pressure() is None
    watch = watch_of(None)
    assert [watch.look() for _ in range(3)] == [None] * 3


def test_programs_that_are_missing_are_no_reading(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert read_pressure() is None


def test_it_looks_now_and_then_and_not_at_every_step() -> None:
    asked: list[int] = []
    seconds = iter([0.0, 0.0, EVERY / 2, EVERY, EVERY])

    def probe() -> Reading:
        asked.append(1)
        return CALM

    watch = PressureWatch(probe, lambda: next(seconds))
    for _ in range(3):
        watch.look()
    assert len(asked) == 2


@pytest.mark.parametrize("short", [SHORT, CALM._replace(swapped=CALM.swapped + 2 * GIB)])
def test_short_memory_is_warned_about_once(short: Reading) -> None:
    watch = watch_of(CALM, short, short, CALM, short)
    found = [watch.look() for _ in range(5)]
    assert [bool(warning) for warning in found] == [False, True, False, False, False]
    assert str(found[1]).startswith("memory is getting short (")


@pytest.mark.parametrize("gone", [GONE, CALM._replace(swapped=CALM.swapped + 5 * GIB)])
def test_hardly_any_memory_stops_at_the_second_look_in_a_row(gone: Reading) -> None:
    watch = watch_of(CALM, gone, CALM, gone, gone)
    for _ in range(4):
        watch.look()
    with pytest.raises(StoppedError, match="memory is running out"):
        watch.look()


def test_swap_that_was_full_before_is_not_the_runs() -> None:
    full = Reading(0.6, 30 * GIB)
    assert [watch_of(full, full).look() for _ in range(2)] == [None, None]


def test_a_run_warns_stops_saved_and_resumes_to_the_byte(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlx_dpo.runs.callbacks.ANSWER_TOKENS", 1)
    monkeypatch.setattr(machine, "EVERY", 0.0)
    warnings = []

    class Note(Screen):
        def warned(self, text: str) -> None:
            warnings.append(text)

    def probe_of(*readings: Reading) -> Callable[[], Reading]:
        found = iter(readings)
        return lambda: next(found, CALM)

    options = {"steps": 6, "eval_fraction": 0.0}
    train(settings(run_dir="straight", out="a", **options), probe=probe_of())
    with pytest.raises(StoppedError) as stopped:
        train(
            settings(run_dir="broken", out="b", **options),
            screen=Note(),
            probe=probe_of(CALM, SHORT, GONE, GONE),
        )
    assert stopped.value.exit_code == 75
    assert str(stopped.value) == (
        "stopped after step 4 of 6: memory is running out (3% of the memory free, swap grown by "
        "0.0 GiB); continue with: mlx_dpo train --resume --run-dir broken"
    )
    assert [warning.split(" (")[0] for warning in warnings] == ["memory is getting short"]
    train(settings(run_dir="broken", out="b", **options), resume=True, probe=probe_of())
    assert digest(Path("a/model.safetensors")) == digest(Path("b/model.safetensors"))
    assert digest(Path("straight/metrics.jsonl")) == digest(Path("broken/metrics.jsonl"))

"""A machine whose memory gets short or runs out, and that sleeps. No Mac is needed."""

import ctypes
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, NoReturn

import mlx.core as mx
import pytest

from mlx_dpo.cli import main
from mlx_dpo.errors import MemoryShortError, StoppedError, is_shortage
from mlx_dpo.runs import machine
from mlx_dpo.runs.config import RunConfig
from mlx_dpo.runs.machine import (
    CRITICAL,
    EVERY,
    WARNING,
    PressureWatch,
    Reading,
    StepClock,
    advice,
    keep_awake,
    read_pressure,
    shortage_explained,
)
from mlx_dpo.runs.run import train
from mlx_dpo.training.trainer import DPOTrainer
from tests.faults.lives import phases
from tests.runs.conftest import ORACLE, WarningScreen, digest, settings

GIB = 2**30


CALM = Reading(1, 0.6, 2 * GIB)
SHORT = Reading(WARNING, 0.3, 2 * GIB)
GONE = Reading(CRITICAL, 0.1, 2 * GIB)


class Kernel:
    """Stands for macOS's C library: answers `sysctlbyname` with these numbers."""

    def __init__(self, **values: int) -> None:
        self.values = values

    def sysctlbyname(self, name: bytes, value: Any, size: Any, new: None, length: Any) -> int:
        number = self.values.get(name.decode().rpartition(".")[2])
        if number is None:
            return -1
        target = value._obj
        if name == b"vm.swapusage":
            assert size._obj.value == 32, "struct xsw_usage"
            target.used = number
        else:
            target.value = number
        return 0


def watch_of(*readings: Reading | None) -> PressureWatch:
    """A watch that sees one reading after the other, each after its time."""
    found: Iterator[Reading | None] = iter(readings)
    times = iter(range(10_000))
    return PressureWatch(lambda: next(found), lambda: next(times) * EVERY)


def test_the_kernel_s_own_levels_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(memorystatus_vm_pressure_level=2, memorystatus_level=43, swapusage=5 * GIB)
    monkeypatch.setattr("sys.platform", "darwin")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: kernel)
    assert read_pressure() == Reading(2, 0.43, 5 * GIB)


@pytest.mark.parametrize("missing", ["memorystatus_vm_pressure_level", "swapusage"])
def test_a_kernel_that_does_not_know_a_name_is_no_reading(
    monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    values = {"memorystatus_vm_pressure_level": 1, "memorystatus_level": 9, "swapusage": 0}
    del values[missing]
    monkeypatch.setattr("sys.platform", "darwin")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Kernel(**values))
    assert read_pressure() is None


def test_a_system_that_does_not_say_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    assert read_pressure() is None
    watch = watch_of(None)
    assert [watch.look() for _ in range(3)] == [None] * 3


def test_a_library_without_the_call_is_no_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
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


def test_short_memory_at_two_looks_in_a_row_is_warned_about_once() -> None:
    watch = watch_of(CALM, SHORT, CALM, SHORT, SHORT, SHORT, CALM, SHORT, SHORT)
    found = [watch.look() for _ in range(9)]
    assert [bool(warning) for warning in found] == [False] * 4 + [True] + [False] * 4
    assert str(found[4]).startswith("memory is getting short (30% of the memory available, ")


@pytest.mark.parametrize("gone", [GONE, CALM._replace(swapped=CALM.swapped + 5 * GIB)])
def test_hardly_any_memory_stops_at_the_second_look_in_a_row(gone: Reading) -> None:
    watch = watch_of(CALM, gone, CALM, gone, gone)
    for _ in range(4):
        watch.look()
    with pytest.raises(StoppedError, match="memory is running out"):
        watch.look()


def test_swap_that_was_full_before_is_not_the_runs() -> None:
    full = Reading(1, 0.6, 30 * GIB)
    assert [watch_of(full, full).look() for _ in range(2)] == [None, None]


def test_a_run_warns_stops_saved_and_resumes_to_the_byte(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "EVERY", 0.0)
    screen = WarningScreen()

    def probe_of(*readings: Reading) -> Callable[[], Reading]:
        found = iter(readings)
        return lambda: next(found, CALM)

    options = {"steps": 6, "eval_fraction": 0.0}
    train(settings(run_dir="straight", out="a", **options), probe=probe_of())
    with pytest.raises(StoppedError) as stopped:
        train(
            settings(run_dir="broken", out="b", **options),
            screen=screen,
            probe=probe_of(CALM, SHORT, GONE, GONE),
        )
    assert stopped.value.exit_code == 75
    assert str(stopped.value) == (
        "stopped after step 4 of 6: memory is running out (10% of the memory available, swap "
        "grown by 0.0 GiB); continue with: mlx_dpo train --resume --run-dir broken"
    )
    assert [warning.split(" (")[0] for warning in screen.warnings] == ["memory is getting short"]
    train(settings(run_dir="broken", out="b", **options), resume=True, probe=probe_of())
    assert digest(Path("a/model.safetensors")) == digest(Path("b/model.safetensors"))
    assert digest(Path("straight/metrics.jsonl")) == digest(Path("broken/metrics.jsonl"))


ERRORS = [
    "[malloc] Unable to allocate 8589934592 bytes.",
    "[malloc_or_wait] Unable to allocate 8589934592 bytes.",
    "[metal::malloc] Attempting to allocate 9000000000 bytes which is greater than the maximum "
    "allowed buffer size of 8000000000 bytes.",
    "[metal::malloc] Resource limit (499000) exceeded.",
    "[METAL] Command buffer execution failed: Insufficient Memory (00000008:"
    "kIOGPUCommandBufferCallbackErrorOutOfMemory)",
    "std::bad_alloc",
]


def raising(error: Exception) -> Callable[..., NoReturn]:
    def fail(*args: Any, **options: Any) -> NoReturn:
        raise error

    return fail


@pytest.mark.parametrize("text", ERRORS)
def test_what_mlx_and_metal_say_is_understood(text: str) -> None:
    assert is_shortage(RuntimeError(text))


def test_pythons_own_error_is_and_others_are_not() -> None:
    assert is_shortage(MemoryError())
    assert not is_shortage(RuntimeError("[matmul] Last dimension of first input"))
    assert not is_shortage(ValueError("Unable to allocate a name"))


@pytest.mark.parametrize("phase", sorted(phases()))
def test_every_phase_ends_with_advice(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    target, name = phases()[phase]
    monkeypatch.setattr(resolve_name(target), name, raising(RuntimeError(ERRORS[0])))
    with pytest.raises(
        MemoryShortError, match=r"Unable to allocate .* start again with --"
    ) as ended:
        train(settings(sample_every=4))
    assert ended.value.exit_code == 4
    wanted = "--dtype bfloat16" if phase == "data" else "--batch-size 1 --grad-accumulation 2"
    assert wanted in str(ended.value)


def test_the_largest_batch_runs_before_the_first_step(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check fails, and nothing of the run is there yet but its folder."""
    monkeypatch.setattr(DPOTrainer, "check_start", raising(RuntimeError(ERRORS[0])))
    with pytest.raises(MemoryShortError):
        train(settings(run_dir="run"))
    assert not Path("run/config.toml").exists()
    assert not Path("run/metrics.jsonl").exists()


def test_the_check_changes_nothing_of_the_run(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"steps": 3, "eval_fraction": 0.0, "grad_accumulation": 2}
    mx.random.seed(5)
    train(settings(run_dir="checked", out="a", **options))
    monkeypatch.setattr(
        DPOTrainer,
        "check_start",
        lambda self: {"loss": 0.6931, "grad_norm": 1, "largest_reward": 0, "allowed_reward": 1},
    )
    mx.random.seed(5)
    train(settings(run_dir="unchecked", out="b", **options))
    assert (
        Path("checked/metrics.jsonl").read_bytes() == Path("unchecked/metrics.jsonl").read_bytes()
    )
    for name in ("weights", "optimizer"):
        file = f"step-000003/{name}.safetensors"
        assert Path("checked", file).read_bytes() == Path("unchecked", file).read_bytes()
    states = [Path(run, "step-000003/state.json").read_text() for run in ("checked", "unchecked")]
    assert states[0] == states[1]


def test_a_fast_path_without_memory_is_not_replaced_by_the_plain_one(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = "mlx_dpo.training.paths.FastPath.__call__"
    monkeypatch.setattr(target, raising(RuntimeError(ERRORS[0])))
    with pytest.raises(MemoryShortError):
        train(settings())


def test_the_command_line_says_it_in_one_line(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(DPOTrainer, "check_start", raising(MemoryError()))
    with pytest.raises(SystemExit) as ended:
        main(["train", "--model", str(ORACLE), "--data", "pairs.json", "--reference", "copy"])
    assert ended.value.code == 4
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("mlx_dpo: not enough memory (MemoryError): close other programs, or")
    assert "--reference cached" in last


def test_other_errors_are_left_alone() -> None:
    with pytest.raises(RuntimeError, match="shapes"), shortage_explained(RunConfig()):
        raise RuntimeError("shapes (2,) and (3,) cannot be broadcast")


def test_advice_goes_from_what_costs_least_and_never_repeats_itself() -> None:
    config = RunConfig(reference="copy", batch_size=2, max_length=128, dtype="float32")
    followed: list[tuple[str, dict[str, Any]]] = [
        ("--reference cached", {"reference": "cached"}),
        ("--batch-size 1 --grad-accumulation 2", {"batch_size": 1, "grad_accumulation": 2}),
        ("--checkpoint-layers", {"checkpoint_layers": True}),
        ("--grad-clip 0", {"grad_clip": 0.0}),
        ("--dtype bfloat16", {"dtype": "bfloat16"}),
        ("--optimizer adafactor", {"optimizer": "adafactor"}),
        ("--method lora", {"method": "lora"}),
        ("--max-length 64", {"max_length": 64}),
    ]
    for option, change in followed:
        assert advice(config).startswith(option)
        config = replace(config, **change)
    assert advice(config) == "a smaller model, or one of fewer bits"


def test_sleep_is_told_from_work() -> None:
    running, wall = iter([0.0, 5.0, 100.0, 107.0]), iter([0.0, 6.0, 200.0, 3807.0])
    clock = StepClock(lambda: next(running), lambda: next(wall))
    assert clock.lap() == (5.0, 0.0)  # a second's difference is a clock that was set
    clock.restart()
    assert clock.lap() == (7.0, 3600.0)


def test_a_mac_is_kept_awake_and_other_systems_are_left_alone() -> None:
    launched: list[list[str]] = []
    for platform in ("linux", "darwin"):
        with keep_awake(platform=platform, launch=launched.append):
            pass
    assert launched == [["caffeinate", "-is", "-w", str(os.getpid())]]

    def missing(command: list[str]) -> object:
        raise FileNotFoundError

    with keep_awake(platform="darwin", launch=missing):
        pass

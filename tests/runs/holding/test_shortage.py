"""Memory that runs out, wherever it does: one line, exit code 4, and what to change."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, NoReturn

import mlx.core as mx
import pytest

from mlx_dpo.cli import main
from mlx_dpo.errors import MemoryShortError, is_shortage
from mlx_dpo.runs.config import RunConfig
from mlx_dpo.runs.machine import advice, shortage_explained
from mlx_dpo.runs.run import train
from mlx_dpo.training.trainer import DPOTrainer
from tests.faults.lives import phases
from tests.runs.conftest import ORACLE, settings

SAID = [
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


@pytest.mark.parametrize("said", SAID)
def test_what_mlx_and_metal_say_is_understood(said: str) -> None:
    assert is_shortage(RuntimeError(said))


def test_pythons_own_error_is_and_others_are_not() -> None:
    assert is_shortage(MemoryError())
    assert not is_shortage(RuntimeError("[matmul] Last dimension of first input"))
    assert not is_shortage(ValueError("Unable to allocate a name"))


@pytest.mark.parametrize("phase", sorted(phases()))
def test_every_phase_ends_with_advice(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    monkeypatch.setattr("mlx_dpo.runs.callbacks.ANSWER_TOKENS", 1)
    target, name = phases()[phase]
    monkeypatch.setattr(resolve_name(target), name, raising(RuntimeError(SAID[0])))
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
    monkeypatch.setattr(DPOTrainer, "check_start", raising(RuntimeError(SAID[0])))
    with pytest.raises(MemoryShortError):
        train(settings(run_dir="run"))
    assert not Path("run/config.toml").exists()
    assert not Path("run/metrics.jsonl").exists()


def test_the_check_changes_nothing_of_the_run(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"steps": 3, "eval_fraction": 0.0, "grad_accumulation": 2}
    monkeypatch.setattr("mlx_dpo.runs.callbacks.ANSWER_TOKENS", 1)
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
    monkeypatch.setattr(target, raising(RuntimeError(SAID[0])))
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
    config = RunConfig(reference="copy", batch_size=2, max_length=128)
    followed: list[tuple[str, dict[str, Any]]] = [
        ("--reference cached", {"reference": "cached"}),
        ("--batch-size 1 --grad-accumulation 2", {"batch_size": 1, "grad_accumulation": 2}),
        ("--checkpoint-layers", {"checkpoint_layers": True}),
        ("--grad-clip 0", {"grad_clip": 0.0}),
        ("--dtype bfloat16", {"dtype": "bfloat16"}),
        ("--optimizer adafactor", {"optimizer": "adafactor"}),
        ("--max-length 64", {"max_length": 64}),
    ]
    for said, change in followed:
        assert advice(config).startswith(said)
        config = replace(config, **change)
    assert advice(config) == "a smaller model"

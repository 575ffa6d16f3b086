"""Real runs through the command line, ended in every way and continued until they finish."""

import hashlib
import itertools
import json
import os
import random
import signal
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from tests.faults.forks import run_child, start_child, wait
from tests.runs.conftest import ORACLE, ROWS

STEPS = 24


def arguments(steps: int) -> list[str]:
    """The command line of the run."""
    return [
        *("train", "--model", str(ORACLE), "--data", "pairs.json", "--out", "out"),
        *("--learning-rate", "1e-3", "--warmup-steps", "2", "--batch-size", "2"),
        *("--grad-accumulation", "2", "--steps", str(steps)),
        *("--eval-every", "6", "--save-every", "2", "--sample-every", "8"),
        *("--resume", "--run-dir", "run"),
    ]


def preload() -> None:
    """Import what a run imports, without computing: a fork can't inherit MLX's threads.

    A child that was not forked does it itself.
    """
    from transformers import AutoConfig, models

    assert models.auto.tokenization_auto
    AutoConfig.for_model("llama")  # what it imports takes longer than the run

    import mlx_dpo.cli.results
    import mlx_dpo.cli.run_screen
    import mlx_dpo.runs.callbacks
    import mlx_dpo.runs.run

    mlx_dpo.runs.callbacks.ANSWER_TOKENS = 4  # most of such a short run would be spent on answers


def workplace(folder: Path) -> Path:
    """A new folder with pairs in it."""
    folder.mkdir(parents=True)
    (folder / "pairs.json").write_text(json.dumps(ROWS[:8]))
    return folder


def live(folder: Path, before: Callable[[], object] | None = None) -> Callable[[], None]:
    """A life of the run in `folder`: begins it, or continues it."""
    return partial(_live, folder, before or nothing, STEPS)


def _live(folder: Path, before: Callable[[], object], steps: int) -> None:
    from mlx_dpo.cli import main

    preload()
    os.chdir(folder)
    before()
    has_begun = Path("run/config.toml").exists()
    main(["train", "--resume", "--run-dir", "run"] if has_begun else arguments(steps))


def nothing() -> None:
    """Happens before a life that is not disturbed."""


def signal_after(seconds: float, number: int) -> Callable[[], object]:
    """Sends this process a signal, from a thread, so that it comes in the middle of anything."""
    return partial(_signal_after, seconds, number)


def _signal_after(seconds: float, number: int) -> None:
    timer = threading.Timer(seconds, os.kill, (os.getpid(), number))
    timer.daemon = True
    timer.start()


def signal_when(
    target: str, name: str, *numbers: int, call: int = 1, seconds: float = 0
) -> Callable[[], object]:
    """Sends this process signals when a function is called, or some seconds after.

    Args:
        target: Module or class (``module:Class``) that holds the function.
        name: Of the function.
        numbers: Signals.
        call: Which call of it, counted from 1.
        seconds: From the call to the signals.
    """
    return partial(_signal_when, target, name, numbers, call, seconds)


def _signal_when(
    target: str, name: str, numbers: tuple[int, ...], call: int, seconds: float
) -> None:
    holder = resolve_name(target)
    real = getattr(holder, name)
    calls = itertools.count(1)

    def watched(*args: Any, **options: Any) -> Any:
        if next(calls) < call:
            return real(*args, **options)
        setattr(holder, name, real)
        for number in numbers:
            _signal_after(seconds, number) if seconds else os.kill(os.getpid(), number)
        return real(*args, **options)

    setattr(holder, name, watched)


def phases() -> dict[str, tuple[str, str]]:
    """A function that each phase of a run begins with, as `signal_when` takes it."""
    return {
        "data": ("mlx_dpo.runs.run", "prepare"),
        "reference pass": ("mlx_dpo.runs.reference_cache", "score_in_batches"),
        "first answers": ("mlx_dpo.runs.run", "shown_answers"),
        "step": ("mlx_dpo.training.step:Step", "_accumulate"),
        "evaluation": ("mlx_dpo.runs.callbacks:Evaluate", "after_step"),
        "sampling": ("mlx_dpo.runs.callbacks:Sample", "after_step"),
        "save": ("mlx_dpo.runs.callbacks:Save", "_save"),
        "export": ("mlx_dpo.runs.run", "write_finished"),
    }


def results(folder: Path) -> dict[str, str]:
    """sha256 of everything a finished run must share with one that was never stopped."""
    files = [*("out/model.safetensors", "run/metrics.jsonl", "run/samples.jsonl")]
    files += ["run/held_out.json", f"run/step-{STEPS:06d}/optimizer.safetensors"]
    files += [f"run/step-{STEPS:06d}/weights.safetensors"]
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in files}


def straight(folder: Path) -> dict[str, str]:
    """The results of a run that nobody stops."""
    assert run_child(live(workplace(folder)), quiet=True) == 0
    return results(folder)


def killed_lives(
    folder: Path, expected: dict[str, str], lives: int, longest: float, choose: random.Random
) -> tuple[int, str]:
    """Kill a run at random moments until it has lived `lives` times or is done; then finish it.

    Returns:
        Kills that hit, and what is not as promised.
    """
    workplace(folder)
    kills = 0
    for number in range(lives):
        # Mostly soon, so that few runs are done before they were killed often.
        latest = longest * (0.1 if number % 10 < 9 else 0.4)
        before = signal_after(choose.uniform(0.02, latest), signal.SIGKILL)
        code = run_child(live(folder, before), quiet=True)
        if code == 0:
            break
        if code != -signal.SIGKILL:
            return kills, f"{folder}: exit {code} after {kills} kills"
        kills += 1
    return kills, finish(folder, expected)


def stopped_once(
    folder: Path, expected: dict[str, str], before: Callable[[], object]
) -> tuple[int, str]:
    """Stop a run by a signal, then finish it.

    Returns:
        The exit code of the stopped life, and what is not as promised.
    """
    code = run_child(live(workplace(folder), before), quiet=True)
    if code not in (0, 75):
        return code, f"{folder}: exit {code}, not 75"
    return code, finish(folder, expected)


def finish(folder: Path, expected: dict[str, str]) -> str:
    """Continue to the end; what is not as promised, empty if nothing."""
    if (code := run_child(live(folder), quiet=True)) != 0:
        return f"{folder}: the last life ended with {code}"
    actual = results(folder)
    different = [name for name in expected if actual[name] != expected[name]]
    return f"{folder}: {different} differ from the straight run" if different else ""


def start_together(folder: Path, count: int) -> list[int]:
    """Exit codes of `count` processes that begin the same run at the same moment."""
    workplace(folder)
    wait_here, go = os.pipe()
    os.set_inheritable(wait_here, True)
    before = partial(os.read, wait_here, 1)  # each reads one of the bytes that are sent at once
    children = [start_child(live(folder, before), quiet=True) for _ in range(count)]
    os.write(go, bytes(count))
    os.close(wait_here)
    os.close(go)
    return [wait(child) for child in children]

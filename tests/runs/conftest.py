"""A small real model folder and pairs, in a folder of their own to run in; screens that record."""

import hashlib
import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from mlx_dpo.runs.callbacks import Screen
from mlx_dpo.runs.config import RunConfig
from mlx_dpo.runs.run import RunResult, train
from mlx_dpo.training.loss import Metrics

ORACLE = Path(__file__).parent.parent / "oracle" / "llama" / "model"

# Ragged, two kinds, fourteen different prompts.
ROWS = [
    {
        "kind": "tone" if i % 2 else "format",
        "user": f"Tell me about the {'quiet ' * (i % 4)}otter number {i}.",
        "chosen": "The otter finds a lantern." + " It is bright." * (i % 3),
        "rejected": "No." + " Go away." * (i % 5),
    }
    for i in range(14)
]


def new_workplace(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Go to a working directory with `pairs.json` in it, where runs show short answers."""
    (folder / "pairs.json").write_text(json.dumps(ROWS))
    monkeypatch.chdir(folder)
    # At full length, half of so short a run would be spent on the answers that it shows.
    for reader in ("runs.callbacks", "insight.sweep"):
        monkeypatch.setattr(f"mlx_dpo.{reader}.ANSWER_TOKENS", 2)
    return folder


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory with `pairs.json` in it."""
    return new_workplace(tmp_path, monkeypatch)


def settings(**changes: Any) -> RunConfig:
    """Eight steps on the oracle's llama, evaluated and saved on the way."""
    chosen: dict[str, Any] = {
        "model": str(ORACLE),
        "data": "pairs.json",
        "learning_rate": 1e-3,
        "warmup_steps": 2,
        "batch_size": 2,
        "steps": 8,
        "eval_every": 4,
        "save_every": 3,
    }
    return RunConfig(**{**chosen, **changes})


def finished(**changes: object) -> RunResult:
    result = train(settings(**changes))
    assert result is not None
    return result


def metrics(run: str) -> list[dict[str, float]]:
    lines = Path(run, "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if "loss" in row]


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def other_model(**config: object) -> str:
    """The oracle's model with another config.json."""
    shutil.copytree(ORACLE, "model")
    settings_file = Path("model/config.json")
    settings_file.write_text(json.dumps(json.loads(settings_file.read_text()) | config))
    return "model"


def dated_model(words: str = "{{ strftime_now('%d %b %Y') }}") -> str:
    """The oracle's model with a template that begins with the date."""
    shutil.copytree(ORACLE, "dated")
    file = Path("dated/chat_template.jinja")
    file.write_text(words + file.read_text())
    return "dated"


class StopAfter(Screen):
    """Sends this process a signal once `step` is done."""

    def __init__(self, step: int, number: signal.Signals = signal.SIGTERM) -> None:
        self.step = step
        self.number = number

    def stepped(self, step: int, metrics: Metrics, timing: Metrics) -> None:
        if step == self.step:
            os.kill(os.getpid(), self.number)


class WarningScreen(Screen):
    """Records warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warned(self, text: str) -> None:
        self.warnings.append(text)


class ScoringScreen(Screen):
    """Records how many pairs the reference pass had scored at each of its reports."""

    def __init__(self) -> None:
        self.scored: list[int] = []

    def scoring(self, done: int, total: int) -> None:
        self.scored.append(done)


_FAKE = """
import json
from pathlib import Path
from threading import Event


def note(**call):
    with open(f"{__name__}.calls", "a") as file:
        file.write(json.dumps(call) + "\\n")


def log(figures, step):
    if (fails := Path(f"{__name__}.fails")).is_file():
        raise ConnectionError(fails.read_text())
    if Path(f"{__name__}.hangs").is_file():
        Event().wait()
    note(figures=figures, step=step)
"""
_FAKES = {
    "wandb": """
class Settings:
    def __init__(self, **options):
        pass


class Run:
    url, disabled = "https://wandb.example/mine", False
    log = staticmethod(log)

    def finish(self, exit_code):
        note(finished=exit_code)


def init(settings, **options):
    note(**options)
    return Run()
""",
    "trackio": """
def init(project, **options):
    note(project=project, **options)


def finish():
    note(finished=True)
""",
    "tensorboardX": """
class SummaryWriter:
    def __init__(self, logdir, filename_suffix, **options):
        note(logdir=logdir, **options)

    def add_text(self, tag, text, step):
        note(tag=tag, text=text)

    def add_scalar(self, tag, value, step):
        note(tag=tag, value=value, step=step)

    def flush(self):
        pass

    def close(self):
        pass
""",
}


@pytest.fixture
def fake_trackers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory where each tracker's package writes down how it is called.

    It raises in each call while ``wandb.fails`` is there, and never returns with ``wandb.hangs``.
    """
    for name, text in _FAKES.items():
        (tmp_path / "packages").mkdir(exist_ok=True)
        (tmp_path / "packages" / f"{name}.py").write_text(_FAKE + text)
        monkeypatch.delitem(sys.modules, name, raising=False)
    for name in ("HF_HUB_OFFLINE", "WANDB_ERROR_REPORTING"):  # set by what imports the packages
        monkeypatch.setenv(name, "1")
    for name in ("WANDB_PROJECT", "TRACKIO_PROJECT", "TRACKIO_SPACE_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.syspath_prepend(tmp_path / "packages")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tracker_calls(package: str) -> list[dict[str, Any]]:
    """How a fake tracker was called."""
    file = Path(f"{package}.calls")
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []

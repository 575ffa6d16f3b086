"""Run the program as its reader would, and take its figures."""

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from mlx_dpo.preferences.split import held_out
from mlx_dpo.records import Message, Preference

MODEL = "checkpoints/tiny-sft"
PAIRS = Path("data/dpo/preferences.json")  # of all kinds, unlike those of the demo
EMBEDDED = (f"{MODEL}/train.toml", "--data", str(PAIRS))
PLACE = Path("runs/experiments")
SHOWN_ON: TextIO | None = None  # where commands are shown; None is stderr, red in a notebook
HELD_OUT_SHARE = 0.2  # the default of `mlx_dpo train`, so that the same pairs stay out

Row = dict[str, Any]


class Refused(SystemExit):
    """A command failed; its last line of stderr, and its exit code."""


def command(*words: str | Path | float) -> str:
    """Run `mlx_dpo`, show the line a reader would type, and return what it wrote to stdout.

    Raises:
        Refused: If it fails, with what it wrote to stderr.
    """
    line = [str(word) for word in words]
    print(f"$ mlx_dpo {shlex.join(line)}", file=SHOWN_ON or sys.stderr, flush=True)
    done = subprocess.run(
        [sys.executable, "-m", "mlx_dpo", *line], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise Refused(f"{done.stderr.strip().splitlines()[-1]} (exit code {done.returncode})")
    return done.stdout


def figures(*words: str | Path | float) -> Row:
    """What a command measured: its `--json`."""
    return dict(json.loads(command(*words, "--json")))


def train(name: str, settings: Sequence[str], *words: str | Path) -> Path:
    """Train a model anew under a name of its own; returns its folder."""
    folder = PLACE / name
    shutil.rmtree(folder, ignore_errors=True)
    model = folder / "model"
    command("train", *settings, *words, "--out", model, "--run-dir", folder / "run")
    return model


def settings_of(words: Sequence[str]) -> tuple[str, ...]:
    """Settings for `mlx_dpo train`: the embedded ones, or a model's of the reader's own."""
    if "--model" in words:
        return ("--data", str(PAIRS), *words)
    return (*EMBEDDED, *words)


def model_of(settings: Sequence[str]) -> str:
    """The model that settings start from."""
    return settings[settings.index("--model") + 1] if "--model" in settings else MODEL


def split() -> tuple[list[Row], list[Row]]:
    """The embedded pairs as `mlx_dpo train` divides them: to train on, and held out."""
    rows: list[Row] = json.loads(PAIRS.read_text())
    kinds = [Preference((Message("user", row["user"]),), (), (), row["kind"], "") for row in rows]
    out = held_out(kinds, HELD_OUT_SHARE)
    sides: tuple[list[Row], list[Row]] = ([], [])
    for row, is_out in zip(rows, out, strict=True):
        sides[is_out].append(row)
    return sides


def write(name: str, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Put rows into a file of the experiments, as JSON lines; returns it."""
    PLACE.mkdir(parents=True, exist_ok=True)
    file = PLACE / name
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file

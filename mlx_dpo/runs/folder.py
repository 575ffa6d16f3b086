"""The folders of a run: where it may write, and the files that it keeps.

The three folders of a run are the model it starts from (only read), its own folder of settings,
metrics and checkpoints, and the finished model.
"""

import json
import os
import platform
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import version
from itertools import combinations
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_dpo import __version__
from mlx_dpo.convert.sources import find, name_of
from mlx_dpo.errors import DiskError, UsageError
from mlx_dpo.files import append, flush_file, make_folder, write_file
from mlx_dpo.models.device import architecture, tf32_enabled
from mlx_dpo.runs.config import RunConfig
from mlx_dpo.runs.guards import HOLDER, LOCK, check_free

LOGS = ("metrics.jsonl", "timings.jsonl", "samples.jsonl")


class RunFolder:
    """``runs/<name>/`` and its files.

    ``metrics.jsonl`` holds a line a step, deterministic values only; ``timings.jsonl`` holds
    what differs from machine to machine; ``samples.jsonl`` the answers given on the way. All are
    cut back to a checkpoint on resume.

    Args:
        path: The folder; made if it is not there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        make_folder(path)

    def write_json(self, name: str, value: Any) -> None:
        """Write a file of the folder whole."""
        self.write_text(name, json.dumps(value, indent=2, ensure_ascii=False) + "\n")

    def write_text(self, name: str, text: str) -> None:
        """Write a file of the folder whole."""
        write_file(self.path / name, text)

    def append(self, name: str, row: dict[str, Any]) -> None:
        """Add a line to a .jsonl file."""
        append(self.path / name, json.dumps(row) + "\n", flush=False)

    def flush(self) -> None:
        """Wait until the lines are on the platter: a checkpoint must not know more than they do."""
        for name in LOGS:
            if (self.path / name).is_file():
                flush_file(self.path / name)

    def last_rows(self, name: str, step: int) -> list[dict[str, Any]]:
        """The rows of a .jsonl file from `step` on."""
        file = self.path / name
        if not file.is_file():
            return []
        rows: list[dict[str, Any]] = []
        for line in reversed(file.read_text(encoding="utf-8").splitlines()):
            row = json.loads(line)
            if row["step"] < step:
                break
            rows.insert(0, row)
        return rows

    def cut_to(self, step: int) -> None:
        """Forget the lines of `step` and later: they are about to be made again."""
        for name in LOGS:
            file = self.path / name
            if file.is_file():
                text = file.read_text(encoding="utf-8", errors="replace")
                lines = text.splitlines(keepends=True)
                write_file(file, "".join(_lines_before(lines, step)))


def _lines_before(lines: Iterable[str], step: int) -> Iterable[str]:
    for line in lines:
        with suppress(ValueError, TypeError, KeyError):  # what a killed run left half written
            if line.endswith("\n") and json.loads(line)["step"] < step:
                yield line


def new_run_dir(name: str, parent: Path = Path("runs")) -> Path:
    """Make and return the folder of a new run.

    Raises:
        DiskError: If it can't be made.
    """
    make_folder(parent)
    while True:
        path = next_run_dir(name, parent)
        try:
            path.mkdir()
            return path
        except FileExistsError:  # another run began at the same moment
            continue
        except OSError as error:
            raise DiskError(f"{path}: cannot be made: {error.strerror}") from None


def next_run_dir(name: str, parent: Path = Path("runs")) -> Path:
    """``runs/<name>-<n>`` with the first n above every one in use."""
    pattern = re.compile(re.escape(name) + r"-(\d+)")
    entries = parent.iterdir() if parent.is_dir() else ()
    taken = [int(m[1]) for entry in entries if (m := pattern.fullmatch(entry.name))]
    return parent / f"{name}-{max(taken, default=0) + 1}"


def check_folders(config: RunConfig) -> None:
    """Refuse folders of a run that would write into one another, or over somebody's work.

    Raises:
        UsageError: See `check_places`; also if the model is not there.
    """
    assert config.model is not None
    given = find(config.model)
    out = out_of(config)
    run = Path(config.run_dir) if config.run_dir else next_run_dir(name_of(config.model))
    overwrite = config.overwrite or is_result_of(config, out)
    check_places(given, out, run, overwrite=overwrite)


def out_of(config: RunConfig) -> Path:
    """The folder of the finished model."""
    assert config.model is not None
    return Path(config.out or f"checkpoints/{name_of(config.model)}-dpo")


def is_result_of(config: RunConfig, out: Path) -> bool:
    """Whether `out` is what this very run wrote before it was killed, late in its end.

    A run that has not begun yet has no result, whatever another with the same settings left.
    """
    if not config.run_dir or not (Path(config.run_dir) / "config.toml").is_file():
        return False
    try:
        there = json.loads((out / "dpo.json").read_text(encoding="utf-8"))["settings"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    where = {"run_dir": None}  # the same folder, however it was spelled then
    return bool({**there, **where} == {**asdict(config), **where})


def check_places(source: Path, out: Path, run: Path, *, overwrite: bool) -> None:
    """Refuse folders that would write into one another, or over somebody's work.

    Args:
        source: The model.
        out: Where the finished checkpoint goes.
        run: Where the run goes.
        overwrite: Whether an `out` that a run made may be replaced.

    Raises:
        UsageError: If they overlap, or would lie under a file, or `out` is there and may not be
            replaced.
    """
    named = [("--model", source), ("--out", out), ("--run-dir", run)]
    for (one, a), (other, b) in combinations([(n, p.resolve()) for n, p in named], 2):
        if a == b or a in b.parents or b in a.parents:
            raise UsageError(f"{other} {b} and {one} {a} overlap; the three folders must be apart")
    for option, place in (("--out", out), ("--run-dir", run)):
        above = next((p for p in place.parents if os.path.lexists(p)), Path())
        if not above.is_dir():
            raise UsageError(f"{place}: {above} is a file; {option} takes a folder")
    if not os.path.lexists(out):
        return
    if not overwrite:
        raise UsageError(f"{out}: exists; pass --overwrite to replace it, or another --out")
    if out.is_symlink() or not (out / "dpo.json").is_file():
        raise UsageError(f"{out}: exists and no run made it (no dpo.json); choose another --out")


def given_run_dir(config: RunConfig, *, resume: bool) -> Path | None:
    """The folder that the settings name for the run, which must be free or its own."""
    if config.run_dir is None:
        return None
    path = Path(config.run_dir)
    check_free(path)
    if path.exists() and not path.is_dir():
        raise UsageError(f"{path}: is a file; --run-dir takes a folder")
    check_ours(path, resume=resume)
    return path


def check_ours(path: Path, *, resume: bool) -> None:
    """Refuse a folder that holds what is not to be resumed, or what no run made.

    Raises:
        UsageError: If it does.
    """
    if (path / "config.toml").exists() and not resume:
        raise UsageError(f"{path}: holds a run; pass --resume to continue it, or another one")
    others = path.is_dir() and any(entry.name not in (LOCK, HOLDER) for entry in path.iterdir())
    if others and not (path / "config.toml").exists():
        raise UsageError(f"{path}: is not empty, and no run made it; choose another --run-dir")


def environment() -> dict[str, Any]:
    """Versions and device; nothing that names a person or a machine."""
    info = mx.device_info()
    return {
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
        "device": info.get("device_name", str(mx.default_device())),
        "architecture": architecture(),
        "tf32": tf32_enabled(),
        "mlx-dpo": __version__,  # a clone that is not installed has no metadata
        **{name: version(name) for name in ("mlx", "mlx-lm", "numpy", "transformers")},
    }

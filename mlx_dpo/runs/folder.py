"""The folders of a run: where it may write, and the files it keeps.

A run reads the model it starts from, and writes a folder of settings, metrics and checkpoints
(``runs/<name>-<n>``, `RunFolder`) and the finished model (``checkpoints/<name>-dpo``, `out_of`).
All runs started in one folder share caches below ``runs`` (`CACHES`): token ids, reference
log-probs and converted models.
"""

import json
import os
import platform
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from importlib.metadata import version
from itertools import combinations, count, zip_longest
from pathlib import Path
from typing import Any
from zlib import crc32

import mlx.core as mx

from mlx_dpo.convert.sources import find, name_of, read_record
from mlx_dpo.convert.store import CONVERTED
from mlx_dpo.errors import UsageError, disk_error
from mlx_dpo.files import (
    append,
    flush_file,
    is_leftover,
    make_folder,
    remove_abandoned,
    remove_folder,
    write_file,
)
from mlx_dpo.manifest import DIGESTS, digest
from mlx_dpo.models.device import architecture, blas, tf32_enabled
from mlx_dpo.paths import check_target, entries_of, overlap
from mlx_dpo.preferences.store import FOLDER as TOKENS
from mlx_dpo.records import VERSION
from mlx_dpo.runs.config import OF_PAIRS, RunConfig, read_settings
from mlx_dpo.runs.guards import HOLDER, LOCK, check_free
from mlx_dpo.runs.supervise import CRASHES
from mlx_dpo.training.loss import PAIR_METRICS

CHECKED = ("metrics.jsonl", "samples.jsonl")  # logs that follow from the seed
LOGS = (*CHECKED, "timings.jsonl")
RESULT = "result.json"  # a run that has it is finished
SEALED = (
    *(RESULT, "config.toml", "environment.json", "split.json", "lengths.json", "held_out.json"),
    *LOGS,
)
REFERENCES = Path("runs/.reference")  # log-probs; see `reference_cache`
PLANS = Path("runs/.plans")  # solutions of memory budgets; see `plan`
CACHES = (TOKENS, REFERENCES, CONVERTED, PLANS)
MAX_UNUSED = 30 * 24 * 3600.0  # seconds; cache entries that nothing used for longer are deleted


class RunFolder:
    """``runs/<name>/`` and its files.

    ``metrics.jsonl`` holds a line a step, deterministic values only; ``timings.jsonl`` holds
    what differs from machine to machine; ``samples.jsonl`` the answers during training. All are
    cut back to a checkpoint on resume.

    Args:
        path: The folder; made if it is not there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        make_folder(path)

    def write_json(self, name: str, value: Any) -> Path:
        """Write a file of the folder whole; returns where."""
        self.write_text(name, _json_text(value))
        return self.path / name

    def write_text(self, name: str, text: str) -> None:
        """Write a file of the folder whole."""
        write_file(self.path / name, text)

    def finish(self, result: dict[str, Any]) -> None:
        """Write the result of a run, its last file, and before it the digests of all the others."""
        text = _json_text(result)
        self.write_json(DIGESTS, {**_digests(self.path), RESULT: digest(text.encode())})
        self.write_text(RESULT, text)

    def append(self, name: str, row: dict[str, Any]) -> None:
        """Add a line to a .jsonl file."""
        append(self.path / name, json.dumps(row) + "\n")

    def flush(self) -> None:
        """Wait until the disk has the lines: a checkpoint must not be ahead of them."""
        for name in LOGS:
            if (self.path / name).is_file():
                flush_file(self.path / name)

    def evaluations_and_steps(self, since: int) -> list[dict[str, Any]]:
        """What other ranks need of metrics.jsonl: evaluations, and steps from `since` on."""
        rows = self.last_rows("metrics.jsonl", 0)
        return [row for row in rows if "held_out" in row or row["step"] >= since]

    def last_rows(self, name: str, step: int) -> list[dict[str, Any]]:
        """The rows of a .jsonl file from `step` on, but for lines that no run writes."""
        rows: list[dict[str, Any]] = []
        for line in reversed(self._lines(name)):
            if (row := _row(name, line)) is None:
                continue
            if row["step"] < step:
                break
            rows.append(row)
        return rows[::-1]

    def checks(self) -> dict[str, str]:
        """CRC-32 of each line of the logs that follow from the seed, eight digits a line."""
        return {
            name: "".join(f"{crc32(line):08x}" for line in self._lines(name)) for name in CHECKED
        }

    def damaged_lines(self, checks: dict[str, str]) -> list[str]:
        """What is not as it was when `checks` were made: a line for each log, with the first place.

        Args:
            checks: From a checkpoint; lines that were logged after it are not looked at.
        """
        found = []
        for name, digits in checks.items():
            expected = [digits[i : i + 8] for i in range(0, len(digits), 8)]
            lines = [f"{crc32(line):08x}" for line in self._lines(name)]
            pairs = zip_longest(expected, lines[: len(expected)])
            wrong = [number for number, (a, b) in enumerate(pairs, start=1) if a != b]
            if wrong:
                more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
                found.append(f"{self.path / name}:{wrong[0]}: not the line that was written{more}")
        return found

    def _lines(self, name: str) -> list[bytes]:
        file = self.path / name
        return file.read_bytes().splitlines(keepends=True) if file.is_file() else []

    def cut_to(self, step: int) -> None:
        """Remove the lines of `step` and later, which are about to be written again.

        Damaged ones go too, and half a line of a killed run.
        """
        for name in LOGS:
            if (self.path / name).is_file():
                rows = [(line, _row(name, line)) for line in self._lines(name)]
                kept = [line for line, row in rows if row and row["step"] < step]
                write_file(self.path / name, b"".join(kept))


def _row(name: str, line: bytes) -> dict[str, Any] | None:
    """A line of a log; None where no run writes such a line."""
    try:
        row = json.loads(line)
        figures = row.get("held_out", row)
        is_whole = line.endswith(b"\n") and isinstance(row["step"], int)
        if name == "metrics.jsonl" and "skipped" not in row:
            is_whole &= all(isinstance(figures[key], int | float) for key in PAIR_METRICS)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return row if is_whole else None


def _json_text(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _digests(run: Path) -> dict[str, str]:
    return {name: digest((run / name).read_bytes()) for name in SEALED if (run / name).is_file()}


def changed_record(run: Path) -> list[str]:
    """What tells of a finished run and is not as the run left it, a line each.

    Nothing is known of runs that did not finish, and of those of earlier versions.
    """
    if not ((run / RESULT).is_file() and (run / DIGESTS).is_file()):
        return []
    now = _digests(run)
    try:
        then = json.loads((run / DIGESTS).read_bytes())
        changed = [name for name in SEALED if then.get(name) != now.get(name)]
    except (ValueError, AttributeError, RecursionError):
        changed = [DIGESTS]
    files = [run / name for name in changed]
    return [f"{file}: {'changed' if file.exists() else 'gone'} since the run" for file in files]


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
            raise disk_error(path, error, "cannot be made") from None


def next_run_dir(name: str, parent: Path = Path("runs")) -> Path:
    """``runs/<name>-<n>`` with the first n above every one in use."""
    pattern = re.compile(re.escape(name) + r"-(\d+)")
    entries = parent.iterdir() if parent.is_dir() else ()
    taken = [int(m[1]) for entry in entries if (m := pattern.fullmatch(entry.name))]
    return parent / f"{name}-{max(taken, default=0) + 1}"


def out_of(config: RunConfig) -> Path:
    """The folder of the finished model; where --out names none, one that no other run has."""
    if config.out:
        return Path(config.out)
    return next(
        out for out in default_outs(config) if is_free(config, out) or is_result_of(config, out)
    )


def default_outs(config: RunConfig) -> Iterator[Path]:
    """Names that the finished model gets without --out, in their order, whatever has them."""
    assert config.model is not None
    first = Path(f"checkpoints/{name_of(config.model)}-dpo")
    yield first
    for number in count(2):
        yield first.with_name(f"{first.name}-{number}")


def is_free(config: RunConfig, out: Path) -> bool:
    """Whether a finished model may get this name."""
    return config.overwrite or not os.path.lexists(out)


def is_result_of(config: RunConfig, out: Path) -> bool:
    """Whether `out` was written by this very run, which was killed before it could finish.

    A run that has not begun yet has no result, whatever another with the same settings wrote.
    """
    if not config.run_dir or not (Path(config.run_dir) / "config.toml").is_file():
        return False
    record, run = read_record(out), Path(config.run_dir).resolve().name
    settings = record.get("settings")
    # Another run may have the same settings. Earlier versions did not write the run's name.
    if not isinstance(settings, dict) or record.get("run", run) != run:
        return False
    ignored = {"run_dir": None, "report_to": None}  # the same folder, however it was spelled then
    # Not decided yet, where the caller left them open: the pairs have not been read.
    ignored |= {name: None for name in OF_PAIRS if getattr(config, name) is None}
    return {**settings, **ignored} == {**asdict(config), **ignored}


def check_folders(config: RunConfig) -> None:
    """Refuse folders of a run that would write into one another, or over somebody's work.

    Raises:
        UsageError: If the model is not there, two of the folders overlap, one would lie below a
            file, or the finished model's is there and may not be replaced.
    """
    assert config.model is not None
    source, out = find(config.model), out_of(config)
    run = Path(config.run_dir) if config.run_dir else next_run_dir(name_of(config.model))
    folders = {"--model": source, "--out": out, "--run-dir": run}
    if config.adapter is not None:
        folders["--adapter"] = find(config.adapter)
    resolved = [(option, folder.resolve()) for option, folder in folders.items()]
    for (option, a), (other, b) in combinations(resolved, 2):
        if overlap(a, b):
            raise UsageError(f"{other} {b} and {option} {a} overlap; choose separate folders")
    for option in ("--out", "--run-dir"):
        folder = folders[option]
        above = next((p for p in folder.parents if os.path.lexists(p)), Path())
        if not above.is_dir():
            raise UsageError(f"{folder}: {above} is a file; {option} takes a folder")
    may_be_there = config.overwrite or is_result_of(config, out)
    check_target(
        out,
        [],
        overwrite=may_be_there,
        is_ours=lambda folder: bool(read_record(folder)),
        made_by="run",
    )


def given_run_dir(config: RunConfig, *, resume: bool) -> Path | None:
    """The run's folder as named in the settings, which no other run may hold; None if unnamed.

    Raises:
        LockedError: If another process holds it.
        UsageError: As for `check_ours`, or if it is a file.
    """
    if config.run_dir is None:
        return None
    path = Path(config.run_dir)
    check_free(path)
    if path.exists() and not path.is_dir():
        raise UsageError(f"{path}: is a file; --run-dir takes a folder")
    check_ours(path, resume=resume)
    return path


def with_its_date(config: RunConfig) -> RunConfig:
    """Settings with the date at which the run to go on with began."""
    own = Path(config.run_dir or "") / "config.toml"
    if config.date is not None or not own.is_file():
        return config
    return replace(config, date=read_settings(own).get("date"))


def check_ours(path: Path, *, resume: bool) -> None:
    """Refuse a folder with a run that is not to be resumed, or with files that no run made.

    Raises:
        UsageError: If it does.
    """
    if (path / "config.toml").exists() and not resume:
        raise UsageError(f"{path}: holds a run; pass --resume to continue it, or another one")
    # A supervised run may have crashed, or been killed, before it wrote anything else.
    ours = (LOCK, HOLDER, CRASHES)
    names = [entry.name for entry in entries_of(path)] if path.is_dir() else []
    others = any(name not in ours and not is_leftover(name) for name in names)
    if others and not (path / "config.toml").exists():
        raise UsageError(f"{path}: is not empty, and no run made it; choose another --run-dir")


def prune_caches(source: Path) -> None:
    """Delete cache entries that nothing has used for `MAX_UNUSED` seconds, and leftovers.

    Whoever reads an entry marks it by `files.mark_used`. Leftovers are what killed writers left
    half done.

    Args:
        source: The run's model; it stays, even if it lies in an entry that was named by its path.
    """
    oldest, used = time.time() - MAX_UNUSED, source.resolve()
    for cache in filter(Path.is_dir, CACHES):
        remove_abandoned(cache)
        for entry in cache.iterdir():
            if is_leftover(entry.name):
                continue
            with suppress(OSError):  # as above, or another run has deleted it
                is_used = entry.resolve() in (used, *used.parents)
                if entry.stat().st_mtime < oldest and not is_used:
                    remove_folder(entry) if entry.is_dir() else entry.unlink()


# What the last bits of a number depend on.
_OF_BITS = ("device", "architecture", "tf32", "blas", "mlx", "mlx-lm", "mlx-dpo")


def changed_environment(run: Path) -> list[str]:
    """What a resumed run computes with that differs from what it began with, a line each."""
    try:
        began = json.loads((run / "environment.json").read_text(encoding="utf-8"))
        now = environment()
        return [
            f"{name} was {began[name] or 'none'}, and is {now[name] or 'none'}"
            for name in _OF_BITS
            if name in began and began[name] != now[name]
        ]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return []  # a run of an older version; the identity of the run is checked elsewhere


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
        "blas": blas(),
        "mlx-dpo": VERSION,  # a clone that is not installed has no metadata
        **{name: version(name) for name in ("mlx", "mlx-lm", "numpy", "transformers")},
    }

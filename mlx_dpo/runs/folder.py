"""The folder of a run: what was asked, what happened, how long it took."""

import json
import platform
import re
from collections.abc import Iterable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_dpo.errors import DiskError
from mlx_dpo.files import append, flush_file, make_folder, write_file

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
    """Make and return ``runs/<name>-<n>`` with the first n above every one in use."""
    make_folder(parent)
    pattern = re.compile(re.escape(name) + r"-(\d+)")
    taken = [int(m[1]) for entry in parent.iterdir() if (m := pattern.fullmatch(entry.name))]
    number = max(taken, default=0) + 1
    while True:
        path = parent / f"{name}-{number}"
        try:
            path.mkdir()
            return path
        except FileExistsError:  # another run began at the same moment
            number += 1
        except OSError as error:
            raise DiskError(f"{path}: cannot be made: {error.strerror}") from None


def environment() -> dict[str, Any]:
    """Versions and device; nothing that names a person or a machine."""
    info = mx.device_info()
    return {
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
        "device": info.get("device_name", str(mx.default_device())),
        **{name: version(name) for name in ("mlx-dpo", "mlx", "mlx-lm", "numpy", "transformers")},
    }

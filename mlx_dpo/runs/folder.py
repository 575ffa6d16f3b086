"""The folder of a run: what was asked, what happened, how long it took."""

import json
import platform
import re
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_dpo.errors import DiskError
from mlx_dpo.files import write_file


class RunFolder:
    """``runs/<name>/`` and its files.

    ``metrics.jsonl`` holds a line a step, deterministic values only; ``timings.jsonl`` holds
    what differs from machine to machine. Both are cut back to a checkpoint on resume.

    Args:
        path: The folder; made if it is not there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DiskError(f"{path}: cannot be made: {error.strerror}") from None

    @property
    def is_finished(self) -> bool:
        """Whether the run came to its end."""
        return (self.path / "result.json").is_file()

    def write_json(self, name: str, value: Any) -> None:
        """Write a file of the folder whole."""
        self.write_text(name, json.dumps(value, indent=2, ensure_ascii=False) + "\n")

    def write_text(self, name: str, text: str) -> None:
        """Write a file of the folder whole."""
        write_file(self.path / name, text)

    def read_json(self, name: str) -> Any:
        """Read a file that `write_json` wrote."""
        return json.loads((self.path / name).read_text(encoding="utf-8"))

    def append(self, name: str, row: dict[str, Any]) -> None:
        """Add a line to a .jsonl file."""
        try:
            with (self.path / name).open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise DiskError(f"{self.path / name}: not written: {error.strerror}") from None

    def cut_to(self, step: int) -> None:
        """Forget the lines of `step` and later: they are about to be made again."""
        for name in ("metrics.jsonl", "timings.jsonl"):
            file = self.path / name
            if file.is_file():
                lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
                write_file(file, "".join(_lines_before(lines, step)))


def _lines_before(lines: Iterable[str], step: int) -> Iterable[str]:
    for line in lines:
        # A line without its end is what a killed run left half written.
        if line.endswith("\n") and json.loads(line)["step"] < step:
            yield line


def next_run_dir(name: str, parent: Path = Path("runs")) -> Path:
    """``runs/<name>-<n>`` with the first n above every one in use."""
    pattern = re.compile(re.escape(name) + r"-(\d+)")
    taken = [
        int(match[1])
        for entry in (parent.iterdir() if parent.is_dir() else ())
        if (match := pattern.fullmatch(entry.name))
    ]
    return parent / f"{name}-{max(taken, default=0) + 1}"


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

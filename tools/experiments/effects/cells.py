"""A study cut into cells: a folder each, with what it measured; a finished one stays as it is."""

import hashlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mlx_dpo.files import write_file
from mlx_dpo.records import PreferenceExample
from mlx_dpo.training.reference import example_digest

RESULT = "result.json"

Row = dict[str, Any]


def cell(folder: Path, settings: Row, measure: Callable[[], Row]) -> Row:
    """What a cell measures: as an earlier start left it, or now.

    The result appears whole or not at all, so that a cell that was stopped begins again.

    Args:
        folder: Of the cell.
        settings: All that decides the result, as JSON.
        measure: Returns the figures, as JSON.

    Raises:
        SystemExit: If the folder holds the result of other settings.
    """
    file = folder / RESULT
    if file.is_file():
        found: Row = json.loads(file.read_text("utf-8"))
        if found["settings"] != settings:
            changed = [key for key in settings if found["settings"].get(key) != settings[key]]
            raise SystemExit(
                f"{file}: was measured with another {', '.join(changed) or 'set of settings'}; "
                "remove it, or name another --out"
            )
        return found
    print(f"{folder} ...", file=sys.stderr, end=" ", flush=True)
    start = time.process_time()
    figures = measure()
    seconds = round(time.process_time() - start, 1)
    folder.mkdir(parents=True, exist_ok=True)
    result = {"settings": settings, "cpu_seconds": seconds, **figures}
    write_file(file, json.dumps(result) + "\n")
    print(f"{seconds} CPU-s", file=sys.stderr, flush=True)
    return result


def results(folder: Path) -> dict[str, Row]:
    """All finished cells below a folder, by their path below it."""
    return {
        str(file.parent.relative_to(folder)): json.loads(file.read_text("utf-8"))
        for file in sorted(folder.rglob(RESULT))
    }


def digest(examples: Sequence[PreferenceExample]) -> str:
    """Stands for the token ids of pairs in the settings of a cell."""
    return hashlib.sha256(b"".join(map(example_digest, examples))).hexdigest()[:16]

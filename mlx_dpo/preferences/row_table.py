"""The table of a store's rows: gathered row by row, kept as columns, checked when read again."""

from array import array
from typing import Any

import numpy as np
import numpy.typing as npt

from mlx_dpo.preferences.problems import CODES
from mlx_dpo.records import PreferenceExample

CUT, MERGED, CHOSEN_CLOSED, REJECTED_CLOSED = 1, 2, 4, 8  # flags of a row
# Columns of the table; `id_bounds` and `bounds` have one number more than there are rows and
# three times as many as rows.
COLUMNS: dict[str, Any] = {
    "number": np.int64,  # of the row in its file, counted from 1
    "line": np.int64,
    "code": np.uint8,  # 0 where the row is kept, else 1 + its place in CODES
    "flags": np.uint8,
    "kind": np.int32,
    "prompt": np.uint8,  # (R, 16): digest of the prompt
    "id": np.uint8,  # all ids as UTF-8, joined
    "id_bounds": np.int64,  # (R + 1,)
    "bounds": np.int64,  # (3 R + 1,): prompt, chosen and rejected of each row
}


class RowTable:
    """What is known of the rows of a file while it is read; a few dozen bytes a row."""

    def __init__(self) -> None:
        self.number, self.line = array("q"), array("q")
        self.code, self.flags = bytearray(), bytearray()
        self.kind, self.kinds = array("i"), dict[str, int]()
        self.prompt, self.id = bytearray(), bytearray()
        self.id_bounds, self.bounds = array("q", [0]), array("q", [0])

    def __len__(self) -> int:
        return len(self.number)

    def add(self, number: int, line: int, kind: str, name: str, prompt: bytes) -> int:
        """Note a row; returns its place in the table."""
        self.number.append(number)
        self.line.append(line)
        self.code.append(0)
        self.flags.append(0)
        self.kind.append(self.kinds.setdefault(kind, len(self.kinds)))
        self.prompt += prompt
        self.id += name.encode()
        self.id_bounds.append(len(self.id))
        return len(self) - 1

    def leave_out(self, row: int, code: str) -> None:
        """Say why a row is left out; the first reason stays."""
        if not self.code[row]:
            self.code[row] = 1 + CODES.index(code)

    def add_bounds(self, example: PreferenceExample) -> None:
        """Say where the ids of the next row lie."""
        for ids in example:
            self.bounds.append(self.bounds[-1] + len(ids))

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The columns, by name."""
        found = {name: np.array(getattr(self, name), dtype) for name, dtype in COLUMNS.items()}
        return {**found, "prompt": found["prompt"].reshape(-1, 16)}


def is_sound(columns: dict[str, npt.NDArray[Any]], num_kinds: int, num_tokens: int) -> bool:
    """Whether a table can be used without reading past the end of anything."""
    if {name: column.dtype for name, column in columns.items()} != COLUMNS:
        return False
    rows = len(columns["number"])
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(COLUMNS, (rows,))
    shapes |= {"prompt": (rows, 16), "id": columns["id"].shape}
    shapes |= {"id_bounds": (rows + 1,), "bounds": (3 * rows + 1,)}
    if {name: column.shape for name, column in columns.items()} != shapes:
        return False
    ends = (("bounds", num_tokens), ("id_bounds", columns["id"].size))
    return (
        all(_rises(columns[name], end) for name, end in ends)
        and bool((columns["code"] <= len(CODES)).all())
        and bool(((columns["kind"] >= 0) & (columns["kind"] < num_kinds)).all())
    )


def _rises(bounds: npt.NDArray[Any], end: int) -> bool:
    return bounds[0] == 0 and bounds[-1] == end and bool((np.diff(bounds) >= 0).all())

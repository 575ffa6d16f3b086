"""Tokenised pairs on disk: written once, memory-mapped afterwards, so that their number is free.

A store is a folder:

    tokens.bin         the ids of all pairs, int32, little-endian, one after the other
    rows.safetensors   a few numbers a row: where its ids lie, kind, id, why it is left out
    problems.jsonl     what is wrong with the file, a line a problem
    store.json         kinds, counts, and size and sha256 of the files above

Rows left out stay in the table, without ids: what is held out must not depend on them.
"""

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from mmap import mmap
from pathlib import Path
from typing import Any, BinaryIO, overload

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from mlx_dpo.preferences.problems import CODES, Problems, mapped
from mlx_dpo.records import PreferenceExample

CUT, MERGED, CHOSEN_CLOSED, REJECTED_CLOSED = 1, 2, 4, 8  # flags of a row

# Columns of the table; `id_bounds` and `bounds` have one number more than there are rows and
# three times as many as rows.
_COLUMNS: dict[str, Any] = {
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
_FILES = ("tokens.bin", "rows.safetensors", "problems.jsonl")
_NO_TOKENS = np.zeros(0, dtype=np.int32)


class StoredExamples(Sequence[PreferenceExample]):
    """Some pairs of a store, read from the disk when they are asked for.

    Args:
        tokens: int32 (T,), memory-mapped.
        bounds: int64 (3 R + 1,), where each part begins.
        rows: int64 (N,), the pairs, as rows of the store.
    """

    def __init__(
        self,
        tokens: npt.NDArray[np.int32],
        bounds: npt.NDArray[np.int64],
        rows: npt.NDArray[np.int64],
    ) -> None:
        self._tokens = tokens
        self._bounds = bounds
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> PreferenceExample: ...
    @overload
    def __getitem__(self, index: slice) -> list[PreferenceExample]: ...
    def __getitem__(self, index: int | slice) -> PreferenceExample | list[PreferenceExample]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        row = int(self._rows[index])
        a, b, c, d = self._bounds[3 * row : 3 * row + 4].tolist()
        ids = self._tokens[a:d].tolist()
        return PreferenceExample(ids[: b - a], ids[b - a : c - a], ids[c - a :])

    def lengths(self) -> npt.NDArray[np.int64]:
        """int64 (N, 3): tokens of prompt, chosen and rejected, without reading any."""
        found: npt.NDArray[np.int64] = np.diff(self._bounds).reshape(-1, 3)[self._rows]
        return found


class JoinedExamples(Sequence[PreferenceExample]):
    """Several sequences of pairs, one after the other, as one."""

    def __init__(self, *parts: Sequence[PreferenceExample]) -> None:
        self._parts = parts

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    @overload
    def __getitem__(self, index: int) -> PreferenceExample: ...
    @overload
    def __getitem__(self, index: slice) -> list[PreferenceExample]: ...
    def __getitem__(self, index: int | slice) -> PreferenceExample | list[PreferenceExample]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = index + len(self) if index < 0 else index
        for part in self._parts:
            if 0 <= place < len(part):
                return part[place]
            place -= len(part)
        raise IndexError(index)

    def lengths(self) -> npt.NDArray[np.int64]:
        """int64 (N, 3): tokens of prompt, chosen and rejected."""
        return np.concatenate([lengths(part) for part in self._parts])


def lengths(examples: Sequence[PreferenceExample]) -> npt.NDArray[np.int64]:
    """int64 (N, 3): tokens of prompt, chosen and rejected of each pair."""
    if isinstance(examples, StoredExamples | JoinedExamples):
        return examples.lengths()
    return np.array([list(map(len, e)) for e in examples], dtype=np.int64).reshape(-1, 3)


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
        found = {name: np.array(getattr(self, name), dtype) for name, dtype in _COLUMNS.items()}
        return {**found, "prompt": found["prompt"].reshape(-1, 16)}


@dataclass(frozen=True)
class TokenStore:
    """The rows of one preference file, tokenised.

    ``read == kept + sum(dropped)``, always.

    Attributes:
        tokens: int32 (T,), memory-mapped.
        columns: The row table; see `_COLUMNS`.
        kinds: Names of the kinds.
        read: Rows of the file.
        unusable: Rows of the file that are not in the table, by code.
        cut_short: Whether the file has more rows, which could not be read.
        log: What is wrong with the file, a line a problem, on disk; None where nothing is.
        token_digest: sha256 of the ids.
        largest_id: Largest token id; -1 where there is none.
    """

    tokens: npt.NDArray[np.int32]
    columns: dict[str, npt.NDArray[Any]]
    kinds: list[str]
    read: int
    unusable: Counter[str]
    cut_short: bool
    log: mmap | None
    token_digest: str
    largest_id: int

    def __len__(self) -> int:
        return len(self.columns["number"])

    @property
    def is_kept(self) -> npt.NDArray[np.bool_]:
        """Bool (R,): whether a row can be trained on."""
        kept: npt.NDArray[np.bool_] = self.columns["code"] == 0
        return kept

    @property
    def dropped(self) -> Counter[str]:
        """Rows left out, by code."""
        codes = self.columns["code"][~self.is_kept]
        return self.unusable + Counter(CODES[code - 1] for code in codes.tolist())

    def prompts(self) -> list[bytes]:
        """Digest of each row's prompt."""
        joined = self.columns["prompt"].tobytes()
        return [joined[i : i + 16] for i in range(0, len(joined), 16)]

    def kinds_of(self, rows: npt.NDArray[np.int64]) -> list[str]:
        """Kind of each of some rows."""
        return [self.kinds[kind] for kind in self.columns["kind"][rows].tolist()]

    def ids_of(self, rows: npt.NDArray[np.int64]) -> list[str]:
        """Id of each of some rows."""
        joined, bounds = self.columns["id"].tobytes(), self.columns["id_bounds"].tolist()
        return [joined[bounds[row] : bounds[row + 1]].decode() for row in rows.tolist()]

    def examples(self, rows: npt.NDArray[np.int64]) -> StoredExamples:
        """The pairs of some rows, which must be kept ones."""
        return StoredExamples(self.tokens, self.columns["bounds"], rows)

    def tell(self, problems: Problems, file: str) -> None:
        """Pass on what is wrong with the file, which may have had another name then."""
        if self.log is not None:
            self.log.seek(0)
            problems.add_log(iter(self.log.readline, b""), file)
        problems.cut_short |= self.cut_short


def seal(
    folder: Path,
    key: str,
    table: RowTable,
    *,
    read: int,
    unusable: Counter[str],
    cut_short: bool,
) -> None:
    """Complete a store whose ``tokens.bin`` and ``problems.jsonl`` have been written.

    Args:
        folder: The store.
        key: What the ids depend on; the store is opened under the same.
        table: Its rows.
        read: Rows of the file.
        unusable: Rows that are not in the table, by code.
        cut_short: Whether there are more that could not be read.
    """
    (folder / "rows.safetensors").write_bytes(save(table.arrays()))
    files = {name: _file_record(folder / name)[0] for name in _FILES}
    record = {
        "key": key,
        "kinds": list(table.kinds),
        "read": read,
        "unusable": unusable,
        "cut_short": cut_short,
        "files": files,
    }
    (folder / "store.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def open_store(folder: Path, key: str) -> TokenStore | None:
    """A store as it was written; None where it is missing, damaged or another one."""
    try:
        record = json.loads((folder / "store.json").read_text(encoding="utf-8"))
        found = {name: _file_record(folder / name) for name in _FILES}
        if record["key"] != key or {n: f[0] for n, f in found.items()} != record["files"]:
            return None
        columns = load((folder / "rows.safetensors").read_bytes())
        with (folder / "problems.jsonl").open("rb") as file:
            log = mapped(file)
        token_record, largest_id = found["tokens.bin"]
        size = token_record["size"]
        if not _is_sound(columns, len(record["kinds"]), size // 4):
            return None
        tokens = _NO_TOKENS
        if size:
            tokens = np.memmap(folder / "tokens.bin", dtype="<i4", mode="r")
        return TokenStore(
            tokens,
            columns,
            list(record["kinds"]),
            int(record["read"]),
            Counter(record["unusable"]),
            bool(record["cut_short"]),
            log,
            token_record["sha256"],
            largest_id,
        )
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RecursionError):
        return None


def write_ids(file: BinaryIO, example: PreferenceExample) -> None:
    """Append the ids of a pair to ``tokens.bin``."""
    file.write(np.array([*example[0], *example[1], *example[2]], dtype="<i4").tobytes())


def _file_record(path: Path) -> tuple[dict[str, Any], int]:
    """Size and sha256 of a file and, read as int32, its largest number; a block at a time."""
    digest, size, largest = hashlib.sha256(), 0, -1
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            size += len(block)
            numbers = np.frombuffer(block, dtype="<i4", count=len(block) // 4)
            largest = max(largest, int(numbers.max(initial=-1)))
    return {"size": size, "sha256": digest.hexdigest()}, largest


def _is_sound(columns: dict[str, npt.NDArray[Any]], num_kinds: int, num_tokens: int) -> bool:
    """Whether a table can be used without reading past the end of anything."""
    if {name: column.dtype for name, column in columns.items()} != _COLUMNS:
        return False
    rows = len(columns["number"])
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(_COLUMNS, (rows,))
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

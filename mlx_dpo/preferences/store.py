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
from collections import Counter
from dataclasses import dataclass
from mmap import mmap
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from mlx_dpo.preferences.examples import StoredExamples
from mlx_dpo.preferences.problems import CODES, Problems, mapped
from mlx_dpo.preferences.row_table import RowTable, is_sound
from mlx_dpo.records import PreferenceExample

_FILES = ("tokens.bin", "rows.safetensors", "problems.jsonl")
_NO_TOKENS = np.zeros(0, dtype=np.int32)


@dataclass(frozen=True)
class TokenStore:
    """The rows of one preference file, tokenised.

    ``read == kept + sum(dropped)``, always.

    Attributes:
        tokens: int32 (T,), memory-mapped.
        columns: The row table; see `row_table.COLUMNS`.
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
        if not is_sound(columns, len(record["kinds"]), size // 4):
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

"""Tokenized pairs on disk: written once, memory-mapped afterwards, found again by later runs.

A store is a folder, named by a hash of all that its ids depend on:

    tokens.bin         the ids of all pairs, int32, little-endian, one after the other
    rows.safetensors   a few numbers a row: where its ids lie, kind, id, why it is left out
    problems.jsonl     what is wrong with the file, a line a problem
    store.json         kinds, counts, and size and sha256 of the files above

Rows left out stay in the table, without ids: what is held out must not depend on them. A store is
checked to the byte before it is used; a damaged one is made again.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from mmap import mmap
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, overload

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from mlx_dpo.errors import DataError, DiskError
from mlx_dpo.files import make_folder, mark_used, new_folder
from mlx_dpo.preferences.chat import ChatFormat, asks_for_date
from mlx_dpo.preferences.encoding import COLUMNS, Ingested, Tokenizing, ingest
from mlx_dpo.preferences.json_text import not_readable, open_file
from mlx_dpo.preferences.schema import CODES, Problems, mapped
from mlx_dpo.records import PreferenceExample

FOLDER = Path("runs/.tokens")  # one for all runs, so that they share it
ENCODING_VERSION = "4"  # changes whenever the same row would give other ids, flags or codes

# Outside these shares "the longer one wins" is a rule the model can learn instead of the behaviour.
LOPSIDED = (0.35, 0.65)

_FILES = ("tokens.bin", "rows.safetensors", "problems.jsonl")

BytesDone = Callable[[int, int], None]  # called with bytes of a file that are done, and its size


class _Examples(Sequence[PreferenceExample], ABC):
    """A sequence of pairs whose slices are lists."""

    @abstractmethod
    def at(self, index: int) -> PreferenceExample:
        """One pair; from the end where `index` is below 0."""

    @abstractmethod
    def lengths(self) -> npt.NDArray[np.int64]:
        """int64 (N, 3): tokens of prompt, chosen and rejected, without reading any."""

    @overload
    def __getitem__(self, index: int) -> PreferenceExample: ...
    @overload
    def __getitem__(self, index: slice) -> list[PreferenceExample]: ...
    def __getitem__(self, index: int | slice) -> PreferenceExample | list[PreferenceExample]:
        if isinstance(index, slice):
            return [self.at(i) for i in range(*index.indices(len(self)))]
        return self.at(index)


class StoredExamples(_Examples):
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

    def at(self, index: int) -> PreferenceExample:
        """One pair; from the end where `index` is below 0."""
        row = int(self._rows[index])
        a, b, c, d = self._bounds[3 * row : 3 * row + 4].tolist()
        ids = self._tokens[a:d].tolist()
        return PreferenceExample(ids[: b - a], ids[b - a : c - a], ids[c - a :])

    def lengths(self) -> npt.NDArray[np.int64]:
        """int64 (N, 3): tokens of prompt, chosen and rejected, without reading any."""
        return np.asarray(np.diff(self._bounds).reshape(-1, 3)[self._rows])


class JoinedExamples(_Examples):
    """Several sequences of pairs, one after the other, as one."""

    def __init__(self, *parts: Sequence[PreferenceExample]) -> None:
        self._parts = parts

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def at(self, index: int) -> PreferenceExample:
        """One pair; from the end where `index` is below 0."""
        rest = index + len(self) if index < 0 else index
        for part in self._parts:
            if 0 <= rest < len(part):
                return part[rest]
            rest -= len(part)
        raise IndexError(index)

    def lengths(self) -> npt.NDArray[np.int64]:
        """int64 (N, 3): tokens of prompt, chosen and rejected."""
        return np.concatenate([lengths(part) for part in self._parts])


def lengths(examples: Sequence[PreferenceExample]) -> npt.NDArray[np.int64]:
    """int64 (N, 3): tokens of prompt, chosen and rejected of each pair."""
    if isinstance(examples, _Examples):
        return examples.lengths()
    return np.array([list(map(len, e)) for e in examples], dtype=np.int64).reshape(-1, 3)


@dataclass(frozen=True)
class TokenStore:
    """The rows of one preference file, tokenized.

    ``read == kept + sum(dropped)``, always.

    Attributes:
        tokens: int32 (T,), memory-mapped.
        columns: The table of rows; see `encoding.COLUMNS`.
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
        return np.asarray(self.columns["code"] == 0)

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

    def report(self, problems: Problems, file: str) -> None:
        """Add what is wrong with the file, which may have had another name then."""
        if self.log is not None:
            self.log.seek(0)
            problems.add_log(iter(self.log.readline, b""), file)
        problems.cut_short |= self.cut_short


def token_store(
    path: Path,
    chat: ChatFormat,
    *,
    max_length: int,
    keep: bool = True,
    progress: BytesDone | None = None,
) -> TokenStore:
    """The rows of a preference file as token ids: from disk, or read and tokenized now.

    Args:
        path: The preference file.
        chat: The model's conversation format.
        max_length: Tokens kept of prompt + response.
        keep: Whether a later run may find them.
        progress: Not called where the store was found.

    Raises:
        UsageError: If there is no such file.
        DataError: If it holds no row at all, or changed while it was read.
        DiskError: If the store can't be written.
    """
    digest, tokenizer = file_digest(path), tokenizer_digest(chat)
    parts = (ENCODING_VERSION, digest, str(tokenizer), str(max_length))
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    make = partial(_make, key, path, digest, Tokenizing(chat, max_length), progress)
    if not keep or tokenizer is None:
        with TemporaryDirectory() as temporary:
            return make(Path(temporary))  # what is mapped stays readable without its name
    folder = FOLDER / key[:32]
    store = open_store(folder, key)
    if store is not None:
        mark_used(folder)
    else:
        make_folder(FOLDER)
        with new_folder(folder, replace=True) as new:
            store = make(new)
    return store


def open_store(folder: Path, key: str) -> TokenStore | None:
    """A store as it was written; None where it is missing, damaged or another one."""
    try:
        record = json.loads((folder / "store.json").read_text(encoding="utf-8"))
        if record.pop("sha256") != _digest_of(record):
            return None
        files = {name: _file_record(folder / name) for name in _FILES}
        if record["key"] != key or {n: f[0] for n, f in files.items()} != record["files"]:
            return None
        columns = load((folder / "rows.safetensors").read_bytes())
        token_record, largest_id = files["tokens.bin"]
        num_tokens = token_record["size"] // 4
        if not _is_sound(columns, len(record["kinds"]), num_tokens):
            return None
        tokens: npt.NDArray[np.int32] = np.zeros(0, dtype=np.int32)
        if num_tokens:
            tokens = np.memmap(folder / "tokens.bin", dtype="<i4", mode="r")
        with (folder / "problems.jsonl").open("rb") as file:
            log = mapped(file)
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


def seal(folder: Path, key: str, account: Ingested, *, cut_short: bool) -> None:
    """Complete a store whose ``tokens.bin`` and ``problems.jsonl`` have been written.

    Args:
        folder: The store.
        key: What the ids depend on; the store is opened under the same.
        account: Its rows.
        cut_short: Whether the file has more that could not be read.
    """
    (folder / "rows.safetensors").write_bytes(save(account.table.columns()))
    record = {
        "key": key,
        "kinds": list(account.table.kinds),
        "read": account.read,
        "unusable": account.unusable,
        "cut_short": cut_short,
        "files": {name: _file_record(folder / name)[0] for name in _FILES},
    }
    record["sha256"] = _digest_of(record)
    (folder / "store.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _digest_of(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """sha256 of a preference file.

    Raises:
        UsageError: If it can't be read.
    """
    try:
        with open_file(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise not_readable(path, error) from None


def tokenizer_digest(chat: ChatFormat) -> str | None:
    """sha256 of all that decides how a conversation becomes ids.

    None where that can't be known: the tokenizer is a program, or the template reads the clock.
    """
    tokenizer = chat.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    template = json.dumps(tokenizer.chat_template, sort_keys=True, default=str)
    if backend is None or (chat.date is None and asks_for_date(tokenizer)):
        return None
    parts: list[Any] = [backend.to_str(), template, type(tokenizer).__name__]
    parts += [chat.has_template, chat.closing_id, chat.closing_text, chat.adds_bos]
    parts += [tokenizer.special_tokens_map, chat.date]
    parts += [version(name) for name in ("transformers", "tokenizers", "mlx-lm", "jinja2")]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _make(
    key: str,
    path: Path,
    digest: str,
    tokenizing: Tokenizing,
    progress: BytesDone | None,
    folder: Path,
) -> TokenStore:
    """Fill a folder with the store of a file, and open it."""
    size = path.stat().st_size

    def share_done(share: float) -> None:
        if progress is not None:
            progress(round(share * size), size)

    with (
        (folder / "tokens.bin").open("wb") as tokens,
        (folder / "problems.jsonl").open("w", encoding="utf-8") as log,
    ):
        problems = Problems(log)
        account = ingest(path, problems, tokenizing._replace(tokens=tokens), share_done)
    if file_digest(path) != digest:
        raise DataError(f"{path}: changed while it was read; start again")
    seal(folder, key, account, cut_short=problems.cut_short)
    store = open_store(folder, key)
    if store is None:
        raise DiskError(f"{folder}: can't be read back as it was written; check the disk")
    return store


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

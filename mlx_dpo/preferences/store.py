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
from abc import ABC, abstractmethod
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from mmap import mmap
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO, NamedTuple, overload

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from mlx_dpo.errors import DataError, DiskError
from mlx_dpo.files import make_folder, mark_used, new_folder
from mlx_dpo.preferences.chat import ChatFormat
from mlx_dpo.preferences.encoding import Encoded, encode_pairs, find_special, fit, special_tokens
from mlx_dpo.preferences.json_text import Finding, not_readable, offset_of_key, open_file
from mlx_dpo.preferences.reader import Row, read_rows, text_digest
from mlx_dpo.preferences.schema import CODES, Problems, mapped
from mlx_dpo.records import Preference, PreferenceExample

# --- The table of a store's rows: gathered row by row, kept as columns,
# checked when read again.


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


# --- Sequences of pairs as token ids, wherever they lie, and how long
# each is.


class _Examples(Sequence[PreferenceExample], ABC):
    """A sequence of pairs whose slices are lists."""

    @abstractmethod
    def at(self, index: int) -> PreferenceExample:
        """One pair; from the end where `index` is below 0."""

    @abstractmethod
    def lengths(self) -> npt.NDArray[np.int64]:
        """int64 (N, 3): tokens of prompt, chosen and rejected."""

    @overload
    def __getitem__(self, index: int) -> PreferenceExample: ...
    @overload
    def __getitem__(self, index: slice) -> list[PreferenceExample]: ...
    def __getitem__(self, index: int | slice) -> PreferenceExample | list[PreferenceExample]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
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
        found: npt.NDArray[np.int64] = np.diff(self._bounds).reshape(-1, 3)[self._rows]
        return found


class JoinedExamples(_Examples):
    """Several sequences of pairs, one after the other, as one."""

    def __init__(self, *parts: Sequence[PreferenceExample]) -> None:
        self._parts = parts

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def at(self, index: int) -> PreferenceExample:
        """One pair; from the end where `index` is below 0."""
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
    if isinstance(examples, _Examples):
        return examples.lengths()
    return np.array([list(map(len, e)) for e in examples], dtype=np.int64).reshape(-1, 3)


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


# --- A preference file from its bytes to token ids, in one pass and a few
# rows at a time.


BATCH = 256  # rows in memory as text ...
BATCH_TEXT = 4_000_000  # ... or about so many characters of them

ShareDone = Callable[[float], None]  # the share of the file that is done
NOTHING = PreferenceExample([], [], [])


class Tokenising(NamedTuple):
    """How rows become ids, and where they go.

    Attributes:
        chat: The model's conversation format.
        max_length: Tokens kept of prompt + response.
        tokens: Where the ids are written; None to check only.
    """

    chat: ChatFormat
    max_length: int
    tokens: BinaryIO | None = None


@dataclass
class Ingested:
    """What a pass over a file found. ``read == kept + sum(dropped)``, always.

    Attributes:
        read: Rows of the file.
        unusable: Rows that say nothing usable and are not in the table, by code.
        table: The other rows.
    """

    read: int = 0
    unusable: Counter[str] = field(default_factory=Counter)
    table: RowTable = field(default_factory=RowTable)

    @property
    def dropped(self) -> Counter[str]:
        """Rows left out, by code."""
        return self.unusable + Counter(CODES[code - 1] for code in self.table.code if code)

    @property
    def kept(self) -> int:
        """Rows to train on."""
        return self.table.code.count(0)


def ingest(
    path: Path,
    problems: Problems,
    tokenising: Tokenising | None = None,
    progress: ShareDone | None = None,
) -> Ingested:
    """Read, check and tokenise a file, a few rows at a time.

    Args:
        path: The preference file.
        problems: Told of everything that is wrong with it.
        tokenising: None to check what can be checked without a model.
        progress: Told how far the pass has come.

    Raises:
        UsageError: If there is no such file.
        DataError: If it holds no row at all.
    """
    found, batch, size = Ingested(), list[Row](), 0
    tokenise = _Tokeniser(path, problems, found.table, tokenising) if tokenising else None
    for row in read_rows(path, problems):
        found.read += 1
        if row.preference is None:
            assert row.code is not None
            found.unusable[row.code] += 1
        else:
            _add(row, row.preference, found.table)
            batch.append(row)
            size += len(row.raw.source)
        if len(batch) == BATCH or size > BATCH_TEXT:
            if tokenise is not None:
                tokenise(batch)
            batch, size = [], 0
            if progress is not None:
                progress(row.raw.share)
    if tokenise is not None:
        tokenise(batch)
    if progress is not None:
        progress(1.0)
    return found


def _add(row: Row, preference: Preference, table: RowTable) -> None:
    digest = text_digest(preference.prompt)
    place = table.add(row.raw.number, row.raw.line, preference.kind, preference.id, digest)
    if row.code is not None:
        table.leave_out(place, row.code)
    if row.opposite is not None:  # nobody knows which of the two is right
        table.leave_out(bisect_left(table.number, row.opposite), "contradiction")


class _Tokeniser:
    """Adds ids and flags to the rows that were added to a table last."""

    def __init__(
        self, path: Path, problems: Problems, table: RowTable, tokenising: Tokenising
    ) -> None:
        self.path = path
        self.problems = problems
        self.table = table
        self.chat, self.max_length, self.tokens = tokenising
        self.special = special_tokens(self.chat)

    def __call__(self, rows: list[Row]) -> None:
        first = len(self.table) - len(rows)
        for place, row in enumerate(rows, first):
            if not self.table.code[place]:
                self._check_special(place, row)
        kept = [row.preference for row in rows if row.code is None and row.preference]
        encoded = iter(encode_pairs(kept, self.chat))
        for place, row in enumerate(rows, first):
            found = next(encoded) if row.code is None else None
            example = self._fit(place, row, found) if found is not None else None
            self.table.add_bounds(example or NOTHING)
            if example is not None and self.tokens is not None:
                write_ids(self.tokens, example)

    def _check_special(self, place: int, row: Row) -> None:
        assert row.preference is not None
        found = find_special(row.preference, self.special) if self.special else None
        if found is not None:
            part, text = found
            at = _offset_in(row, part, text)
            reason = f"{text!r} is a token of this model, and would not be read as words"
            hint = "remove it; the chat template writes the tokens that are needed"
            self._leave_out(place, row, Finding("special-token", at, reason, hint))

    def _fit(self, place: int, row: Row, found: Encoded | DataError) -> PreferenceExample | None:
        if isinstance(found, DataError):
            self._leave_out(place, row, Finding("template", 0, str(found)))
            return None
        whole, merged = found
        example, finding, cut = fit(whole, self.max_length)
        if finding is not None:
            self._leave_out(place, row, finding)
            return None
        if cut:
            needed = len(whole.prompt_ids) + max(len(whole.chosen_ids), len(whole.rejected_ids))
            reason = f"an answer's end is cut off: {needed} tokens of {self.max_length}"
            hint = "it is learned without its end; raise --max-length"
            row.note(self.path, Finding("response-cut", 0, reason, hint), self.problems)
        closing = self.chat.closing_id
        self.table.flags[place] = (
            cut * CUT
            + merged * MERGED
            + (example.chosen_ids[-1] == closing) * CHOSEN_CLOSED
            + (example.rejected_ids[-1] == closing) * REJECTED_CLOSED
        )
        return example

    def _leave_out(self, place: int, row: Row, finding: Finding) -> None:
        row.note(self.path, finding, self.problems)
        self.table.leave_out(place, finding.code)


def _offset_in(row: Row, part: str, text: str) -> int:
    """Where a text stands in the source of a row; the key it belongs to where it is escaped."""
    keys = (part, "user" if part == "prompt" else "", "chosen")  # turns may be shared
    key = next(key for key in keys if key in row.raw.value)
    begin = offset_of_key(row.raw.source, key)
    return max(begin, row.raw.source.find(text, begin))


# --- Token ids on disk, so that a second run on the same data and tokenizer
# finds them.
#
# A store is named by a hash of all its ids depend on. It is checked to the byte before it is
# used; one that is damaged is made again.


FOLDER = Path("runs/.tokens")  # one for all runs, so that they share it
ENCODING_VERSION = "2"  # changes whenever the same row would give other ids, flags or codes

Progress = Callable[[int, int], None]


def token_store(
    path: Path,
    chat: ChatFormat,
    *,
    max_length: int,
    keep: bool = True,
    progress: Progress | None = None,
) -> TokenStore:
    """The rows of a preference file as token ids: from disk, or read and tokenised now.

    Args:
        path: The preference file.
        chat: The model's conversation format.
        max_length: Tokens kept of prompt + response.
        keep: Whether a later run may find them.
        progress: Told how many of the file's bytes have been dealt with; not called where the
            store was found.

    Raises:
        UsageError: If there is no such file.
        DataError: If it holds no row at all, or changed while it was read.
        DiskError: If the store can't be written.
    """
    digest, tokenizer = file_digest(path), tokenizer_digest(chat)
    parts = (ENCODING_VERSION, digest, str(tokenizer), str(max_length))
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    make = partial(_make, key, path, digest, Tokenising(chat, max_length), progress)
    if not keep or tokenizer is None:
        with TemporaryDirectory() as temporary:
            return make(Path(temporary))  # what is mapped stays readable without its name
    place = FOLDER / key[:32]
    found = open_store(place, key)
    if found is not None:
        mark_used(place)
    else:
        make_folder(FOLDER)
        with new_folder(place, replace=True) as folder:
            found = make(folder)
    return found


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

    None where that can't be known: the template writes the date, or the tokenizer is a program.
    """
    tokenizer = chat.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    template = json.dumps(tokenizer.chat_template, sort_keys=True, default=str)
    if backend is None or "strftime" in template:
        return None
    parts: list[Any] = [backend.to_str(), template, type(tokenizer).__name__]
    parts += [chat.has_template, chat.closing_id, chat.closing_text, chat.adds_bos]
    parts += [tokenizer.special_tokens_map]
    parts += [version(name) for name in ("transformers", "tokenizers", "mlx-lm", "jinja2")]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _make(
    key: str,
    path: Path,
    digest: str,
    tokenising: Tokenising,
    progress: Progress | None,
    folder: Path,
) -> TokenStore:
    """Fill a folder with the store of a file, and open it."""
    size = path.stat().st_size

    def told(share: float) -> None:
        if progress is not None:
            progress(round(share * size), size)

    with (
        (folder / "tokens.bin").open("wb") as tokens,
        (folder / "problems.jsonl").open("w", encoding="utf-8") as log,
    ):
        problems = Problems(log)
        found = ingest(path, problems, tokenising._replace(tokens=tokens), told)
    if file_digest(path) != digest:
        raise DataError(f"{path}: changed while it was read; start again")
    seal(
        folder,
        key,
        found.table,
        read=found.read,
        unusable=found.unusable,
        cut_short=problems.cut_short,
    )
    store = open_store(folder, key)
    if store is None:
        raise DiskError(f"{folder}: can't be read back as it was written; check the disk")
    return store

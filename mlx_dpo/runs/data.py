"""The pairs of a run: from preference files to training and held-out pairs as token ids."""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from io import TextIOWrapper
from mmap import mmap
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
import numpy.typing as npt

from mlx_dpo.errors import DataError, writing
from mlx_dpo.preferences.chat import ChatFormat
from mlx_dpo.preferences.encoding import CHOSEN_CLOSED, CUT, MERGED, REJECTED_CLOSED
from mlx_dpo.preferences.reader import drop_bad_hint, read_some, refuse_errors, text_digest
from mlx_dpo.preferences.schema import Problem, Problems, by_code, mapped
from mlx_dpo.preferences.scores import untaught_kinds
from mlx_dpo.preferences.split import held_out_rows
from mlx_dpo.preferences.store import BytesDone, TokenStore, token_store
from mlx_dpo.records import Pairs, Preference
from mlx_dpo.runs.config import RunConfig

SPLIT_SEED = 0  # not the run's seed: runs that differ in seed are judged on the same pairs
SHOWN_ANSWERS = 5

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class RowCounts:
    """Counts of rows kept, dropped and changed; ``read == pairs kept + sum(dropped)``.

    Attributes:
        read: Rows of the files.
        dropped: Rows left out, by code.
        num_cut: Pairs kept with the end of a response cut off.
        num_merged: Pairs kept whose prompt and response share a token at the boundary.
        num_closed: Responses kept that end with the closing token (two a pair).
    """

    read: int
    dropped: Counter[str]
    num_cut: int
    num_merged: int
    num_closed: int


@dataclass(frozen=True)
class Data:
    """The pairs of a run.

    Attributes:
        files: Those of ``--data`` and, where they have their own, of the held-out pairs.
        train: Training pairs.
        held_out: Held-out pairs, possibly none.
        account: Counts of the rows of the files.
        shown: A few held-out pairs as text, of different kinds as far as there are any.
        problems: What is wrong with the files: counts, and the first ones.
        log: Every problem, a line each, on disk; None where there is none.
        digest: sha256 over the token ids of every pair, in order.
        largest_id: Largest token id.
        untaught: Kinds of held-out pairs that no training pair is of.
    """

    files: tuple[str, str | None]
    train: Pairs
    held_out: Pairs
    account: RowCounts
    shown: list[Preference]
    problems: Problems
    log: mmap | None
    digest: str
    largest_id: int
    untaught: tuple[str, ...]


@dataclass(frozen=True)
class _Side:
    """Some rows of one store: training or held-out."""

    file: Path
    store: TokenStore
    rows: Rows

    def pairs(self) -> Pairs:
        store, rows = self.store, self.rows
        return Pairs(store.examples(rows), store.ids_of(rows), store.kinds_of(rows))

    def digest(self) -> bytes:
        lengths = self.store.examples(self.rows).lengths()
        begins = self.store.columns["bounds"][3 * self.rows]
        parts = (self.store.token_digest.encode(), begins.tobytes(), lengths.tobytes())
        return hashlib.sha256(b"".join(parts)).digest()

    def count(self, flag: int) -> int:
        return int(np.count_nonzero(self.store.columns["flags"][self.rows] & flag))


def load_data(
    config: RunConfig,
    chat: ChatFormat,
    *,
    keep: bool = True,
    progress: BytesDone | None = None,
    report: Callable[[Problems], None] | None = None,
) -> Data:
    """Read, check, tokenize and split the pairs of a run.

    Args:
        config: The settings.
        chat: The model's conversation format.
        keep: Whether token ids are kept on disk for later runs.
        progress: Called with the bytes of a file tokenized so far, and all of them.
        report: Called with what is wrong with the files, before they are refused.

    Raises:
        UsageError: If a file is not there.
        DataError: If a file has errors and ``config.drop_bad`` is off, or no pair is left.
        DiskError: If there is no room for what is wrong with the files.
    """
    with writing("a temporary file"):
        log = TextIOWrapper(TemporaryFile(), encoding="utf-8")  # noqa: SIM115  # closed below
    try:
        data = _load(config, chat, Problems(log), keep, progress, report)
        with writing("a temporary file"):
            log.flush()
            return replace(data, log=mapped(log.buffer))
    finally:
        with suppress(OSError):  # of a full disk, which has been reported
            log.close()


def _load(
    config: RunConfig,
    chat: ChatFormat,
    problems: Problems,
    keep: bool,
    progress: BytesDone | None,
    report: Callable[[Problems], None] | None,
) -> Data:
    def read(name: str) -> _Side:
        file = Path(name)
        store = token_store(file, chat, max_length=config.max_length, keep=keep, progress=progress)
        store.report(problems, str(file))
        return _Side(file, store, np.flatnonzero(store.is_kept))

    files = data, held_out = config.files
    whole = read(data)
    read_rows, dropped = whole.store.read, whole.store.dropped
    if held_out is None:
        train, held = _split(whole, config.eval_fraction)
    else:
        train, other = whole, read(held_out)
        held = _without_leaks(train, other, problems)
        read_rows += other.store.read
        dropped += other.store.dropped
        dropped["leak"] += len(other.rows) - len(held.rows)
    num_kept = len(train.rows) + len(held.rows)
    if num_kept + dropped.total() != read_rows:
        raise DataError(
            f"{config.data}: {read_rows} rows were read, and {num_kept} kept and {dropped.total()} "
            "dropped: rows went missing, which is a mistake of this program; nothing was trained"
        )
    if report is not None:
        report(problems)
    if problems.cut_short or not config.drop_bad:
        refuse_errors(problems, read_rows, drop_bad_hint(problems))
    sides = (train, held)
    if not len(train.rows):
        reason = (
            f"{by_code(dropped)}, such as {problems.shown()[0]}" if dropped else "all are held out"
        )
        raise DataError(
            f"{config.data}: no pair is left to train on ({reason}); see --max-length and "
            "--eval-fraction"
        )
    pairs, unseen = train.pairs(), held.pairs()
    untaught = untaught_kinds(pairs.kinds, unseen.kinds)
    return Data(
        files=files,
        train=pairs,
        held_out=unseen,
        account=RowCounts(
            read=read_rows,
            dropped=+dropped,
            num_cut=sum(side.count(CUT) for side in sides),
            num_merged=sum(side.count(MERGED) for side in sides),
            num_closed=sum(
                side.count(flag) for side in sides for flag in (CHOSEN_CLOSED, REJECTED_CLOSED)
            ),
        ),
        shown=_shown(held if len(held.rows) else train, untaught),
        problems=problems,
        log=None,
        digest=hashlib.sha256(b"".join(side.digest() for side in sides)).hexdigest(),
        largest_id=max(side.store.largest_id for side in sides),
        untaught=untaught,
    )


def _split(whole: _Side, fraction: float) -> tuple[_Side, _Side]:
    """Split by the texts of all rows, so that it does not depend on a model's tokens."""
    store = whole.store
    rows = zip(store.prompts(), store.kinds_of(np.arange(len(store))), strict=True)
    out = np.array(held_out_rows(rows, fraction, SPLIT_SEED), dtype=bool)
    train, held = (_Side(whole.file, store, whole.rows[side[whole.rows]]) for side in (~out, out))
    return train, held


def _without_leaks(train: _Side, held: _Side, problems: Problems) -> _Side:
    """Held-out rows whose prompt is not trained on."""
    all_prompts = train.store.prompts()
    trained = {all_prompts[row] for row in train.rows.tolist()}
    prompts = held.store.prompts()
    new = [row for row in held.rows.tolist() if prompts[row] not in trained]
    for row in sorted(set(held.rows.tolist()) - set(new)):
        line, number = (int(held.store.columns[name][row]) for name in ("line", "number"))
        reason = f"its prompt is in {train.file} too"
        hint = "held-out pairs must be new; remove it from one of the files"
        problems.add(Problem(str(held.file), line, 1, number, "leak", reason, hint))
    return _Side(held.file, held.store, np.array(new, dtype=np.int64))


def _shown(side: _Side, untaught: Sequence[str]) -> list[Preference]:
    """A few pairs of different kinds that are trained on, as far as there are any, read anew.

    Raises:
        DataError: If the file has changed since it was tokenized.
    """
    first_of_kind: dict[str, int] = {}
    kinds = side.store.kinds_of(side.rows)
    taught = [index for index, kind in enumerate(kinds) if kind not in untaught]
    for index in taught:
        first_of_kind.setdefault(kinds[index], index)
    pool = list(first_of_kind.values())
    if len(pool) < SHOWN_ANSWERS:
        pool = taught
    count = min(SHOWN_ANSWERS, len(pool))
    rows = side.rows[[pool[(2 * i + 1) * len(pool) // (2 * count)] for i in range(count)]]
    numbers = side.store.columns["number"][rows].tolist()
    pairs = read_some(side.file, numbers)
    prompts = side.store.prompts()
    for number, row in zip(numbers, rows.tolist(), strict=True):
        if number not in pairs or text_digest(pairs[number].prompt) != prompts[row]:
            raise DataError(f"{side.file}: changed while it was read; start again")
    return [pairs[number] for number in numbers]

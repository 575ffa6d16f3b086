"""From settings to the things a run works with: model, pairs, folders. Nothing is trained here."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from io import TextIOWrapper
from itertools import combinations
from mmap import mmap
from pathlib import Path
from tempfile import TemporaryFile, gettempdir
from typing import Any

import mlx.nn as nn
import numpy as np
import numpy.typing as npt

from mlx_dpo.convert.sources import find, find_mlx, load_folder, load_tokenizer, name_of
from mlx_dpo.errors import DataError, DiskError, UsageError
from mlx_dpo.models.export import companions
from mlx_dpo.models.hub import check_ids, model_digest
from mlx_dpo.models.parameters import fingerprint
from mlx_dpo.preferences.batches import ORDER, EpochOrder
from mlx_dpo.preferences.chat import ChatFormat, chat_format
from mlx_dpo.preferences.encoding import CHOSEN_CLOSED, CUT, MERGED, REJECTED_CLOSED
from mlx_dpo.preferences.json_text import check_readable
from mlx_dpo.preferences.reader import drop_bad_hint, read_some, refuse_errors, text_digest
from mlx_dpo.preferences.schema import Problem, Problems, by_code, mapped
from mlx_dpo.preferences.split import held_out_rows
from mlx_dpo.preferences.store import BytesDone, JoinedExamples, TokenStore, lengths, token_store
from mlx_dpo.records import Pairs, Preference
from mlx_dpo.runs.config import PLACES, RunConfig

# --- The pairs of a run: from preference files to training and held-out pairs as
# token ids.


SPLIT_SEED = 0  # not the run's seed: runs that differ in seed are judged on the same pairs
SHOWN_ANSWERS = 5

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Account:
    """What became of the rows. ``read == pairs kept + sum(dropped)``, always.

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
        train: Training pairs.
        held_out: Held-out pairs, possibly none.
        account: What became of the rows of the files.
        shown: A few held-out pairs as text, of different kinds as far as there are any.
        problems: What is wrong with the files.
        log: All of it, a line a problem, on disk; None where nothing is.
        digest: sha256 that stands for the token ids of every pair, in order.
        largest_id: Largest token id.
    """

    train: Pairs
    held_out: Pairs
    account: Account
    shown: list[Preference]
    problems: Problems
    log: mmap | None
    digest: str
    largest_id: int


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
    told: Callable[[Problems], None] | None = None,
) -> Data:
    """Read, check, tokenise and split the pairs of a run.

    Args:
        config: The settings.
        chat: The model's conversation format.
        keep: Whether a later run may find the token ids.
        progress: Told how far tokenising has come.
        told: Told what is wrong with the files, before they are refused for it.

    Raises:
        UsageError: If a file is not there.
        DataError: If a file has errors and ``config.drop_bad`` is off, or no pair is left.
        DiskError: If there is no room for what is wrong with the files.
    """
    try:
        with TextIOWrapper(TemporaryFile(), encoding="utf-8") as log:
            data = _load(config, chat, Problems(log), keep, progress, told)
            log.flush()
            return replace(data, log=mapped(log.buffer))
    except OSError as error:
        raise DiskError(f"{gettempdir()}: not written: {error.strerror or error}") from None


def _load(
    config: RunConfig,
    chat: ChatFormat,
    problems: Problems,
    keep: bool,
    progress: BytesDone | None,
    told: Callable[[Problems], None] | None,
) -> Data:
    assert config.data is not None

    def read(name: str) -> _Side:
        file = Path(name)
        store = token_store(file, chat, max_length=config.max_length, keep=keep, progress=progress)
        store.report(problems, str(file))
        return _Side(file, store, np.flatnonzero(store.is_kept))

    whole = read(config.data)
    read_rows, dropped = whole.store.read, whole.store.dropped
    if config.eval_data is None:
        train, held = _split(whole, config.eval_fraction)
    else:
        train, other = whole, read(config.eval_data)
        held = _without_leaks(train, other, problems)
        read_rows += other.store.read
        dropped += other.store.dropped
        dropped["leak"] += len(other.rows) - len(held.rows)
    kept = len(train.rows) + len(held.rows)
    if kept + dropped.total() != read_rows:  # never; and never unnoticed
        raise DataError(
            f"{config.data}: {read_rows} rows were read, and {kept} kept and {dropped.total()} "
            "dropped: rows went missing, which is a mistake of this program; nothing was trained"
        )
    if told is not None:
        told(problems)
    if problems.cut_short or not config.drop_bad:
        refuse_errors(problems, read_rows, drop_bad_hint(problems))
    sides = (train, held)
    if not len(train.rows):
        why = (
            f"{by_code(dropped)}, such as {problems.shown()[0]}" if dropped else "all are held out"
        )
        raise DataError(
            f"{config.data}: no pair is left to train on ({why}); see --max-length and "
            "--eval-fraction"
        )
    return Data(
        train=train.pairs(),
        held_out=held.pairs(),
        account=Account(
            read=read_rows,
            dropped=+dropped,
            num_cut=sum(side.count(CUT) for side in sides),
            num_merged=sum(side.count(MERGED) for side in sides),
            num_closed=sum(
                side.count(flag) for side in sides for flag in (CHOSEN_CLOSED, REJECTED_CLOSED)
            ),
        ),
        shown=_shown(held if len(held.rows) else train),
        problems=problems,
        log=None,
        digest=hashlib.sha256(b"".join(side.digest() for side in sides)).hexdigest(),
        largest_id=max(side.store.largest_id for side in sides),
    )


def _split(whole: _Side, fraction: float) -> tuple[_Side, _Side]:
    """Which rows are held out depends on all that can be read, and not on a model's tokens."""
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


def _shown(side: _Side) -> list[Preference]:
    """A few pairs of different kinds as far as there are any, read from the file once more.

    Raises:
        DataError: If the file is no longer what was tokenised.
    """
    first_of_kind: dict[str, int] = {}
    for place, kind in enumerate(side.store.kinds_of(side.rows)):
        first_of_kind.setdefault(kind, place)
    pool = list(first_of_kind.values())
    if len(pool) < SHOWN_ANSWERS:
        pool = list(range(len(side.rows)))
    count = min(SHOWN_ANSWERS, len(pool))
    rows = side.rows[[pool[(2 * i + 1) * len(pool) // (2 * count)] for i in range(count)]]
    numbers = side.store.columns["number"][rows].tolist()
    found = read_some(side.file, numbers)
    prompts = side.store.prompts()
    for number, row in zip(numbers, rows.tolist(), strict=True):
        if number not in found or text_digest(found[number].prompt) != prompts[row]:
            raise DataError(f"{side.file}: changed while it was read; start again")
    return [found[number] for number in numbers]


@dataclass(frozen=True)
class Job:
    """All a run works with.

    Attributes:
        config: The settings.
        name: The model's name.
        source: Folder of the SFT model; only read.
        out: Folder the finished checkpoint will have.
        policy: The model that trains.
        weights: Fingerprint of the parameters before training, which are the reference's.
        model: Digest of all that decides the reference's log-probs: weights, config, code.
        chat: The model's conversation format.
        data: The pairs, training and held-out.
        max_steps: Optimizer steps of the whole run.
    """

    config: RunConfig
    name: str
    source: Path
    out: Path
    policy: nn.Module
    weights: str
    model: str
    chat: ChatFormat
    data: Data
    max_steps: int

    @property
    def train(self) -> Pairs:
        """Training pairs."""
        return self.data.train

    @property
    def held_out(self) -> Pairs:
        """Held-out pairs, possibly none."""
        return self.data.held_out

    @property
    def examples(self) -> JoinedExamples:
        """Every pair: training, then held out."""
        return JoinedExamples(self.train.examples, self.held_out.examples)

    def identity(self) -> dict[str, Any]:
        """What a resumed run must share with the one it continues."""
        settings = {k: v for k, v in asdict(self.config).items() if k not in PLACES}
        settings |= {"epochs": None, "steps": self.max_steps}
        settings |= {"order_of_pairs": ORDER}
        return {**settings, "model": self.model, "data": self.data.digest}

    def split(self) -> dict[str, list[str]]:
        """Ids of the pairs on each side."""
        return {"train": self.train.ids, "held_out": self.held_out.ids}


def prepare(
    config: RunConfig,
    *,
    keep: bool = True,
    tokenizing: BytesDone | None = None,
    problems: Callable[[Problems], None] | None = None,
) -> Job:
    """Read data and model, cheap checks first.

    Args:
        config: The settings.
        keep: Whether a later run may find the token ids.
        tokenizing: Told how far tokenising has come, in bytes of the file.
        problems: Told what is wrong with the data, before it is refused for it.

    Raises:
        UsageError: If a folder or setting is not as it must be.
        DataError: If a preference file can't be used or leaves no pair to train on.
    """
    assert config.model is not None
    assert config.data is not None
    name = name_of(config.model)
    for file in filter(None, (config.data, config.eval_data)):
        check_readable(Path(file))
    source = find_mlx(config.model)
    companions(source)  # refused now, and not when the finished model is written
    chat = chat_format(load_tokenizer(source))
    data = load_data(config, chat, keep=keep, progress=tokenizing, told=problems)
    policy, _ = load_folder(source, config.dtype)
    per_step = config.batch_size * config.grad_accumulation
    order = EpochOrder(len(data.train.examples), per_step, config.seed)
    job = Job(
        config=config,
        name=name,
        source=source,
        out=_out(config),
        policy=policy,
        weights=fingerprint(policy),
        model=model_digest(policy, source),
        chat=chat,
        data=data,
        max_steps=config.steps or config.epochs * order.batches_per_epoch,
    )
    _check_ids(job)
    return job


def check_folders(config: RunConfig) -> None:
    """Refuse folders of a run that would write into one another, or over somebody's work.

    Raises:
        UsageError: See `check_places`; also if the model is not there.
    """
    assert config.model is not None
    given = find(config.model)
    out = _out(config)
    run = Path(config.run_dir or f"runs/{name_of(config.model)}")
    overwrite = config.overwrite or is_result_of(config, out)
    check_places(given, out, run, overwrite=overwrite)


def _out(config: RunConfig) -> Path:
    assert config.model is not None
    return Path(config.out or f"checkpoints/{name_of(config.model)}-dpo")


def is_result_of(config: RunConfig, out: Path) -> bool:
    """Whether `out` is what this very run wrote before it was killed on its last metres.

    A run that has not begun yet has no result, whatever another with the same settings left.
    """
    if not config.run_dir or not (Path(config.run_dir) / "config.toml").is_file():
        return False
    try:
        there = json.loads((out / "dpo.json").read_text(encoding="utf-8"))["settings"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    where = {"run_dir": None}  # the same folder, however it was spelled then
    return bool({**there, **where} == {**asdict(config), **where})


def _check_ids(job: Job) -> None:
    prompt, chosen, rejected = lengths(job.examples).T
    check_ids(
        job.policy,
        job.source,
        largest_id=job.data.largest_id,
        longest=int((prompt + np.maximum(chosen, rejected)).max()),
    )


def check_places(source: Path, out: Path, run: Path, *, overwrite: bool) -> None:
    """Refuse folders that would write into one another, or over somebody's work.

    Args:
        source: The model.
        out: Where the finished checkpoint goes.
        run: Where the run goes.
        overwrite: Whether an `out` that a run made may be replaced.

    Raises:
        UsageError: If they overlap, or would lie under a file, or `out` is there and may not be
            replaced.
    """
    named = [("--model", source), ("--out", out), ("--run-dir", run)]
    for (one, a), (other, b) in combinations([(n, p.resolve()) for n, p in named], 2):
        if a == b or a in b.parents or b in a.parents:
            raise UsageError(f"{other} {b} and {one} {a} overlap; the three folders must be apart")
    for option, place in (("--out", out), ("--run-dir", run)):
        above = next((p for p in place.parents if os.path.lexists(p)), Path())
        if not above.is_dir():
            raise UsageError(f"{place}: {above} is a file; {option} takes a folder")
    if not os.path.lexists(out):
        return
    if not overwrite:
        raise UsageError(f"{out}: exists; pass --overwrite to replace it, or another --out")
    if out.is_symlink() or not (out / "dpo.json").is_file():
        raise UsageError(f"{out}: exists and no run made it (no dpo.json); choose another --out")

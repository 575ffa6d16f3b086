"""From settings to the things a run works with: model, pairs, folders. Nothing is trained here."""

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import mlx.nn as nn
import numpy as np

from mlx_dpo.errors import UsageError
from mlx_dpo.models.export import companions
from mlx_dpo.models.hub import check_ids, model_digest
from mlx_dpo.models.parameters import fingerprint
from mlx_dpo.preferences.batches import ORDER, EpochOrder
from mlx_dpo.preferences.documents import check_readable
from mlx_dpo.preferences.examples import JoinedExamples, lengths
from mlx_dpo.preferences.problems import Problems
from mlx_dpo.preferences.tokens import ChatFormat, chat_format
from mlx_dpo.records import Pairs
from mlx_dpo.runs.config import PLACES, RunConfig
from mlx_dpo.runs.data import Data, load_data
from mlx_dpo.runs.sources import find, find_mlx, load_folder, load_tokenizer, name_of
from mlx_dpo.runs.token_cache import Progress


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
    tokenizing: Progress | None = None,
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

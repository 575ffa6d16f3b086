"""From settings to the things a run works with: model, pairs, folders. Nothing is trained here."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mlx.nn as nn
import numpy as np

from mlx_dpo.convert.sources import find_mlx, load_folder, load_tokenizer, name_of
from mlx_dpo.models.export import companions
from mlx_dpo.models.hub import check_ids, model_digest
from mlx_dpo.models.parameters import fingerprint
from mlx_dpo.preferences.batches import ORDER, EpochOrder
from mlx_dpo.preferences.chat import ChatFormat, chat_format
from mlx_dpo.preferences.json_text import check_readable
from mlx_dpo.preferences.schema import Problems
from mlx_dpo.preferences.store import (
    JoinedExamples,
    Progress,
    lengths,
)
from mlx_dpo.records import Pairs
from mlx_dpo.runs.config import PLACES, RunConfig
from mlx_dpo.runs.data import Data, load_data
from mlx_dpo.runs.folder import out_of


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
    data: Data | None = None,
    keep: bool = True,
    tokenizing: Progress | None = None,
    problems: Callable[[Problems], None] | None = None,
) -> Job:
    """Read data and model, cheap checks first.

    Args:
        config: The settings.
        data: The pairs, where they have been read.
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
    if data is None:
        data = load_data(config, chat, keep=keep, progress=tokenizing, told=problems)
    policy, _ = load_folder(source, config.dtype)
    per_step = config.batch_size * config.grad_accumulation
    order = EpochOrder(len(data.train.examples), per_step, config.seed)
    job = Job(
        config=config,
        name=name,
        source=source,
        out=out_of(config),
        policy=policy,
        weights=fingerprint(policy),
        model=model_digest(policy, source),
        chat=chat,
        data=data,
        max_steps=config.steps or config.epochs * order.batches_per_epoch,
    )
    _check_ids(job)
    return job


def _check_ids(job: Job) -> None:
    prompt, chosen, rejected = lengths(job.examples).T
    check_ids(
        job.policy,
        job.source,
        largest_id=job.data.largest_id,
        longest=int((prompt + np.maximum(chosen, rejected)).max()),
    )

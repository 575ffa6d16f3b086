"""A job: what a run works with, read from its settings. Nothing is trained here."""

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import mlx.nn as nn
import numpy as np

from mlx_dpo.convert.sources import (
    adapter_to_train,
    find_mlx,
    load_model,
    load_tokenizer,
    name_of,
)
from mlx_dpo.models.adaptable import choose_modules
from mlx_dpo.models.adapters import adapter_digest, attach, new_adapter, without_adapter
from mlx_dpo.models.config import num_stored_parameters
from mlx_dpo.models.export import ModelFiles, read_files
from mlx_dpo.models.folder import check_ids, model_digest
from mlx_dpo.models.generate import batches_exactly
from mlx_dpo.models.parameters import fingerprint, stored_digest
from mlx_dpo.preferences.batches import ORDER, EpochOrder
from mlx_dpo.preferences.chat import ChatFormat, chat_format
from mlx_dpo.preferences.json_text import check_readable
from mlx_dpo.preferences.schema import Problems
from mlx_dpo.preferences.store import BytesDone, JoinedExamples, lengths
from mlx_dpo.records import Pairs
from mlx_dpo.runs.config import NOT_IN_IDENTITY, OF_LORA, OF_SELECTION, RunConfig
from mlx_dpo.runs.data import Data, load_data
from mlx_dpo.runs.defaults import FULL, LORA, check_selection, decided, decided_by_pairs
from mlx_dpo.runs.folder import out_of
from mlx_dpo.runs.history import tuned_before

FINDING = "finding the model"  # on a disk or on the hub, and converted where it is PyTorch's
READING, LOADING = "reading the pairs", "loading the model"
READ_FIRST = (FINDING, READING, LOADING)  # what may yet be refused


@dataclass(frozen=True)
class Job:
    """What a run works with.

    Attributes:
        config: The settings.
        name: The model's name.
        source: Folder of the SFT model; only read.
        files: What it held beside the weights when the run began.
        out: Folder of the finished model.
        policy: The model that trains.
        weights_digest: `fingerprint` of the model before training, without an adapter; the
            reference's is the same.
        model_digest: sha256 of all that decides the reference's log-probs: weights, config, code,
            and the adapter it starts with.
        adapter_digest: sha256 of the adapter that training starts from; None where there is none.
        stored_digest: sha256 of the weights as they are stored, which an adapter belongs to; None
            where all weights train.
        chat: The model's conversation format.
        data: The pairs, training and held-out.
        max_steps: Optimizer steps of the whole run.
        num_parameters: Of the model without adapters.
        tuned_before: What shows that the reference has had preference training; empty for nothing.
    """

    config: RunConfig
    name: str
    source: Path
    files: ModelFiles
    out: Path
    policy: nn.Module
    weights_digest: str
    model_digest: str
    adapter_digest: str | None
    stored_digest: str | None
    chat: ChatFormat
    data: Data
    max_steps: int
    num_parameters: int
    tuned_before: str

    @property
    def reference_model(self) -> nn.Module:
        """The policy before the first update, as it is the reference."""
        by_base = self.config.adapter_reference == "base"
        return without_adapter(self.policy) if by_base else self.policy

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

    @property
    def measured(self) -> JoinedExamples:
        """The pairs of ``--data``, whose lengths are judged: does a rule on length explain them?"""
        held_out = [] if self.config.eval_data else self.held_out.examples
        return JoinedExamples(self.train.examples, held_out)

    @cached_property
    def answers_together(self) -> bool:
        """Whether the prompts that are shown may be answered in one batch."""
        return batches_exactly(self.policy, self.shown_prompts)

    @property
    def shown_prompts(self) -> list[list[int]]:
        """Ids of the prompts that are shown."""
        return [self.chat.prompt_ids(row.prompt) for row in self.data.shown]

    def epoch_order(self) -> EpochOrder:
        """The order of the training pairs, as the trainer has it before the first step."""
        examples, size = self.train.examples, self.config.batch_size
        return EpochOrder(
            len(examples),
            size * self.config.grad_accumulation,
            self.config.seed,
            lengths=lengths(examples),
            micro_batch=size,
        )

    def identity(self) -> dict[str, Any]:
        """What a resumed run must share with the one it continues."""
        settings = {k: v for k, v in asdict(self.config).items() if k not in NOT_IN_IDENTITY}
        settings = {k: v for k, v in settings.items() if k not in OF_LORA or v is not None}
        if self.config.method == FULL:
            del settings["method"]  # as it was before there was another
        settings |= {"epochs": None, "steps": self.max_steps, "order_of_pairs": ORDER}
        if self.config.selects:
            settings |= {name: getattr(self.config, name) for name in OF_SELECTION}
        if self.adapter_digest is not None:
            settings["adapter"] = self.adapter_digest
        return {**settings, "model": self.model_digest, "data": self.data.digest}

    def split(self) -> dict[str, list[str]]:
        """Ids of the pairs on each side."""
        return {"train": self.train.ids, "held_out": self.held_out.ids}


def prepare(
    config: RunConfig,
    *,
    data: Data | None = None,
    keep: bool = True,
    working: Callable[[str], None] = lambda what: None,
    tokenizing: BytesDone | None = None,
    problems: Callable[[Problems], None] | None = None,
) -> Job:
    """Read data and model, cheap checks first.

    Args:
        config: The settings.
        data: The pairs, where they have been read already.
        keep: Whether token ids are kept on disk for later runs.
        working: Called with what begins, where that may take seconds.
        tokenizing: Called with the bytes of the file tokenized so far, and all of them.
        problems: Called with what is wrong with the data, before the data is refused.

    Raises:
        UsageError: If a folder or setting is not as it must be.
        DataError: If a preference file can't be used or leaves no pair to train on.
    """
    config = decided(config)
    assert config.model is not None
    for file in filter(None, config.files):
        check_readable(Path(file))
    working(FINDING)
    name, source = name_of(config.model), find_mlx(config.model)
    files = read_files(source)
    chat = chat_format(load_tokenizer(source), config.date)
    if data is None:
        working(READING)
        data = load_data(config, chat, keep=keep, progress=tokenizing, report=problems)
    check_selection(config, len(data.held_out.examples))
    size = num_stored_parameters(source)
    config, max_steps = decided_by_pairs(config, len(data.train.examples), size)
    working(LOADING)
    policy = load_model(source, config.dtype)
    # Before an adapter is put on: its random numbers are no part of the reference.
    weights_digest = fingerprint(policy)
    reference_digest = model_digest(weights_digest, source)
    start_digest = None
    if config.method == LORA:
        start_digest = _put_adapter_on(policy, config, source)
        if config.adapter_reference == "start":
            both = f"{reference_digest} {start_digest}".encode()
            reference_digest = hashlib.sha256(both).hexdigest()
    job = Job(
        config=config,
        name=name,
        source=source,
        files=files,
        out=out_of(config),
        policy=policy,
        weights_digest=weights_digest,
        model_digest=reference_digest,
        adapter_digest=start_digest,
        stored_digest=stored_digest(source) if config.method == LORA else None,
        chat=chat,
        data=data,
        max_steps=max_steps,
        num_parameters=size,
        tuned_before=tuned_before(str(config.model), source, config.adapter),
    )
    _check_ids(job)
    return job


def _put_adapter_on(policy: nn.Module, config: RunConfig, source: Path) -> str | None:
    """A new adapter, or the one to start from; the digest of that one."""
    if config.adapter is None:
        paths = choose_modules(policy, config.lora_modules, config.lora_layers)
        rank, scale = config.lora_rank, config.lora_scale
        attach(policy, new_adapter(policy, paths, rank=rank, scale=scale, seed=config.seed))
        return None
    attach(policy, adapter_to_train(config.adapter, source, policy))
    return adapter_digest(policy)


def _check_ids(job: Job) -> None:
    prompt, chosen, rejected = lengths(job.examples).T
    check_ids(
        job.policy,
        job.source,
        largest_id=job.data.largest_id,
        longest=int((prompt + np.maximum(chosen, rejected)).max()),
    )

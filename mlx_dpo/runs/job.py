"""From settings to the things a run works with: model, pairs, folders. Nothing is trained here."""

import hashlib
import os
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import mlx.nn as nn

from mlx_dpo.errors import DataError, UsageError
from mlx_dpo.models.export import companions
from mlx_dpo.models.hub import check_ids, model_digest
from mlx_dpo.models.parameters import fingerprint
from mlx_dpo.preferences.batches import EpochOrder
from mlx_dpo.preferences.reader import read_preferences
from mlx_dpo.preferences.split import held_out
from mlx_dpo.preferences.tokens import ChatFormat, chat_format, encode_preferences
from mlx_dpo.records import EncodedPairs, Preference
from mlx_dpo.runs.config import PLACES, RunConfig
from mlx_dpo.runs.sources import find, find_mlx, load_folder, name_of
from mlx_dpo.training.reference import example_digest

SPLIT_SEED = 0  # not the run's seed: runs that differ in seed are judged on the same pairs


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
        train: Training pairs.
        held_out: Held-out pairs, possibly none.
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
    train: EncodedPairs
    held_out: EncodedPairs
    max_steps: int

    def identity(self) -> dict[str, Any]:
        """What a resumed run must share with the one it continues."""
        settings = {k: v for k, v in asdict(self.config).items() if k not in PLACES}
        settings |= {"epochs": None, "steps": self.max_steps}
        return {**settings, "model": self.model, "data": self.data_digest()}

    def data_digest(self) -> str:
        """sha256 over the token ids of every pair, training and held out, in order."""
        digest = hashlib.sha256()
        for part in (self.train, self.held_out):
            digest.update(f"{len(part.examples)}\n".encode())
            for example in part.examples:
                digest.update(example_digest(example))
        return digest.hexdigest()

    def split(self) -> dict[str, list[str]]:
        """Ids of the pairs on each side."""
        return {
            "train": [p.id for p in self.train.preferences],
            "held_out": [p.id for p in self.held_out.preferences],
        }


def prepare(config: RunConfig) -> Job:
    """Read data and model, cheap checks first.

    Raises:
        UsageError: If a folder or setting is not as it must be.
        DataError: If a preference file can't be used or leaves no pair to train on.
    """
    assert config.model is not None
    assert config.data is not None
    given = find(config.model)
    name = name_of(config.model)
    out = Path(config.out or f"checkpoints/{name}-dpo")
    run = Path(config.run_dir or f"runs/{name}")
    check_places(given, out, run, overwrite=config.overwrite)
    train, held = _split(config, read_preferences(config.data))
    source = find_mlx(config.model)
    companions(source)  # refused now, and not when the finished model is written
    policy, tokenizer = load_folder(source)
    chat = chat_format(tokenizer)
    encoded = encode_preferences(train, chat, max_length=config.max_length)
    if not encoded.examples:
        reasons = ", ".join(f"{count} {reason}" for reason, count in encoded.dropped.items())
        raise DataError(
            f"{config.data}: no pair is left to train on ({reasons or 'all are held out'}); "
            "see --max-length and --eval-fraction"
        )
    per_step = config.batch_size * config.grad_accumulation
    order = EpochOrder(len(encoded.examples), per_step, config.seed)
    job = Job(
        config=config,
        name=name,
        source=source,
        out=out,
        policy=policy,
        weights=fingerprint(policy),
        model=model_digest(policy, source),
        chat=chat,
        train=encoded,
        held_out=encode_preferences(held, chat, max_length=config.max_length),
        max_steps=config.steps or config.epochs * order.batches_per_epoch,
    )
    _check_ids(job)
    return job


def _split(
    config: RunConfig, preferences: list[Preference]
) -> tuple[list[Preference], list[Preference]]:
    if config.eval_data is not None:
        held = read_preferences(config.eval_data)
        shared = {p.prompt for p in preferences} & {p.prompt for p in held}
        if shared:
            question = next(iter(shared))[-1].content
            raise DataError(
                f"{config.eval_data}: {len(shared)} prompts are in {config.data} too, such as "
                f"{question!r}; held-out pairs must be new"
            )
        return preferences, held
    out = held_out(preferences, config.eval_fraction, SPLIT_SEED)
    train = [p for p, is_out in zip(preferences, out, strict=True) if not is_out]
    return train, [p for p, is_out in zip(preferences, out, strict=True) if is_out]


def _check_ids(job: Job) -> None:
    examples = [*job.train.examples, *job.held_out.examples]
    check_ids(
        job.policy,
        job.source,
        largest_id=max(max(ids, default=0) for example in examples for ids in example),
        longest=max(len(e.prompt_ids) + max(map(len, e[1:])) for e in examples),
    )


def check_places(source: Path, out: Path, run: Path, *, overwrite: bool) -> None:
    """Refuse folders that would write into one another, or over somebody's work.

    Args:
        source: The model.
        out: Where the finished checkpoint goes.
        run: Where the run goes.
        overwrite: Whether an `out` that a run made may be replaced.

    Raises:
        UsageError: If they overlap, or `out` is there and may not be replaced.
    """
    named = [("--model", source), ("--out", out), ("--run-dir", run)]
    for (one, a), (other, b) in combinations([(n, p.resolve()) for n, p in named], 2):
        if a == b or a in b.parents or b in a.parents:
            raise UsageError(f"{other} {b} and {one} {a} overlap; the three folders must be apart")
    if not os.path.lexists(out):
        return
    if not overwrite:
        raise UsageError(f"{out}: exists; pass --overwrite to replace it, or another --out")
    if out.is_symlink() or not (out / "dpo.json").is_file():
        raise UsageError(f"{out}: exists and no run made it (no dpo.json); choose another --out")

"""Models opened to be scored, and their log-probs: of whole responses, and position by position."""

import gc
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import numpy.typing as npt

from mlx_dpo.convert.sources import find_mlx, load_folder
from mlx_dpo.errors import NonFiniteError, UsageError
from mlx_dpo.models.hub import check_ids
from mlx_dpo.preferences.chat import ChatFormat, chat_format, pad_id_of
from mlx_dpo.records import PreferenceExample
from mlx_dpo.runs.config import RunConfig
from mlx_dpo.training.reference import score_in_batches
from mlx_dpo.training.self_check import Choice, choose_path

# Logits of so many positions are alive at a time: 50 MB at a vocabulary of 200,000.
POSITIONS = 64

Logprobs = npt.NDArray[np.float32]
CountDone = Callable[[int], None]  # called with how many more are done
T = TypeVar("T")


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory that is scored, and never changed.

    `name` is as it was given; `model` is frozen and called as ``model(ids, cache=...)``; `record`
    is its ``dpo.json``, which describes the run that made it, empty where there is none.
    """

    name: str
    model: nn.Module
    chat: ChatFormat
    folder: Path
    record: dict[str, Any]

    def check_ids(self, examples: Sequence[PreferenceExample]) -> None:
        """Refuse token ids and lengths the model has no row for.

        Raises:
            UsageError: If it can't embed them.
        """
        largest = max((max(ids, default=0) for e in examples for ids in e), default=0)
        longest = max((len(e.prompt_ids) + max(map(len, e[1:])) for e in examples), default=0)
        check_ids(self.model, self.folder, largest_id=largest, longest=longest)


def open_model(name: str) -> LoadedModel:
    """Load a model to score with, by folder or hub id.

    Raises:
        UsageError: If it is not there or can't be loaded.
    """
    folder = find_mlx(name)
    model, tokenizer = load_folder(folder)
    model.freeze()
    model.eval()
    return LoadedModel(name, model, chat_format(tokenizer), folder, read_record(folder))


def read_record(folder: Path) -> dict[str, Any]:
    """The ``dpo.json`` of a folder that a run made; empty where there is none to read."""
    try:
        record = json.loads((folder / "dpo.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def in_turn(names: Sequence[str], use: Callable[[LoadedModel], T]) -> list[T]:
    """Results of `use` for each model, with one model in memory at a time.

    Raises:
        UsageError: If a model can't be loaded.
    """
    results = []
    for name in names:
        loaded = open_model(name)
        results.append(use(loaded))
        del loaded
        gc.collect()
        mx.clear_cache()
    return results


def check_same_tokens(chat: ChatFormat, loaded: LoadedModel) -> None:
    """Refuse a model that means something else by a token id.

    Raises:
        UsageError: If its vocabulary is not that of `chat`.
    """
    if chat.tokenizer.get_vocab() != loaded.chat.tokenizer.get_vocab():
        raise UsageError(
            f"{loaded.name}: has another tokenizer than the policy, so their log-probs are not of "
            "the same thing; the reference is the model the policy was trained from"
        )


class PairScores(NamedTuple):
    """Log-probs of pairs, float32 (2, N), chosen and rejected, in nats; and how they were computed.

    `choice` holds the scoring path, and why faster ones were not taken.
    """

    logprobs: Logprobs
    choice: Choice


def score_pairs(
    loaded: LoadedModel,
    examples: Sequence[PreferenceExample],
    *,
    max_length: int,
    after_batch: CountDone | None = None,
) -> PairScores:
    """Score at least one pair by the fastest path that agrees with the plain one, as training does.

    Raises:
        UsageError: If the model has no row for an id or a position.
        NonFiniteError: If a log-prob is not finite.
    """
    loaded.check_ids(examples)
    choice = choose_path(
        loaded.model, examples, max_seq_len=max_length, pad_id=pad_id_of(loaded.chat.tokenizer)
    )
    logprobs = score_in_batches(
        partial(choice.path, loaded.model),
        examples,
        batch_size=RunConfig.batch_size,
        after_batch=after_batch,
    )
    if not np.isfinite(logprobs).all():
        row = int(np.flatnonzero(~np.isfinite(logprobs).all(axis=0))[0]) + 1
        raise NonFiniteError(f"{loaded.name}: the log-prob of pair {row} is not a finite number")
    return PairScores(logprobs, choice)


def token_logprobs(
    loaded: LoadedModel, prompt_ids: Sequence[int], response_ids: Sequence[int]
) -> Logprobs:
    """Log-prob of each response token after all before it, in nats, float32 (T,).

    The very first token of a conversation without a prompt follows nothing; it counts as 0, as it
    does in training.
    """
    targets = mx.array([*prompt_ids, *response_ids][max(1, len(prompt_ids)) :])
    parts = [mx.zeros(len(response_ids) - targets.size)]
    start = 0
    for logprobs in next_logprobs(loaded.model, prompt_ids, response_ids):
        picked = targets[start : start + len(logprobs), None]
        parts.append(mx.take_along_axis(logprobs, picked, axis=-1).squeeze(-1))
        mx.eval(parts[-1])
        start += len(logprobs)
    return np.array(mx.concatenate(parts))


def next_logprobs(
    model: nn.Module, prompt_ids: Sequence[int], response_ids: Sequence[int]
) -> Iterator[mx.array]:
    """Log-probs of every possible next token at each position that predicts a response token.

    The prompt goes through first and leaves only its keys and values; then come chunks of
    `POSITIONS`, so that the logits of a long answer are never all alive.

    Yields:
        float32 (n, V), one row a position, in order.
    """
    from mlx_lm.models.cache import make_prompt_cache

    ids = [*prompt_ids, *response_ids][:-1]
    first = max(0, len(prompt_ids) - 1)
    cache = make_prompt_cache(model)
    if first:
        model(mx.array([ids[:first]]), cache=cache)  # its logits are never evaluated
        mx.eval([layer.state for layer in cache])
    for start in range(first, len(ids), POSITIONS):
        logits = model(mx.array([ids[start : start + POSITIONS]]), cache=cache)[0]
        logits = logits.astype(mx.float32)
        yield logits - mx.logsumexp(logits, axis=-1, keepdims=True)

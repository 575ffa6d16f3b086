"""Models opened to be scored, and their log-probs: of whole responses, and position by position."""

import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_dpo.convert.sources import (
    RECORD,
    Source,
    base_of,
    date_of,
    load_source,
    load_tokenizer,
    locate,
    read_record,
)
from mlx_dpo.errors import NonFiniteError, UsageError
from mlx_dpo.models.adapters import adapter_digest, base_parameters, without_adapter
from mlx_dpo.models.folder import check_ids
from mlx_dpo.models.parameters import fingerprint, is_float, stored_digest
from mlx_dpo.preferences.chat import ChatFormat, chat_format, pad_id_of
from mlx_dpo.preferences.scores import Logprobs
from mlx_dpo.records import PreferenceExample
from mlx_dpo.runs.config import DTYPES, RunConfig
from mlx_dpo.training.paths import FastPath
from mlx_dpo.training.reference import rows_by_length, score_in_batches
from mlx_dpo.training.self_check import Choice, choose_path

# Logits of so many positions are alive at a time: 50 MB at a vocabulary of 200,000.
POSITIONS = 64

# Answers of which a fast path is worth its comparison with the plain one.
_WORTH_A_CHECK = 24

AnswerIds = tuple[list[int], list[int]]  # ids of a prompt and of an answer to it
CountDone = Callable[[int], None]  # called with how many more are done
T = TypeVar("T")


class Named(NamedTuple):
    """A model by its name, a folder or hub id, and perhaps the folder of an adapter for it."""

    name: str
    adapter: str | None = None

    def __str__(self) -> str:
        return self.name if self.adapter is None else f"{self.name} + {self.adapter}"

    @property
    def base(self) -> str:
        """The model without its adapter, which `name` may be alone."""
        adapter = locate(*self).adapter
        return self.name if adapter is None or self.adapter is not None else base_of(adapter)


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory that is scored, and never changed.

    Attributes:
        named: As it was given.
        model: Frozen, called as ``model(ids, cache=...)``.
        chat: Its conversation format.
        source: Where it came from.
        record: The ``dpo.json`` of the run that made it, or its adapter; empty where there is none.
    """

    named: Named
    model: nn.Module
    chat: ChatFormat
    source: Source
    record: dict[str, Any]

    @property
    def name(self) -> str:
        """As it is shown."""
        return str(self.named)

    @property
    def settings(self) -> dict[str, Any]:
        """Of the run that made it; empty where it is not known."""
        return _entry(self.record, "settings")

    def without_adapter(self) -> "LoadedModel":
        """The model below the adapter: the same arrays, none of them copied."""
        folder = self.source.folder
        return replace(
            self,
            named=Named(self.named.base),
            model=without_adapter(self.model),
            source=Source(folder, None, folder),
            record=read_record(folder),
        )

    def comes_from(self, reference: "LoadedModel") -> bool:
        """Whether a model is what this one was trained from, as far as its record tells."""
        origin = _entry(self.record, "trained_from")
        if not origin:
            return True
        is_start = self.settings.get("adapter_reference") == "start"
        start = origin.get("adapter") if is_start else None
        found = adapter_digest(reference.model) if reference.source.adapter else None
        return found == start and _is_base(origin, self, reference)

    def check_ids(self, examples: Sequence[PreferenceExample]) -> None:
        """Refuse token ids and lengths the model has no row for.

        Raises:
            UsageError: If it can't embed them.
        """
        largest = max((max(ids, default=0) for e in examples for ids in e), default=0)
        longest = max((len(e.prompt_ids) + max(map(len, e[1:])) for e in examples), default=0)
        check_ids(self.model, self.source.folder, largest_id=largest, longest=longest)


def open_model(name: str, adapter: str | None = None) -> LoadedModel:
    """Load a model to score with.

    Args:
        name: A folder or hub id, or the folder of a trained adapter, whose base is loaded with it.
        adapter: Folder of an adapter to put onto it.

    Raises:
        UsageError: If one of them is not there or can't be loaded, or the adapter is another
            model's.
    """
    source = locate(name, adapter)
    model = load_source(source)
    model.freeze()
    model.eval()
    chat = chat_format(load_tokenizer(source.folder), date_of(source.origin))
    return LoadedModel(Named(name, adapter), model, chat, source, read_record(source.origin))


def reference_of(policy: Named) -> Named | None:
    """What a policy was trained from, by the record of its run.

    Returns:
        A model, or the adapter that the run started from on the policy's base. None stands for
        the policy itself with its adapter off.

    Raises:
        UsageError: If no record says it, or that adapter is not there any more.
    """
    source = locate(*policy)
    record = read_record(source.origin)
    settings = _entry(record, "settings")
    start = settings.get("adapter") if settings.get("adapter_reference") == "start" else None
    if source.adapter is None:
        name = _entry(record, "trained_from").get("model")
        if not isinstance(name, str):
            raise UsageError(
                f"{policy}: no {RECORD} in it says what it was trained from; pass --reference"
            )
        return Named(name, start if isinstance(start, str) else None)
    if not isinstance(start, str):
        return None
    if not Path(start).expanduser().is_dir():
        raise UsageError(
            f"{policy}: its reference is the adapter it started from, {start}, which is not there "
            "any more; pass --reference"
        )
    return Named(policy.base, start)


def in_turn(models: Sequence[Named | None], use: Callable[[LoadedModel], T]) -> list[T]:
    """Results of `use` for each model, with one model in memory at a time.

    Args:
        models: None stands for the one before it with its adapter off.
        use: Called with each.

    Raises:
        UsageError: If a model can't be loaded.
    """
    results = []
    loaded: LoadedModel | None = None
    for named in models:
        if named is not None:
            loaded = None
            _collect()
            loaded = open_model(*named)
        else:
            assert loaded is not None
            loaded = loaded.without_adapter()
        results.append(use(loaded))
    del loaded
    _collect()
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


def answers_by_token(
    loaded: LoadedModel, answers: Sequence[AnswerIds], after_answers: CountDone
) -> list[Logprobs]:
    """`token_logprobs` of many answers, by the fast path where it agrees with the plain one.

    Of a few, the comparison would cost more than it saves.

    Args:
        loaded: The model.
        answers: Ids of a prompt and of an answer to it. Two to one prompt are best side by side.
        after_answers: Called with how many more are scored.
    """
    pairs = _in_twos(answers)
    examples = [PreferenceExample(*answers[rows[0]], answers[rows[-1]][1]) for rows in pairs]
    path = None
    if len(answers) >= _WORTH_A_CHECK:
        length = max(sum(map(len, answer)) for answer in answers)
        pad_id = pad_id_of(loaded.chat.tokenizer)
        path = choose_path(loaded.model, examples, max_seq_len=max(2, length), pad_id=pad_id).path
    if not isinstance(path, FastPath):
        return [_counted(token_logprobs(loaded, *answer), after_answers) for answer in answers]
    found: dict[int, Logprobs] = {}
    for batch in rows_by_length(examples, RunConfig.batch_size):
        by_slot = path.of_tokens(loaded.model, [examples[row] for row in batch])
        mx.eval(by_slot)
        for place, row in enumerate(batch):
            for side, number in enumerate(pairs[row]):
                known = by_slot.get((side, place), mx.zeros(0))
                missing = len(answers[number][1]) - known.size
                found[number] = np.concatenate([np.zeros(missing, np.float32), np.array(known)])
            after_answers(len(pairs[row]))
    return [found[number] for number in range(len(answers))]


def _in_twos(answers: Sequence[AnswerIds]) -> list[list[int]]:
    """Neighbours that answer the same prompt, two by two; the others alone."""
    pairs: list[list[int]] = []
    for number, (prompt, _) in enumerate(answers):
        if pairs and len(pairs[-1]) == 1 and answers[pairs[-1][0]][0] == prompt:
            pairs[-1].append(number)
        else:
            pairs.append([number])
    return pairs


def _counted(logprobs: Logprobs, after_answers: CountDone) -> Logprobs:
    after_answers(1)
    return logprobs


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


def _collect() -> None:
    gc.collect()
    mx.clear_cache()


def _entry(record: dict[str, Any], key: str) -> dict[str, Any]:
    value = record.get(key)
    return value if isinstance(value, dict) else {}


def _is_base(origin: dict[str, Any], policy: LoadedModel, reference: LoadedModel) -> bool:
    """Whether the weights below all adapters are those that training started from."""
    folder = reference.source.folder
    if (stored := origin.get("sha256")) is not None:
        # A policy on this very folder was compared with it when it was loaded.
        is_same = policy.source.adapter is not None and policy.source.folder == folder
        return is_same or stored == stored_digest(folder)
    known = origin.get("fingerprint")
    if known is None:
        return True
    dtype = policy.settings.get("dtype")  # the fingerprint is of the weights in that
    base = base_parameters(reference.model)
    if dtype in DTYPES:
        kind = getattr(mx, dtype)
        base = {name: a.astype(kind) if is_float(a) else a for name, a in base.items()}
    return bool(known == fingerprint(base))

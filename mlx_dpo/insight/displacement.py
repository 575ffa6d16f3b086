"""Displacement: chosen answers that training made less likely, and what became likelier instead.

The loss sees the margin alone. Where both answers are alike to the model, what lowers the rejected
one lowers the chosen one too, and a third gains (arXiv:2410.08847).

T: tokens of an answer; V: vocabulary. Changes are log p under the policy less log p under the
reference, in nats.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_dpo.convert.sources import adapter_to_train, load_model
from mlx_dpo.errors import MlxDpoError
from mlx_dpo.insight.scoring import next_logprobs
from mlx_dpo.memory.shapes import shell
from mlx_dpo.models.adapters import adapted_modules, without_adapter
from mlx_dpo.models.export import weight_stamps
from mlx_dpo.preferences.chat import ChatFormat
from mlx_dpo.preferences.reader import read_rows
from mlx_dpo.preferences.schema import Problems
from mlx_dpo.preferences.scores import Logprobs, wilson_interval
from mlx_dpo.records import EncodedPairs, PreferenceExample
from mlx_dpo.runs.defaults import LORA
from mlx_dpo.runs.job import Job

MOST = 10  # pairs that are looked into
LEAST = 1.0  # nats, from which on a loss is looked into
NOISE = 0.01  # nats: a smaller loss may be rounding
_GAINED, _LEAST_GAIN = 3, 1e-3  # tokens, and the probability that one must have gained
_CONTEXT = 40  # characters before a token
_ENOUGH = 10  # pairs, below which nothing is sure


@dataclass(frozen=True, slots=True)
class Shift:
    """How log p(chosen) moved.

    Attributes:
        num_pairs, num_fallen: All pairs, and those whose chosen answer lost more than `NOISE`.
        mean: Change, in nats a pair.
        interval: 95 % interval of it, by its standard error.
    """

    num_pairs: int
    num_fallen: int
    mean: float
    interval: tuple[float, float]

    @property
    def matters(self) -> bool:
        """Whether chosen answers surely fall: on average, or more than half of them."""
        share = wilson_interval(self.num_fallen, self.num_pairs)[0]
        return self.num_pairs >= _ENOUGH and (self.interval[1] < -NOISE or share > 0.5)


@dataclass(frozen=True, slots=True)
class Gain:
    """A token that gained probability in another's place; probabilities before and after."""

    token: str
    before: float
    after: float


@dataclass(frozen=True, slots=True)
class Place:
    """Where a chosen answer lost most.

    Attributes:
        position: Of the token in the answer, from 1.
        context: The end of the answer before it.
        lost: The answer's own token there.
        gained: The tokens that gained most there, most first, if any gained much.
    """

    position: int
    context: str
    lost: Gain
    gained: list[Gain]


@dataclass(frozen=True, slots=True)
class Fallen:
    """A pair whose chosen answer became less likely.

    Attributes:
        row: Among the pairs that were scored.
        id: The pair's.
        chosen, rejected: Changes of the two answers.
        prompt: Text; empty where it was not looked up.
        place: Where it lost most; None where that was not looked up.
    """

    row: int
    id: str
    chosen: float
    rejected: float
    prompt: str = ""
    place: Place | None = None


@dataclass(frozen=True, slots=True)
class Displacement:
    """What became of chosen answers; `fallen` are the pairs that lost, most first."""

    shift: Shift
    fallen: list[Fallen]


def shift_of(policy: Logprobs, reference: Logprobs) -> Shift:
    """How log p(chosen) moved, from log-probs (2, N) of at least one pair."""
    change = policy[0].astype(np.float64) - reference[0]
    spread = 1.96 * float(change.std(ddof=min(1, change.size - 1))) / math.sqrt(change.size)
    mean = float(change.mean())
    return Shift(change.size, int((change < -NOISE).sum()), mean, (mean - spread, mean + spread))


def fallen_pairs(policy: Logprobs, reference: Logprobs, ids: Sequence[str]) -> list[Fallen]:
    """The pairs whose chosen answer lost, most first, from log-probs (2, N) and N ids."""
    chosen, rejected = policy.astype(np.float64) - reference
    return [
        Fallen(row, ids[row], float(chosen[row]), float(rejected[row]))
        for row in np.argsort(chosen, kind="stable").tolist()
        if chosen[row] < -NOISE
    ]


def looked_into(
    fallen: Sequence[Fallen],
    examples: Sequence[PreferenceExample],
    models: Callable[[], tuple[nn.Module, nn.Module] | None],
    chat: ChatFormat,
) -> list[Fallen]:
    """The same pairs, the worst of them with the place where they lost most.

    Args:
        fallen: Most first.
        examples: All pairs that were scored.
        models: Gives policy and reference, or None where they can't both be in memory; called
            where a pair lost enough to be looked into.
        chat: Their conversation format.
    """
    count = sum(pair.chosen <= -LEAST for pair in fallen[:MOST])
    both = models() if count else None
    if both is None:
        return list(fallen)
    worst = [
        replace(pair, place=place_of_loss(*both, examples[pair.row], chat))
        for pair in fallen[:count]
    ]
    return [*worst, *fallen[count:]]


def place_of_loss(
    policy: nn.Module, reference: nn.Module, example: PreferenceExample, chat: ChatFormat
) -> Place | None:
    """Where the chosen answer lost most log-prob; None where it has no token that is predicted.

    It takes one forward of each model over prompt and answer.
    """
    prompt, chosen, _ = example
    skipped = 0 if prompt else 1  # the first token of a conversation follows nothing
    targets, start, found = mx.array(chosen[skipped:]), 0, None
    largest = math.inf
    both = (next_logprobs(model, prompt, chosen) for model in (reference, policy))
    for before, after in zip(*both, strict=True):
        own = targets[start : start + len(before), None]
        old, new = (mx.take_along_axis(part, own, axis=-1).squeeze(-1) for part in (before, after))
        changes = np.array(new - old)
        row = int(changes.argmin())
        if (change := float(changes[row])) < largest:
            # Of two models of one tokenizer, one may have more unused rows.
            size = min(before.shape[-1], after.shape[-1])
            rows = [np.array(part[row, :size]) for part in (before, after)]
            largest, found = change, (start + row, np.exp(rows))
        start += len(before)
    if found is None:
        return None
    index, chances = found
    position = index + skipped

    def gain(token: int) -> Gain:
        before, after = chances[:, token].tolist()
        return Gain(chat.tokenizer.decode([token]), before, after)

    most = np.argsort(chances[0] - chances[1], kind="stable")[:_GAINED].tolist()
    return Place(
        position=position + 1,
        context=chat.tokenizer.decode(chosen[:position])[-_CONTEXT:],
        lost=gain(chosen[position]),
        gained=[gain(t) for t in most if chances[1, t] - chances[0, t] >= _LEAST_GAIN],
    )


def displaced(
    policy: Logprobs,
    reference: Logprobs,
    pairs: EncodedPairs,
    models: tuple[nn.Module, nn.Module],
    chat: ChatFormat,
) -> Displacement:
    """What became of the chosen answers of some pairs.

    Args:
        policy: float32 (2, N), log-probs.
        reference: The same before training.
        pairs: At least one.
        models: Policy and reference.
        chat: Their conversation format.
    """
    rows = pairs.preferences
    fallen = fallen_pairs(policy, reference, [row.id for row in rows])
    fallen = [replace(pair, prompt=rows[pair.row].question) for pair in fallen]
    fallen = looked_into(fallen, pairs.examples, lambda: models, chat)
    return Displacement(shift_of(policy, reference), fallen)


def displaced_by_run(job: Job, policy: Logprobs, reference: Logprobs) -> Displacement | None:
    """What a run did to the chosen answers of its held-out pairs; none where no pair was held out.

    Nothing is scored anew: only the worst pairs go through the models once more. Training pairs are
    not known: each was last scored before the step that it was trained in.

    Args:
        job: Its policy is trained.
        policy: float32 (2, N), log-probs of the held-out pairs after training.
        reference: The same before training.
    """
    if not policy.size:
        return None
    fallen = fallen_pairs(policy, reference, job.held_out.ids)
    prompts = _prompts_of(job, {pair.id for pair in fallen[:MOST]})
    fallen = [replace(pair, prompt=prompts.get(pair.id, "")) for pair in fallen]
    # A run is not to fail for what comes on top of its result; a model's code may raise anything.
    with suppress(Exception):
        fallen = looked_into(fallen, job.held_out.examples, lambda: _models_of(job), job.chat)
    return Displacement(shift_of(policy, reference), fallen)


def _prompts_of(job: Job, wanted: set[str]) -> dict[str, str]:
    """Prompts of some held-out pairs, from the file; none where it is not there any more."""
    if not wanted:
        return {}
    with suppress(MlxDpoError):
        data, held_out = job.data.files
        rows = read_rows(held_out or data, Problems(), compare=False)
        found = (row.preference for row in rows if row.preference is not None)
        return {each.id: each.question for each in found if each.id in wanted}
    return {}


def _models_of(job: Job) -> tuple[nn.Module, nn.Module] | None:
    """Policy and reference; None where both may take more memory than training did."""
    config = job.config
    if config.method == LORA:
        return job.policy, _with_first_adapter(job, without_adapter(job.policy))
    # A step that clips holds the gradient of all weights, which takes as much as a second model.
    if not config.grad_clip or weight_stamps(job.source) != job.files.weights:
        return None
    return job.policy, load_model(job.source, config.dtype)


def _with_first_adapter(job: Job, base: nn.Module) -> nn.Module:
    """The reference of a run with adapters, from a view of its policy without one."""
    if job.config.adapter is not None and job.config.adapter_reference == "start":
        modules = adapted_modules(base)
        first = adapter_to_train(job.config.adapter, job.source, shell(job.source))
        for path, part in first.items():
            module = modules[path]
            module.lora_a, module.lora_b, module.scale = part.a, part.b, part.scale
    return base

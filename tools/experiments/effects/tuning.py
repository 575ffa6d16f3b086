"""A model before and after DPO: log-probs of pairs, CHES, and what each step showed."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import numpy.typing as npt

from mlx_dpo.convert.sources import find_mlx, load_model, load_tokenizer
from mlx_dpo.models.adapters import attach_adapters
from mlx_dpo.preferences.chat import ChatFormat, chat_format, pad_id_of
from mlx_dpo.preferences.store import lengths
from mlx_dpo.records import PreferenceExample
from mlx_dpo.training.head import hidden_states
from mlx_dpo.training.loss import Metrics
from mlx_dpo.training.paths import FastPath
from mlx_dpo.training.reference import cached_reference, score_in_batches
from mlx_dpo.training.trainer import DPOTrainer
from tools.experiments.effects.cells import Row

Examples = Sequence[PreferenceExample]
Scores = npt.NDArray[np.float32]

SHOWN = ("loss", "reward_margin", "chosen_reward", "rejected_reward", "accuracy", "lr")


@dataclass(frozen=True)
class Recipe:
    """How a model is trained.

    Attributes:
        model: Folder to start from.
        method: ``lora`` or ``full``.
        rate: Learning rate after warm-up.
        beta: Pull towards the reference.
        batch_size: Pairs a step.
        epochs: Times each pair is seen.
        rank: Of the adapters.
        seed: Decides the order of the pairs, and the adapters' A.
    """

    model: str
    method: str
    rate: float
    beta: float = 0.1
    batch_size: int = 4
    epochs: int = 1
    rank: int = 16
    seed: int = 0

    def settings(self) -> Row:
        """As they are compared: the model by its name, wherever it lies."""
        return asdict(self) | {"model": Path(self.model).name}


@dataclass(frozen=True)
class Model:
    """A model that is trained or scored, and its conversation format."""

    net: nn.Module
    chat: ChatFormat

    @property
    def path(self) -> FastPath:
        """How pairs are scored; all of them are short."""
        return FastPath(4096, pad_id_of(self.chat.tokenizer))

    def logprobs(self, examples: Examples) -> Scores:
        """Log-probs float32 (2, N), chosen and rejected, in nats."""
        return score_in_batches(partial(self.path, self.net), examples, batch_size=4)


def open_model(folder: str) -> Model:
    """A model in float32, from disk."""
    return Model(load_model(find_mlx(folder), "float32"), open_chat(folder))


def open_chat(folder: str) -> ChatFormat:
    """The conversation format of a model, without its weights."""
    return chat_format(load_tokenizer(find_mlx(folder)))


def both_ches(model: Model, examples: Examples) -> Scores:
    """CHES of each pair by sums and by means of the hidden states, float32 (2, N).

    As `mlx_dpo.insight.ches`, but both from one forward.
    """
    scores = np.zeros((2, len(examples)), np.float32)
    for row, (prompt, *answers) in enumerate(examples):
        sums, means = [], []
        for answer in answers:
            ids = mx.array([[*prompt, *answer][:-1]])
            states = hidden_states(model.net, ids, None)[0, -len(answer) :].astype(mx.float32)
            sums.append(states.sum(axis=0))
            means.append(states.mean(axis=0))
        both = [((b - a) * a).sum() for a, b in (sums, means)]
        scores[:, row] = np.array(mx.stack(both))
    return scores


def tuned(recipe: Recipe, pairs: Examples, before: Scores) -> tuple[Model, list[Row]]:
    """A model trained on pairs, and the figures of each step.

    Args:
        recipe: How.
        pairs: N pairs.
        before: Their log-probs under the model as it is, float32 (2, N).
    """
    model = open_model(recipe.model)
    if recipe.method == "lora":
        attach_adapters(model.net, rank=recipe.rank, seed=recipe.seed)
    trainer = trainer_of(model, recipe, pairs, before)
    steps: list[Row] = []

    def keep(step: int, metrics: Metrics) -> None:
        steps.append({name: round(metrics[name], 6) for name in SHOWN})

    trainer.train(after_step=keep)
    model.net.freeze()
    return model, steps


def trainer_of(model: Model, recipe: Recipe, pairs: Examples, before: Scores) -> DPOTrainer:
    """The trainer as `mlx_dpo train` makes it: a tenth of the steps is warm-up, clip 1."""
    steps = recipe.epochs * -(-len(pairs) // recipe.batch_size)
    return DPOTrainer(
        model.net,
        examples=pairs,
        reference=cached_reference(pairs, before),
        max_seq_len=4096,
        pad_id=pad_id_of(model.chat.tokenizer),
        beta=recipe.beta,
        batch_size=recipe.batch_size,
        max_steps=steps,
        max_lr=recipe.rate,
        warmup_steps=min(10, steps // 10),
        grad_clip=1.0,
        seed=recipe.seed,
        lengths=lengths(pairs),
        path=model.path,
    )


def as_lists(scores: Scores) -> list[list[float]]:
    """Scores as JSON, to a tenth of a thousandth."""
    return [[round(value, 4) for value in row] for row in scores.tolist()]

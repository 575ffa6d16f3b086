"""What one trained policy does on held-out pairs and unrelated questions, beside its SFT model."""

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.nn as nn
import numpy as np
import numpy.typing as npt

from mlx_dpo.models.generate import Completion, answer
from mlx_dpo.preferences.chat import ChatFormat, pad_id_of
from mlx_dpo.preferences.encoding import encode_preferences
from mlx_dpo.records import Message, Preference
from mlx_dpo.runs.config import RunConfig
from mlx_dpo.training.trainer import DPOTrainer
from tools.tiny_sft.exclusion import UNRELATED
from tools.tiny_sft.rules import RULES, is_right, repetition, well_formed

ANSWER_TOKENS = 64


@dataclass(frozen=True)
class PairOutcome:
    """One held-out pair.

    Attributes:
        kind: Its kind.
        margin: Implicit reward of chosen minus that of rejected, beta times log-ratios, in nats.
        sft_gap: log p(chosen) - log p(rejected) under the SFT model, in nats.
        dpo_gap: The same under the policy.
    """

    kind: str
    margin: float
    sft_gap: float
    dpo_gap: float


@dataclass(frozen=True)
class AnswerOutcome:
    """One question, answered greedily by both models.

    Attributes:
        kind: A kind that has a rule, or "unrelated".
        question: The question.
        sft: Before DPO.
        dpo: After it.
    """

    kind: str
    question: str
    sft: Completion
    dpo: Completion

    def right(self) -> tuple[bool, bool]:
        """Whether the answer before and the one after are right by the rule of the kind."""
        before, after = (is_right(self.kind, self.question, a.text) for a in (self.sft, self.dpo))
        return before, after

    def well_formed(self) -> tuple[bool, bool]:
        """Whether the answer before and the one after are well-formed."""
        before, after = (well_formed(a.text, closed=a.closed) for a in (self.sft, self.dpo))
        return before, after

    def repetition(self) -> tuple[float, float]:
        """Share of repeated trigrams before and after."""
        return repetition(self.sft.text), repetition(self.dpo.text)


def train_policy(
    config: RunConfig,
    policy: nn.Module,
    sft: nn.Module,
    chat: ChatFormat,
    preferences: Sequence[Preference],
) -> DPOTrainer:
    """Train a policy on preferences with the settings of a run; returns the finished trainer."""
    examples = encode_preferences(preferences, chat, max_length=config.max_length).examples
    steps_per_epoch = -(-len(examples) // (config.batch_size * config.grad_accumulation))
    trainer = DPOTrainer(
        policy,
        ref_model=sft,
        examples=examples,
        max_seq_len=config.max_length,
        pad_id=pad_id_of(chat.tokenizer),
        beta=config.beta,
        batch_size=config.batch_size,
        grad_accumulation=config.grad_accumulation,
        max_steps=config.steps or config.epochs * steps_per_epoch,
        max_lr=config.learning_rate,
        min_lr=config.min_learning_rate,
        warmup_steps=config.warmup_steps,
        weight_decay=config.weight_decay,
        grad_clip=config.grad_clip or None,
        seed=config.seed,
    )
    trainer.train()
    return trainer


def pair_outcomes(
    trainer: DPOTrainer, chat: ChatFormat, held_out: Sequence[Preference]
) -> list[PairOutcome]:
    """Margins and gaps of held-out pairs."""
    encoded = encode_preferences(held_out, chat, max_length=trainer.max_seq_len)
    policy, reference = trainer.score_pairs(encoded.examples)
    dpo_gaps, sft_gaps = _gap(policy), _gap(reference)
    margins = trainer.beta * (dpo_gaps - sft_gaps)
    return [
        PairOutcome(row.kind, float(margin), float(sft_gap), float(dpo_gap))
        for row, margin, sft_gap, dpo_gap in zip(
            encoded.preferences, margins, sft_gaps, dpo_gaps, strict=True
        )
    ]


def answer_outcomes(
    policy: nn.Module, sft: nn.Module, chat: ChatFormat, held_out: Sequence[Preference]
) -> list[AnswerOutcome]:
    """Answers to the held-out questions that have a rule, then to the unrelated ones."""
    asked = [(row.kind, row.question) for row in held_out if row.kind in RULES]
    asked += [("unrelated", question) for question in UNRELATED]
    return [
        AnswerOutcome(kind, text, reply(sft, chat, text), reply(policy, chat, text))
        for kind, text in asked
    ]


def reply(model: nn.Module, chat: ChatFormat, question: str) -> Completion:
    """The greedy answer to a question."""
    return answer(model, chat, (Message("user", question),), max_tokens=ANSWER_TOKENS)


def _gap(logprobs: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    chosen, rejected = logprobs
    gaps: npt.NDArray[np.float32] = chosen - rejected
    return gaps

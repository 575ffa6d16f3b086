"""How far a policy has moved from its reference, on answers of its own.

The objective of DPO penalises E over y ~ π of log π(y) - log π_ref(y). By the chain rule that is
the expected sum, over the positions of an answer *sampled from the policy itself*, of the
divergence of the two next-token distributions. So the answers are sampled from the policy at
temperature 1; greedy answers, or the reference's, would give another quantity. Summing each
position over the whole vocabulary, instead of taking the one token that was drawn, lowers the
variance.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import numpy.typing as npt

from mlx_dpo.errors import UsageError
from mlx_dpo.insight.scoring import CountDone, LoadedModel, next_logprobs
from mlx_dpo.models.generate import Completion, answer_all
from mlx_dpo.runs.collapse import answer_signs, repetition


@dataclass(frozen=True, slots=True)
class Drift:
    """Divergence on the policy's own answers, and how both models answer.

    Attributes:
        num_prompts: Prompts answered.
        num_tokens: Tokens of the policy's answers, closing tokens included.
        kl_per_token: Mean KL(policy || reference) of a position, in nats.
        kl_per_answer: Mean of its sum over an answer, in nats.
        policy_length, reference_length: Mean tokens of an answer.
        policy_cut, reference_cut: Answers that reached the limit.
        policy_repetition, reference_repetition: Share of word triples that came before in the same
            answer.
    """

    num_prompts: int
    num_tokens: int
    kl_per_token: float
    kl_per_answer: float
    policy_length: float
    reference_length: float
    policy_cut: int
    reference_cut: int
    policy_repetition: float
    reference_repetition: float

    @property
    def signs(self) -> list[str]:
        """What is suspicious about the policy's answers."""
        return answer_signs(
            self.num_prompts,
            length=(self.policy_length, self.reference_length),
            cut=(self.policy_cut, self.reference_cut),
            repeated=(self.policy_repetition, self.reference_repetition),
        )


def measure_drift(
    policy: LoadedModel,
    reference: LoadedModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    seed: int,
    reference_answers: Sequence[Completion] | None = None,
    after_prompts: CountDone = lambda count: None,
) -> Drift:
    """Sample an answer of each model to each prompt, and compare the models along the policy's.

    Both models are in memory: each position needs both distributions at once. Prompt i, of at least
    one, is sampled with seed + i by both; `reference_answers` are the reference's where they were
    sampled before in the same way. `after_prompts` counts those that the policy has answered.

    Raises:
        UsageError: If the models' vocabularies differ in size.
    """
    others = reference_answers or sample_answers(
        reference, prompts, max_tokens=max_tokens, seed=seed
    )
    answers = sample_answers(
        policy, prompts, max_tokens=max_tokens, seed=seed, after_prompts=after_prompts
    )
    divergence = sum(
        float(token_kl(policy.model, reference.model, prompt, answer.ids).sum())
        for prompt, answer in zip(prompts, answers, strict=True)
    )
    num_tokens = sum(len(a.ids) for a in answers)
    return Drift(
        num_prompts=len(prompts),
        num_tokens=num_tokens,
        kl_per_token=divergence / max(1, num_tokens),
        kl_per_answer=divergence / len(prompts),
        policy_length=num_tokens / len(prompts),
        reference_length=sum(len(a.ids) for a in others) / len(prompts),
        policy_cut=sum(not a.closed for a in answers),
        reference_cut=sum(not a.closed for a in others),
        policy_repetition=repetition(a.text for a in answers),
        reference_repetition=repetition(a.text for a in others),
    )


def sample_answers(
    loaded: LoadedModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    seed: int,
    after_prompts: CountDone = lambda count: None,
) -> list[Completion]:
    """An answer to each prompt, at temperature 1, as the KL divergence is defined."""
    return answer_all(
        *(loaded.model, loaded.chat, prompts),
        max_tokens=max_tokens,
        temperature=1.0,
        seed=seed,
        after_prompts=after_prompts,
    )


def token_kl(
    policy: nn.Module, reference: nn.Module, prompt: Sequence[int], answer: Sequence[int]
) -> npt.NDArray[np.float32]:
    """KL(policy || reference) of the next token at each position of an answer, in nats.

    Exact, over the whole vocabulary. Logits are alive for one chunk of positions only. The prompt
    has at least one id; T ids of an answer give float32 (T,).

    Raises:
        UsageError: If the vocabularies differ in size.
    """
    parts = []
    chunks = (next_logprobs(model, prompt, answer) for model in (policy, reference))
    for ours, theirs in zip(*chunks, strict=True):
        if ours.shape != theirs.shape:
            raise UsageError(
                f"the models have vocabularies of {ours.shape[-1]} and {theirs.shape[-1]} tokens"
            )
        # A token the policy rules out (log-prob of minus infinity) adds nothing.
        terms = mx.where(ours > -mx.inf, mx.exp(ours) * (ours - theirs), 0.0)
        parts.append(terms.sum(axis=-1))
        mx.eval(parts[-1])
    return np.array(mx.concatenate(parts)) if parts else np.zeros(0, np.float32)

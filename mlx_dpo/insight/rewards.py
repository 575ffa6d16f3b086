"""The implicit reward of any answer, whole and token by token.

DPO trains no reward model: with respect to its reference, the policy is one. The reward of an
answer is beta * log(policy / reference) (Sec. 4 of arXiv:2305.18290), and by the chain rule it is
the sum of the same over the answer's tokens.

The two models are in memory one after the other, never both.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mlx_dpo.errors import DataError, NonFiniteError
from mlx_dpo.insight.scoring import (
    CountDone,
    LoadedModel,
    Named,
    check_same_tokens,
    in_turn,
    score_pairs,
    token_logprobs,
)
from mlx_dpo.preferences.chat import ChatFormat
from mlx_dpo.preferences.scores import Logprobs
from mlx_dpo.records import Message, Preference, PreferenceExample

Models = tuple[Named, Named | None]  # policy and reference; None is the policy's adapter off
AnswerIds = tuple[list[int], list[int]]  # ids of a prompt and of an answer to it


@dataclass(frozen=True, slots=True)
class TokenReward:
    """What one token, after all before it, adds to an answer's reward; log-probs in nats."""

    token: str
    logprob: float
    reference_logprob: float
    reward: float


@dataclass(frozen=True, slots=True)
class AnswerReward:
    """The implicit reward of an answer; log-probs are sums over its tokens, in nats.

    Attributes:
        num_tokens: Tokens scored, the closing token among them.
        logprob: Under the policy.
        reference_logprob: Under the reference.
        reward: beta times their difference.
        tokens: What each token adds; None where that was not asked for.
    """

    num_tokens: int
    logprob: float
    reference_logprob: float
    reward: float
    tokens: list[TokenReward] | None = None


def encode_answers(
    chat: ChatFormat, prompt: str, responses: Sequence[str], *, max_length: int
) -> list[AnswerIds]:
    """Ids of some answers to one prompt.

    Raises:
        DataError: If one does not fit the length.
    """
    turns = (Message("user", prompt),)
    answers = []
    for number, text in enumerate(responses, 1):
        response = (Message("assistant", text),)
        example, _ = chat.encode_pair(Preference(turns, response, response, "", str(number)))
        length = len(example.prompt_ids) + len(example.chosen_ids)
        if length > max_length:
            raise DataError(
                f"response {number} takes {length} tokens with its prompt, more than {max_length}; "
                "raise --max-length"
            )
        answers.append((example.prompt_ids, example.chosen_ids))
    return answers


def reward_tokens(
    models: Models,
    chat: ChatFormat,
    answers: Sequence[AnswerIds],
    *,
    beta: float,
    after_answer: CountDone = lambda count: None,
) -> list[AnswerReward]:
    """Rewards of answers with what each token adds to them.

    Raises:
        UsageError: If a model can't be loaded or does not know the ids.
        NonFiniteError: If a log-prob is not finite.
    """

    def score(loaded: LoadedModel) -> list[Logprobs]:
        check_same_tokens(chat, loaded)
        loaded.check_ids([PreferenceExample(*answer, []) for answer in answers])
        logprobs = []
        for prompt, response in answers:
            logprobs.append(token_logprobs(loaded, prompt, response))
            after_answer(1)
            if not np.isfinite(logprobs[-1]).all():
                raise NonFiniteError(f"{loaded.name}: a token's log-prob is not a finite number")
        return logprobs

    rewards = []
    for (_, ids), ours, theirs in zip(answers, *in_turn(models, score), strict=True):
        tokens = [
            TokenReward(chat.tokenizer.decode([token]), p, r, beta * (p - r))
            for token, p, r in zip(ids, ours.tolist(), theirs.tolist(), strict=True)
        ]
        p, r = ours.sum(dtype=np.float64), theirs.sum(dtype=np.float64)
        rewards.append(AnswerReward(len(ids), float(p), float(r), float(beta * (p - r)), tokens))
    return rewards


def reward_pairs(
    models: Models,
    chat: ChatFormat,
    examples: Sequence[PreferenceExample],
    *,
    beta: float,
    max_length: int,
    after_batch: CountDone | None = None,
) -> list[tuple[AnswerReward, AnswerReward]]:
    """Rewards of the chosen and the rejected answer of each pair.

    Raises:
        UsageError: If a model can't be loaded or does not know the ids.
        NonFiniteError: If a log-prob is not finite.
    """

    def score(loaded: LoadedModel) -> Logprobs:
        check_same_tokens(chat, loaded)
        scores = score_pairs(loaded, examples, max_length=max_length, after_batch=after_batch)
        return scores.logprobs

    policy, reference = in_turn(models, score)

    def reward(side: int, pair: int) -> AnswerReward:
        p, r = float(policy[side, pair]), float(reference[side, pair])
        return AnswerReward(len(examples[pair][1 + side]), p, r, beta * (p - r))

    return [(reward(0, pair), reward(1, pair)) for pair in range(len(examples))]

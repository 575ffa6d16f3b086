"""The implicit reward of any answer, whole and token by token.

DPO trains no reward model: with respect to where it came from, the policy is one. The reward of an
answer is beta * log(policy / reference) (Sec. 4 of arXiv:2305.18290), and by the chain rule it is
the sum of the same over the answer's tokens.

The two models are in memory one after the other, never both.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mlx_dpo.errors import DataError, NonFiniteError
from mlx_dpo.insight.scoring import (
    Done,
    Judged,
    Logprobs,
    check_same_tokens,
    in_turn,
    score_pairs,
    token_logprobs,
)
from mlx_dpo.preferences.chat import ChatFormat
from mlx_dpo.records import Message, Preference, PreferenceExample

Models = tuple[str, str]  # policy and reference, by folder or hub id
Answer = tuple[list[int], list[int]]  # ids of a prompt and of an answer to it


@dataclass(frozen=True, slots=True)
class TokenReward:
    """What one token adds to an answer's reward.

    Attributes:
        token: Its text.
        logprob: Under the policy, after all before it, in nats.
        reference_logprob: Under the reference.
        reward: beta times their difference.
    """

    token: str
    logprob: float
    reference_logprob: float
    reward: float


@dataclass(frozen=True, slots=True)
class AnswerReward:
    """The implicit reward of an answer.

    Attributes:
        num_tokens: Tokens scored, the closing token among them.
        logprob: Sum over the tokens under the policy, in nats.
        reference_logprob: The same under the reference.
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
) -> list[Answer]:
    """Ids of some answers to one prompt.

    Raises:
        DataError: If one does not fit the length.
    """
    turns = (Message("user", prompt),)
    answers = []
    for number, text in enumerate(responses, 1):
        said = (Message("assistant", text),)
        example, _ = chat.encode_pair(Preference(turns, said, said, kind="", id=str(number)))
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
    answers: Sequence[Answer],
    *,
    beta: float,
    after_answer: Callable[[int], None] = lambda count: None,
) -> list[AnswerReward]:
    """Rewards of answers with what each token adds to them.

    Raises:
        UsageError: If a model can't be loaded or does not know the ids.
        NonFiniteError: If a log-prob is not finite.
    """

    def use(judged: Judged) -> list[Logprobs]:
        check_same_tokens(chat, judged)
        judged.check_ids([PreferenceExample(*answer, []) for answer in answers])
        found = []
        for prompt, response in answers:
            found.append(token_logprobs(judged, prompt, response))
            after_answer(1)
            if not np.isfinite(found[-1]).all():
                raise NonFiniteError(f"{judged.name}: a token's log-prob is not a finite number")
        return found

    policy, reference = in_turn(models, use)
    rewards = []
    for (_, ids), mine, other in zip(answers, policy, reference, strict=True):
        tokens = [
            TokenReward(chat.tokenizer.decode([token]), p, r, beta * (p - r))
            for token, p, r in zip(ids, mine.tolist(), other.tolist(), strict=True)
        ]
        p, r = mine.sum(dtype=np.float64), other.sum(dtype=np.float64)
        rewards.append(AnswerReward(len(ids), float(p), float(r), float(beta * (p - r)), tokens))
    return rewards


def reward_pairs(
    models: Models,
    chat: ChatFormat,
    examples: Sequence[PreferenceExample],
    *,
    beta: float,
    max_length: int,
    after_batch: Done | None = None,
) -> list[tuple[AnswerReward, AnswerReward]]:
    """Rewards of the chosen and the rejected answer of each pair.

    Raises:
        UsageError: If a model can't be loaded or does not know the ids.
        NonFiniteError: If a log-prob is not finite.
    """

    def use(judged: Judged) -> Logprobs:
        check_same_tokens(chat, judged)
        return score_pairs(judged, examples, max_length=max_length, after_batch=after_batch)

    policy, reference = in_turn(models, use)

    def reward(side: int, pair: int) -> AnswerReward:
        p, r = float(policy[side, pair]), float(reference[side, pair])
        return AnswerReward(len(examples[pair][1 + side]), p, r, beta * (p - r))

    return [(reward(0, pair), reward(1, pair)) for pair in range(len(examples))]


# --- Accuracy where chosen is the longer answer, where both are of a
# length, and where it is shorter.
#
# A policy that has learned length is right in the first and wrong in the last.


TOLERANCE = 0.1  # of the longer response; at least one token


@dataclass(frozen=True, slots=True)
class LengthGroup:
    """Pairs alike in which answer is the longer one.

    Attributes:
        name: "chosen longer", "length-matched" or "chosen shorter".
        num_pairs: Pairs in it.
        reward_wins: Those whose chosen reward is the greater.
        logprob_wins_before: Those with log p(chosen) > log p(rejected) under the reference.
        logprob_wins_after: The same under the policy.
    """

    name: str
    num_pairs: int
    reward_wins: int
    logprob_wins_before: int
    logprob_wins_after: int


def group_by_length(
    policy: Logprobs, reference: Logprobs, examples: Sequence[PreferenceExample]
) -> list[LengthGroup]:
    """Wins in each of the three groups, some of which may be empty.

    Matched are pairs that differ by at most a tenth of the longer response, or by one token.

    Args:
        policy: float32 (2, N), chosen and rejected log-probs.
        reference: float32 (2, N).
        examples: N pairs.
    """
    chosen = np.array([len(e.chosen_ids) for e in examples])
    rejected = np.array([len(e.rejected_ids) for e in examples])
    allowed = np.maximum(1, TOLERANCE * np.maximum(chosen, rejected))
    gap = chosen - rejected
    groups = (
        ("chosen longer", gap > allowed),
        ("length-matched", np.abs(gap) <= allowed),
        ("chosen shorter", -gap > allowed),
    )
    change = policy.astype(np.float64) - reference
    return [
        LengthGroup(
            name,
            int(member.sum()),
            int((change[0] > change[1])[member].sum()),
            int((reference[0] > reference[1])[member].sum()),
            int((policy[0] > policy[1])[member].sum()),
        )
        for name, member in groups
    ]

"""Signs that a policy has collapsed, in its answers and in its rewards."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

# Mean chosen and rejected reward both below this: the policy is making every answer unlikely.
# Rewards are in beta * nats; at beta 0.1 this is a chosen answer e^10 (22,000) times less likely.
REWARD_FLOOR = -1.0
FLOOR_WINDOW = 10  # steps that are averaged
_REPEATS = 0.1  # of an answer's word triples, more than the reference repeats
_NEVER_END = 0.25  # of the answers, more than of the reference's

PolicyAndReference = tuple[float, float]


def repetition(texts: Iterable[str]) -> float:
    """Share of word triples that came before in the same text; 0 where there is none."""
    triples = [_triples(text) for text in texts]
    repeated = sum(len(own) - len(set(own)) for own in triples)
    return repeated / max(1, sum(map(len, triples)))


def answer_signs(
    num_answers: int,
    *,
    length: PolicyAndReference,
    cut: PolicyAndReference,
    repeated: PolicyAndReference,
) -> list[str]:
    """What is suspicious about a policy's answers beside as many of its reference's.

    Each pair of numbers is the policy's and the reference's: mean tokens of an answer, answers that
    reached the limit, and their `repetition`.
    """
    signs = []
    ratio = length[0] / max(1.0, length[1])
    if not 0.5 <= ratio <= 2:
        signs.append(f"answers are {ratio:.1f} times as long as before")
    if cut[0] > cut[1] + _NEVER_END * num_answers:
        signs.append(
            f"{cut[0]:.0f} of {num_answers} answers never end, {cut[1]:.0f} of them before"
        )
    if repeated[0] > repeated[1] + _REPEATS:
        signs.append(
            f"answers repeat themselves: {repeated[0]:.0%} of their word triples, "
            f"{repeated[1]:.0%} before"
        )
    return signs


def reward_signs(steps: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is suspicious about the rewards of steps in a row: a sign, once, where both fall far."""
    for end in range(FLOOR_WINDOW, len(steps) + 1):
        window = steps[end - FLOOR_WINDOW : end]
        chosen, rejected = (
            sum(row[name] for row in window) / FLOOR_WINDOW
            for name in ("chosen_reward", "rejected_reward")
        )
        if chosen < REWARD_FLOOR and rejected < REWARD_FLOOR:
            return [
                f"reward collapse at step {window[-1]['step']}: over {FLOOR_WINDOW} steps the "
                f"chosen reward is {chosen:.2f} and the rejected {rejected:.2f}, both below "
                f"{REWARD_FLOOR}: the policy makes good answers unlikely too. Lower "
                "--learning-rate or raise --beta"
            ]
    return []


def _triples(text: str) -> list[tuple[str, str, str]]:
    words = text.casefold().split()
    return list(zip(words, words[1:], words[2:], strict=False))

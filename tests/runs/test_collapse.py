"""A collapse is told by length, by answers that never end, by repetition, and by rewards."""

import pytest

from mlx_dpo.runs.collapse import FLOOR_WINDOW, answer_signs, repetition, reward_signs


def test_repetition_is_the_share_of_triples_that_came_before_in_the_same_text() -> None:
    assert repetition(["go go go GO go"]) == pytest.approx(2 / 3)
    assert repetition(["a b c", "a b c"]) == 0  # before in another text is no repetition
    assert repetition(["a b", ""]) == 0


@pytest.mark.parametrize(
    ("length", "cut", "repeated", "sign"),
    [
        ((10, 10), (1, 1), (0.1, 0.1), None),
        ((19, 10), (3, 1), (0.15, 0.1), None),
        ((21, 10), (1, 1), (0, 0), "2.1 times as long"),
        ((4, 10), (1, 1), (0, 0), "0.4 times as long"),
        ((10, 10), (4, 1), (0, 0), "4 of 10 answers never end"),
        ((10, 10), (1, 1), (0.3, 0.1), "30% of their word triples, 10% before"),
    ],
)
def test_each_sign_is_judged_beside_the_reference(
    length: tuple[float, float],
    cut: tuple[float, float],
    repeated: tuple[float, float],
    sign: str | None,
) -> None:
    found = answer_signs(10, length=length, cut=cut, repeated=repeated)
    assert len(found) == (sign is not None)
    assert sign is None or sign in found[0]


def test_rewards_that_both_fall_are_told_once() -> None:
    start = {"chosen_reward": 0.0, "rejected_reward": 0.0}
    fallen = {"chosen_reward": -1.5, "rejected_reward": -3.0}
    rows = [{"step": n, **(start if n < 4 else fallen)} for n in range(3 * FLOOR_WINDOW)]
    (sign,) = reward_signs(rows)
    assert sign.startswith(f"reward collapse at step {FLOOR_WINDOW}: over {FLOOR_WINDOW} steps")
    assert "chosen reward is -1.05 and the rejected -2.10, both below -1.0" in sign
    assert "Lower --learning-rate or raise --beta" in sign
    assert reward_signs(rows[: FLOOR_WINDOW - 1]) == []


@pytest.mark.parametrize("chosen", [0.5, -0.9, float("nan")])
def test_a_falling_rejected_reward_alone_is_no_collapse(chosen: float) -> None:
    row = {"chosen_reward": chosen, "rejected_reward": -30.0}
    assert reward_signs([{"step": n, **row} for n in range(2 * FLOOR_WINDOW)]) == []

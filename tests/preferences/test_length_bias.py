"""The look at lengths: a rule the model could learn instead of the behaviour."""

import pytest

from mlx_dpo.preferences.store import ENOUGH_PAIRS, LengthBias, length_bias
from mlx_dpo.records import PreferenceExample


def pairs_with_gaps(*gaps: int) -> list[PreferenceExample]:
    return [PreferenceExample([1], [2] * (20 + gap), [3] * 20) for gap in gaps]


def test_lengths_are_compared_pair_by_pair() -> None:
    found = length_bias(pairs_with_gaps(5, -1, 0, 4))
    assert found == LengthBias(num_pairs=4, chosen_longer=0.5, rejected_longer=0.25, mean_gap=2.0)


def test_the_prompt_does_not_count() -> None:
    short, long = PreferenceExample([1], [2, 2], [3]), PreferenceExample([1] * 50, [2, 2], [3])
    assert length_bias([short]) == length_bias([long])


@pytest.mark.parametrize(
    ("gaps", "lopsided"),
    [
        ((1, -1), False),
        ((3, 3, 3, -1, -1), False),  # 0.6 of those that differ
        ((3, 3, -1), True),  # 0.67
        ((-3, -3, 1), True),
        ((-3, -3, 1, 0, 0, 0), True),  # ties tell nothing
        ((0, 0), False),
        ((1,), True),
    ],
)
def test_lopsided_is_when_length_alone_predicts_the_preference(
    gaps: tuple[int, ...], lopsided: bool
) -> None:
    assert length_bias(pairs_with_gaps(*gaps) * ENOUGH_PAIRS).is_lopsided is lopsided


def test_a_few_pairs_are_not_called_lopsided() -> None:
    assert not length_bias(pairs_with_gaps(1) * (ENOUGH_PAIRS - 1)).is_lopsided

"""A rule's record is what counting pairs gives; a sign must show on prompts it was not read off."""

import random

import numpy as np
import pytest

from mlx_dpo.insight.audit import bias
from mlx_dpo.insight.audit.bias import (
    Bet,
    Measures,
    bet,
    feature_gaps,
    first_word_gaps,
    histogram,
)
from mlx_dpo.insight.audit.checks import LOOK, OK, STOP, bet_verdict
from tests.insight.conftest import pair


def test_auc_is_the_share_of_pairs_won_with_ties_by_coin() -> None:
    gaps = np.array([3, -1, 0, 2, 0, -4, 5])
    won = sum(1.0 if gap > 0 else 0.5 if gap == 0 else 0.0 for gap in gaps)
    assert bet(gaps).auc == pytest.approx(won / 7)
    assert bet(-gaps).auc == pytest.approx(1 - won / 7)
    low, high = bet(gaps).interval
    assert low < won / 7 < high
    assert bet(np.zeros(9)).auc == 0.5


@pytest.mark.parametrize(
    ("wins", "num_pairs", "verdict"),
    [
        (130, 260, OK),
        (150, 260, OK),  # 0.58: beyond chance, and small
        (170, 260, LOOK),  # 0.65 (0.60-0.71)
        (200, 260, STOP),  # 0.77 (0.71-0.82)
        (15, 20, LOOK),  # 0.75 (0.53-0.89): beyond chance, and 20 pairs prove no more
        (14, 20, OK),  # 0.70 (0.48-0.85)
        (20, 20, STOP),
        (0, 0, OK),
    ],
)
def test_a_verdict_needs_size_and_certainty_and_takes_both_directions(
    wins: int, num_pairs: int, verdict: str
) -> None:
    assert bet_verdict(Bet(wins, 0, num_pairs)) == verdict
    assert bet_verdict(Bet(num_pairs - wins, 0, num_pairs)) == verdict


@pytest.mark.parametrize(
    ("feature", "text", "value"),
    [
        (bias.punctuation, "Yes, no. Oh", 2 / 3),
        (bias.punctuation, "", 0),
        (bias.markdown, "# A\n- b\n- c\n1. d\n**e** and `f`, [g](h)", 9),
        (bias.markdown, "2 * 3 - 1, well-known #hash", 0),
        (bias.sentences, "One. Two! Really?! Version 3.5 is out", 3),
        (bias.sentences, 'He said "Go." Then he went.', 2),
        (bias.num_words, " a  b\nc ", 3),
    ],
)
def test_features_count_what_they_say(feature: object, text: str, value: float) -> None:
    assert callable(feature)
    assert feature(text) == pytest.approx(value)


def test_a_first_word_that_tells_is_found_on_prompts_it_was_not_counted_on() -> None:
    rows = [pair(f"Question {n}?", "Sorry, no.", "Whatever.") for n in range(60)]
    assert bet(first_word_gaps(rows)).auc == 1.0
    turned = [pair(f"Question {n}?", "Whatever.", "Sorry, no.") for n in range(60)]
    assert bet(first_word_gaps([*rows, *turned])).auc == pytest.approx(0.5, abs=0.1)
    assert bias.telling_first_words(rows)[0] == "'sorry': 60 chosen, 0 rejected"


def test_rare_first_words_are_no_sign() -> None:
    """Words that open one answer each would tell perfectly if counted on their own pair."""
    rows = [pair(f"Question {n}?", f"yes{n}", f"no{n}") for n in range(200)]
    assert bet(first_word_gaps(rows)).auc == 0.5
    rng = random.Random(0)
    words = [f"w{n}" for n in range(100)]
    rows = [pair(f"Question {n}?", rng.choice(words), rng.choice(words)) for n in range(1000)]
    low, high = bet(first_word_gaps(rows)).interval
    assert low < 0.5 < high


def test_copies_of_a_prompt_do_not_vouch_for_its_first_words() -> None:
    """One prompt a hundred times is one prompt: its own rows are not counted on it."""
    rows = [pair("The same question?", "yes", "no") for _ in range(100)]
    assert bet(first_word_gaps(rows)).auc == 0.5


def test_feature_gaps_are_chosen_minus_rejected() -> None:
    rows = [pair("q", "a b c", "a"), pair("q", "a", "a b")]
    assert feature_gaps(rows, bias.num_words).tolist() == [2, -1]


@pytest.mark.parametrize("spread", [0, 1, 4, 30])
def test_a_histogram_holds_every_gap_once_around_zero(spread: int) -> None:
    gaps = np.random.default_rng(0).integers(-spread, spread + 1, 200)
    bars = histogram(gaps)
    for bar in bars:
        low = -np.inf if bar.low is None else bar.low
        high = np.inf if bar.high is None else bar.high
        assert bar.count == ((gaps >= low) & (gaps <= high)).sum()
    assert sum(bar.count for bar in bars) == 200
    middle = bars[len(bars) // 2]
    assert middle.low is not None
    assert middle.high == -middle.low
    assert bars[0].count + bars[-1].count <= 0.05 * 200


def test_gaps_are_chosen_minus_rejected() -> None:
    measured = Measures("words", np.array([[1, 1], [5, 2], [3, 4]]))
    assert measured.gaps.tolist() == [2, -2]

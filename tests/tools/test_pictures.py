"""What the notebook draws: shares of a histogram, smoothed curves, texts that hold markup."""

import pytest

from tools.experiments.pictures import answers, beside, binned, curves, histogram, running_mean
from tools.experiments.pictures import tokens as picture_of_tokens


def test_bins_hold_every_value_once_also_the_largest() -> None:
    names, (bars,) = binned({"all": [0, 1, 1, 10]})
    assert names == [f"{low} to {low + 1}" for low in range(10)]
    assert bars.values == [25, 50, 0, 0, 0, 0, 0, 0, 0, 25]  # 10 is the edge of the last bin


def test_groups_share_bins_and_count_in_percent_of_their_own() -> None:
    names, (a, b) = binned({"a": [1.0] * 3, "b": [-9.0] * 7})
    assert len(names) == len(a.values) == len(b.values) <= 10
    assert (max(a.values), max(b.values)) == (100, 100)
    assert a.values.index(100) > b.values.index(100)


def test_equal_values_fill_one_bin() -> None:
    _, (bars,) = binned({"all": [5, 5]})
    assert sorted(bars.values)[-2:] == [0, 100]


def test_a_curve_is_smoothed_over_the_last_ten_steps() -> None:
    means = running_mean([0.0] * 10 + [1.0] * 12)
    assert means[:10] == [0.0] * 10
    assert means[10:] == pytest.approx([k / 10 for k in range(1, 11)] + [1.0] * 2)
    assert running_mean([2.0, 4.0]) == [2.0, 3.0]


def test_charts_beside_each_other_bring_their_style_once() -> None:
    html = beside(curves("A", {"a": [0.7]}), histogram("B", {"b": [1.0]}, label="answers")).html
    assert html.count("<svg") == 2
    assert html.count("<style>") == 1
    assert "log 2" in html
    assert "% of answers" in html


def test_texts_of_models_are_escaped() -> None:
    bad = "<script>alert(1)</script>"
    for picture in (answers(["SFT"], [[bad]]), picture_of_tokens({bad: [(bad, True)]})):
        assert "<script" not in picture._repr_html_()
        assert "&lt;script&gt;" in picture._repr_html_()


def test_scored_tokens_are_coloured_and_line_breaks_are_shown() -> None:
    html = picture_of_tokens({"chosen": [("\n", False), ("Yes", True)]}).html
    before, scored = html.split("Yes")[0].rsplit("<span", 1)
    assert "background" in scored
    assert "background" not in before.rsplit("<span", 1)[1]
    assert "&#8629;" in before

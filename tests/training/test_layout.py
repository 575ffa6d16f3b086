"""Grouping rows for forwards: nothing lost, nothing twice, and as cheap as can be."""

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_dpo.records import PreferenceExample
from mlx_dpo.training import layout as layout_of
from mlx_dpo.training.layout import WIDTH_MULTIPLE, Group, lay_out, partition

widths = st.lists(st.integers(1, 60), max_size=8)


def cost(groups: list[Group], price: int) -> int:
    return sum(len(group.members) * group.width + price for group in groups)


@given(widths, st.integers(0, 100))
def test_every_row_is_in_one_group_that_is_wide_enough(widths: list[int], price: int) -> None:
    groups = partition(widths, price)
    assert sorted(i for g in groups for i in g.members) == list(range(len(widths)))
    for group in groups:
        assert group.width % WIDTH_MULTIPLE == 0
        assert max(widths[i] for i in group.members) <= group.width
        assert group.width < max(widths[i] for i in group.members) + WIDTH_MULTIPLE


@given(widths.filter(bool), st.integers(0, 100))
def test_no_split_into_runs_is_cheaper(widths: list[int], price: int) -> None:
    ordered = sorted(-(-w // WIDTH_MULTIPLE) * WIDTH_MULTIPLE for w in widths)
    best = min(
        sum(
            (end - start) * ordered[end - 1] + price
            for start, end in zip((0, *cuts), (*cuts, len(ordered)), strict=True)
        )
        for count in range(len(ordered))
        for cuts in combinations(range(1, len(ordered)), count)
    )
    assert cost(partition(widths, price), price) == best


@pytest.mark.parametrize(("price", "num_groups"), [(0, 2), (1000, 1)])
def test_a_dear_forward_is_shared_and_a_cheap_one_is_not(price: int, num_groups: int) -> None:
    assert len(partition([8, 80], price)) == num_groups


def test_a_prompt_that_two_pairs_have_in_common_is_read_once() -> None:
    pairs = [PreferenceExample([7, 8, 9], [1, 2], [3]), PreferenceExample([7, 8, 9], [4], [5, 6])]
    layout = lay_out(pairs, max_seq_len=16, share_prompts=True)
    assert layout.contexts == [(7, 8)]
    assert [row.inputs for row in layout.rows] == [[9, 1], [9], [9], [9, 5]]
    assert [row.targets for row in layout.rows] == [[1, 2], [3], [4], [5, 6]]


def test_rows_of_one_length_go_together_where_the_model_needs_it() -> None:
    pairs = [PreferenceExample([1] * n, [2, 3], [4, 5]) for n in (3, 7)]
    layout = lay_out(pairs, max_seq_len=16, share_prompts=True, one_length=True)
    for group in layout.row_groups:
        assert len({layout.rows[i].context for i in group.members}) == 1
    assert len(lay_out(pairs, max_seq_len=16, share_prompts=True).row_groups) == 1


def test_the_same_prompt_cut_or_whole_scores_the_tokens_that_are_left() -> None:
    layout = lay_out(
        [PreferenceExample([1, 2, 3], [4, 5, 6], [7])], max_seq_len=5, share_prompts=False
    )
    assert [row.inputs for row in layout.rows] == [[1, 2, 3, 4], [1, 2, 3]]
    assert [row.targets[row.first_scored :] for row in layout.rows] == [[4, 5], [7]]


def test_what_all_prompts_begin_with_is_read_once_where_that_pays() -> None:
    pairs = [PreferenceExample([*range(3, 23), 30 + i, 40], [50], [51]) for i in range(3)]
    layout = lay_out(pairs, max_seq_len=64, share_prompts=True, forward_price=39)
    assert layout.prefix == 20
    assert layout.context_groups == [Group([0, 1, 2], -(-1 // WIDTH_MULTIPLE) * WIDTH_MULTIPLE)]
    assert layout.work().real_tokens == 20 + 3 + 6
    dear = lay_out(pairs, max_seq_len=64, share_prompts=True, forward_price=40)
    assert dear.prefix == 0
    # One that is the beginning of the others keeps a token of its own.
    pairs.append(PreferenceExample([*range(3, 14), 40], [50], [51]))
    assert lay_out(pairs, max_seq_len=64, share_prompts=True, forward_price=0).prefix == 10


@given(
    st.lists(st.tuples(*[st.integers(2, 12)] * 3), min_size=1, max_size=5),
    st.integers(0, 40),
    st.booleans(),
)
def test_no_padding_reaches_past_the_last_learned_position(
    sizes: list[tuple[int, int, int]], price: int, one_length: bool
) -> None:
    pairs = [PreferenceExample([7 + i] * p, [1] * c, [2] * r) for i, (p, c, r) in enumerate(sizes)]
    positions = max(p + max(c, r) for p, c, r in sizes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout_of, "WIDTH_MULTIPLE", 8)
        layout = lay_out(
            pairs,
            max_seq_len=99,
            share_prompts=True,
            one_length=one_length,
            positions=positions,
            forward_price=price,
        )
    rows = sorted(i for group in layout.row_groups for i in group.members)
    assert rows == list(range(len(layout.rows)))
    contexts = sorted(i for group in layout.context_groups for i in group.members)
    assert contexts == list(range(len(layout.contexts)))
    for group in layout.row_groups:
        for row in (layout.rows[i] for i in group.members):
            assert row.context is not None
            assert len(row.inputs) <= group.width <= positions - len(layout.contexts[row.context])
    for group in layout.context_groups:
        assert layout.prefix + group.width <= positions

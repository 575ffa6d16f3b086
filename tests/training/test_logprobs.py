"""Log-probs of pairs under a model: exact whatever they are batched and padded with."""

from collections.abc import Callable, Sequence

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlx_dpo.records import PreferenceExample
from mlx_dpo.training import reference
from mlx_dpo.training.logprobs import pair_logprobs
from mlx_dpo.training.reference import example_digest, score_in_batches
from tests import oracle

Pairs = list[PreferenceExample]

LIMITS = {"max_length_none": 256, "keep_start_64": 64, "keep_start_16": 16}


@pytest.fixture(scope="module")
def llama() -> nn.Module:
    return oracle.load_model("llama")


@pytest.mark.parametrize("case", LIMITS)
def test_cut_rows_equal_those_of_trl(llama: nn.Module, case: str) -> None:
    truth = oracle.read("collation.json")["cases"][case]
    pairs = [PreferenceExample(*example.values()) for example in truth["examples"]]
    found = pair_logprobs(llama, pairs, max_seq_len=LIMITS[case], pad_id=oracle.PAD_ID)
    # TRL stacks chosen on rejected.
    np.testing.assert_allclose(np.array(found).ravel(), truth["logps_2B"], rtol=1e-6, atol=1e-4)


def test_an_empty_prompt_leaves_the_first_token_unscored(llama: nn.Module) -> None:
    truth = oracle.read("empty_prompt.json")
    pair = PreferenceExample(*(truth[side] for side in PreferenceExample._fields))
    found = pair_logprobs(llama, [pair], max_seq_len=64, pad_id=oracle.PAD_ID)
    np.testing.assert_allclose(np.array(found)[:, 0], truth["logps"], rtol=1e-6)


@pytest.mark.parametrize("pad_id", [0, 17, 63])
def test_padding_is_never_scored_nor_seen(
    make_model: Callable[[], nn.Module], ragged_pairs: Pairs, pad_id: int
) -> None:
    """Alone a row has no padding; among longer ones it has much, of any id."""
    model = make_model()
    together = pair_logprobs(model, ragged_pairs, max_seq_len=64, pad_id=pad_id)
    alone = [pair_logprobs(model, [pair], max_seq_len=64, pad_id=0) for pair in ragged_pairs]
    np.testing.assert_allclose(
        np.array(together), np.array(mx.concatenate(alone, axis=1)), rtol=1e-6, atol=1e-5
    )


@pytest.mark.parametrize(("most", "counts"), [(0, [4, 4, 2]), (70, [6, 4]), (2048, [10])])
def test_pairs_are_scored_by_length_and_come_back_in_their_order(
    most: int,
    counts: list[int],
    make_model: Callable[[], nn.Module],
    ragged_pairs: Pairs,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Short pairs among short ones, and more of them: little is spent on padding and forwards."""
    monkeypatch.setattr(reference, "TOKENS_TOGETHER", most)
    model = make_model()
    lengths: list[int] = []
    counted: list[int] = []

    def score(pairs: Sequence[PreferenceExample]) -> mx.array:
        lengths.extend(len(p.prompt_ids) + max(map(len, p[1:])) for p in pairs)
        return pair_logprobs(model, pairs, max_seq_len=64, pad_id=0)

    found = score_in_batches(score, ragged_pairs, batch_size=4, after_batch=counted.append)
    assert lengths == sorted(lengths)
    assert counted == counts
    expected = pair_logprobs(model, ragged_pairs, max_seq_len=64, pad_id=0)
    np.testing.assert_allclose(found, np.array(expected), rtol=1e-6, atol=1e-5)


def test_no_two_pairs_share_a_digest() -> None:
    """Ids, their sides and their borders all count."""
    pairs = [
        PreferenceExample([1, 2], [3], [4]),
        PreferenceExample([1], [2, 3], [4]),
        PreferenceExample([12], [3], [4]),
        PreferenceExample([1, 2], [4], [3]),
        PreferenceExample([], [1, 2, 3], [4]),
        PreferenceExample([1, 2], [3, 4], []),
    ]
    assert len({example_digest(pair) for pair in pairs}) == len(pairs)
    assert example_digest(pairs[0]) == example_digest(PreferenceExample([1, 2], [3], [4]))

"""Shapes that Metal's fused attention takes: the paths agree there, with a gradient and without.

MLX's fused kernels know head sizes of 64, 96 and 128, grouped heads and boolean masks; up to 8
queries take a vector kernel, more another one. Without a gradient they are used, under one they are
not: the reference is scored without, the policy with. On a CPU these are ordinary shapes.
"""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlx_dpo.models.folder import num_positions
from mlx_dpo.records import PreferenceExample
from mlx_dpo.training import layout
from mlx_dpo.training.paths import FastPath, PlainPath, ScoringPath
from mlx_dpo.training.prompts import AfterPrompt
from mlx_dpo.training.self_check import choose_path
from tests.training import architectures
from tests.training.test_paths import assert_same, logprobs_and_gradient

HEAD_SIZES = (64, 96, 128)
WIDTHS = (8, 16, 40)
PROMPTS = (1, 7, 20, 33)  # ragged, so that the mask is boolean and of each row
LENGTH = 96
PLAIN = PlainPath(LENGTH, 0)
SHARED = FastPath(LENGTH, 0)
JOINED = FastPath(LENGTH, 0, share_prompts=False)


@pytest.fixture(autouse=True)
def widths_as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "WIDTH_MULTIPLE", 8)


def _model(head_size: int) -> nn.Module:
    """One layer of three heads, which share one key-value head."""
    return architectures.make(
        "llama",
        hidden_size=3 * head_size,
        num_attention_heads=3,
        num_key_value_heads=1,
        num_hidden_layers=1,
        intermediate_size=32,
    )


def _pairs(width: int) -> list[PreferenceExample]:
    """Pairs whose rows are all `width` wide once padded."""
    rng = np.random.default_rng(0)

    def ids(count: int) -> list[int]:
        drawn: list[int] = rng.integers(3, architectures.VOCAB, count).tolist()
        return drawn

    return [
        PreferenceExample(ids(prompt), ids(width - i), ids(width - 2 * i))
        for i, prompt in enumerate(PROMPTS)
    ]


@pytest.mark.parametrize("width", WIDTHS)
def test_the_rows_are_as_wide_as_they_should_be_and_the_mask_is_boolean(width: int) -> None:
    groups = SHARED.layout(_pairs(width)).row_groups
    assert {group.width for group in groups} == {width}
    keys = mx.zeros((2, 1, 33, 4))
    mask = AfterPrompt(keys, keys, [7, 33]).make_mask(width)
    assert isinstance(mask, mx.array)
    assert mask.dtype == mx.bool_
    assert mask.shape == (2, 1, width, 33 + width)


@pytest.mark.parametrize("path", [SHARED, JOINED], ids=lambda path: path.name)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("head_size", HEAD_SIZES)
def test_log_probs_and_gradients_agree(head_size: int, width: int, path: ScoringPath) -> None:
    assert_same(path, _model(head_size), _pairs(width), plain=PLAIN)


@pytest.mark.parametrize("path", [PLAIN, SHARED, JOINED], ids=lambda path: path.name)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("head_size", HEAD_SIZES)
def test_scores_agree_with_those_under_a_gradient(
    head_size: int, width: int, path: ScoringPath
) -> None:
    model, pairs = _model(head_size), _pairs(width)
    under_gradient, _ = logprobs_and_gradient(path, model, pairs)
    np.testing.assert_allclose(np.array(path(model, pairs)), under_gradient, atol=1e-4, rtol=1e-6)


@pytest.mark.parametrize("head_size", HEAD_SIZES)
def test_such_a_model_shares_its_prompts(head_size: int) -> None:
    pairs = [pair for width in WIDTHS for pair in _pairs(width)]
    choice = choose_path(_model(head_size), pairs, max_seq_len=LENGTH, pad_id=0)
    assert choice.path.name == "shared-prompt"
    assert choice.refused == ()


@pytest.mark.parametrize("name", ["course", "gpt2"])
def test_a_model_with_learned_positions_is_filled_to_the_last(name: str) -> None:
    model = architectures.make(name)
    last = num_positions(model)
    assert last is not None
    rng = np.random.default_rng(0)

    def ids(count: int) -> list[int]:
        drawn: list[int] = rng.integers(3, architectures.VOCAB, count).tolist()
        return drawn

    # The shorter pair, rounded up, would end three positions past the last.
    pairs = [
        PreferenceExample(ids(last - 20), ids(15), ids(20)),
        PreferenceExample(ids(last - 37), ids(34), ids(20)),
    ]
    choice = choose_path(model, pairs, max_seq_len=4 * last, pad_id=0)
    assert (choice.path.name, choice.refused) == ("shared-prompt", ())
    for batch in (pairs, pairs[1:]):
        expected = PlainPath(last, 0)(model, batch)
        assert mx.allclose(choice.path(model, batch), expected, rtol=1e-5, atol=1e-4)

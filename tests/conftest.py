"""What many tests share: a tiny language model and ragged pairs to train it on."""

import os
from collections.abc import Callable

# Before a product is computed: a test may use MLX without the package, which sets it too.
os.environ.setdefault("MLX_ENABLE_TF32", "0")

import mlx.nn as nn
import pytest
from hypothesis import settings

from mlx_dpo.records import PreferenceExample
from tests.training import architectures

# The same examples every time, and no verdict that depends on how busy the machine is.
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")

TINY_VOCAB = architectures.VOCAB


@pytest.fixture(scope="session")
def make_model() -> Callable[[], nn.Module]:
    """Makes a llama of two layers, the same weights every time."""
    return lambda: architectures.make("llama")


@pytest.fixture(scope="session")
def ragged_pairs() -> list[PreferenceExample]:
    """Ten pairs of many lengths; the first token of a prompt names the pair: 40, 41, ..."""
    return [
        PreferenceExample(
            prompt_ids=[40 + i, *range(1, 2 + i % 4)],
            chosen_ids=[*range(10, 11 + (3 * i) % 7), 2],
            rejected_ids=[*range(20, 21 + (5 * i) % 8), 2],
        )
        for i in range(10)
    ]

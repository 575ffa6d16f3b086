"""What many tests share: a tiny language model and ragged pairs to train it on."""

import os
from collections.abc import Callable
from pathlib import Path

# Before a product is computed: a test may use MLX without the package, which sets it too.
os.environ.setdefault("MLX_ENABLE_TF32", "0")

import mlx.core as mx
import mlx.nn as nn
import pytest
from hypothesis import settings

from mlx_dpo.records import PreferenceExample
from tests.training import architectures

# The same examples every time, and no verdict that depends on how busy the machine is.
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")

ROOT = Path(__file__).parent.parent
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


@pytest.fixture(scope="session")
def adapter_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of the oracle's llama, with a dpo.json that names it; `peft` has it as PEFT's."""
    from tests.adapters import train_adapter

    return train_adapter(tmp_path_factory.mktemp("adapters"), adapter_format="both")


@pytest.fixture(scope="session")
def continued_adapter(tmp_path_factory: pytest.TempPathFactory, adapter_folder: Path) -> Path:
    """An adapter whose run started from `adapter_folder`, which was its reference."""
    from tests.adapters import train_adapter

    changes = {"adapter": str(adapter_folder), "lora_rank": None, "seed": 1}
    return train_adapter(tmp_path_factory.mktemp("continued"), **changes)


@pytest.fixture(scope="session")
def packed_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The oracle's llama in 4 bits, the rest of it bfloat16."""
    from tests.packed import pack
    from tests.runs.conftest import ORACLE

    return pack(ORACLE, tmp_path_factory.mktemp("packed") / "llama-4bit", dtype=mx.bfloat16)


@pytest.fixture(scope="session")
def partly_packed_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiny-sft in 4 bits, but for the layers whose rows are no multiple of a group."""
    from tests.packed import pack

    return pack(ROOT / "checkpoints" / "tiny-sft", tmp_path_factory.mktemp("packed") / "tiny-4bit")

"""A real model there and back, where it has been built: `tools/make_smollm2.py` says how.

Set MLX_DPO_SMOLLM2 to its folder. It is 540 MB, so nothing builds it for the tests.
"""

import os
from pathlib import Path

import mlx.core as mx
import pytest

from mlx_dpo.convert.conversion import Options, convert
from mlx_dpo.convert.sources import load
from mlx_dpo.models.generate import answer
from mlx_dpo.models.parameters import load_arrays
from mlx_dpo.preferences.chat import chat_format
from mlx_dpo.records import Message

FOLDER = os.environ.get("MLX_DPO_SMOLLM2")


@pytest.mark.skipif(
    FOLDER is None,
    reason="CI can't: the model is 540 MB, from outside the repository; set MLX_DPO_SMOLLM2",
)
def test_smollm2_goes_to_mlx_and_back_bit_for_bit_and_answers(tmp_path: Path) -> None:
    source = Path(FOLDER or "")
    told: list[str] = []
    convert(source, tmp_path / "mlx", Options(), told.append)
    convert(tmp_path / "mlx", tmp_path / "back", Options(), told.append)
    old, new = (load_arrays(f / "model.safetensors") for f in (source, tmp_path / "back"))
    assert old.keys() == new.keys()
    assert all(mx.array_equal(old[name], new[name]) for name in old)
    model, tokenizer = load(tmp_path / "mlx")
    chat = chat_format(tokenizer)
    said = answer(model, chat, (Message("user", "What is the largest city in Spain?"),))
    assert said.text.startswith("El Salvador")
    assert len(told) >= 6

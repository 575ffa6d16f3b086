"""Answers made in batches are those made one by one."""

import pytest

from mlx_dpo.convert.sources import load_folder
from mlx_dpo.models import generate
from mlx_dpo.models.generate import answer_all, answer_ids
from mlx_dpo.preferences.chat import chat_format
from tests.runs.conftest import ORACLE

PROMPTS = [[5, 6, 7], [8, 9], [10], [11, 12, 13, 14, 15], [16, 17]]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("is_batchable", [True, False])
def test_each_prompt_gets_the_answer_it_gets_alone_from_its_own_seed(
    temperature: float, is_batchable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate, "BATCH", 2)
    monkeypatch.setattr(generate, "batches_exactly", lambda model, prompts: is_batchable)
    model, tokenizer = load_folder(ORACLE)
    chat = chat_format(tokenizer)
    counts: list[int] = []
    found = answer_all(
        *(model, chat, PROMPTS),
        max_tokens=9,
        temperature=temperature,
        seed=3,
        after_prompts=counts.append,
    )
    alone = [
        answer_ids(model, chat, ids, max_tokens=9, temperature=temperature, seed=3 + place)
        for place, ids in enumerate(PROMPTS)
    ]
    assert found == alone
    assert len({tuple(one.ids) for one in found}) > 1, "equal answers would prove little"
    assert counts == ([2, 2, 1] if is_batchable else [1] * 5)

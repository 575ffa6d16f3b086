"""An answer's reward is what its tokens earn, and what training would compute."""

import random
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlx_dpo.convert.sources import load_tokenizer
from mlx_dpo.errors import DataError, UsageError
from mlx_dpo.insight import scoring
from mlx_dpo.insight.rewards import encode_answers, reward_pairs, reward_tokens
from mlx_dpo.insight.scoring import Named, open_model, token_logprobs
from mlx_dpo.preferences.chat import chat_format
from mlx_dpo.records import PreferenceExample
from mlx_dpo.training.logprobs import pair_logprobs
from tests.runs.conftest import ORACLE


def random_pairs(count: int) -> list[PreferenceExample]:
    """Ragged pairs of ids the oracle's llama knows."""
    rng = random.Random(2)

    def ids(low: int, high: int) -> list[int]:
        return [rng.randrange(5, 200) for _ in range(rng.randint(low, high))]

    return [PreferenceExample(ids(1, 12), ids(1, 9), ids(1, 9)) for _ in range(count)]


@pytest.mark.parametrize("positions", [1, 4, 64])
def test_token_logprobs_sum_to_the_definition(
    positions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "POSITIONS", positions)
    model = open_model(str(ORACLE))
    for example in random_pairs(4):
        expected = pair_logprobs(model.model, [example], max_seq_len=64, pad_id=0)
        for side, response in enumerate(example[1:]):
            found = token_logprobs(model, example.prompt_ids, response)
            assert len(found) == len(response)
            assert found.sum() == pytest.approx(float(expected[side, 0]), abs=1e-3)


def test_each_token_has_its_own_logprob() -> None:
    """Position by position against one forward in float64."""
    model = open_model(str(ORACLE))
    prompt, _, response = random_pairs(1)[0]
    logits = np.array(model.model(mx.array([[*prompt, *response]]))[0], dtype=np.float64)
    expected = [
        logits[len(prompt) - 1 + i, token] - np.log(np.exp(logits[len(prompt) - 1 + i]).sum())
        for i, token in enumerate(response)
    ]
    assert token_logprobs(model, prompt, response) == pytest.approx(np.array(expected), abs=1e-4)


def test_without_a_prompt_the_first_token_counts_as_in_training() -> None:
    model = open_model(str(ORACLE))
    found = token_logprobs(model, [], [7, 8, 9])
    whole = pair_logprobs(
        model.model, [PreferenceExample([], [7, 8, 9], [1])], max_seq_len=8, pad_id=0
    )
    assert found[0] == 0
    assert found.sum() == pytest.approx(float(whole[0, 0]), abs=1e-4)


def test_the_tokens_rewards_sum_to_the_answers_and_both_ways_agree(policy_folder: Path) -> None:
    models = Named(str(policy_folder)), Named(str(ORACLE))
    chat = chat_format(load_tokenizer(ORACLE))
    examples = random_pairs(5)
    whole = reward_pairs(models, chat, examples, beta=0.3, max_length=64)
    answers = [(e.prompt_ids, side) for e in examples for side in e[1:]]
    by_token = reward_tokens(models, chat, answers, beta=0.3)
    assert max(abs(chosen.reward) for chosen, _ in whole) > 0.01
    for one, other in zip([r for pair in whole for r in pair], by_token, strict=True):
        assert other.tokens is not None
        assert sum(t.reward for t in other.tokens) == pytest.approx(other.reward, abs=1e-6)
        assert sum(t.logprob for t in other.tokens) == pytest.approx(other.logprob, abs=1e-4)
        assert other.reward == pytest.approx(0.3 * (other.logprob - other.reference_logprob))
        assert (one.num_tokens, one.reward) == pytest.approx(
            (other.num_tokens, other.reward), abs=1e-3
        )


def test_an_untrained_policy_rewards_nothing() -> None:
    models = Named(str(ORACLE)), Named(str(ORACLE))
    chat = chat_format(load_tokenizer(ORACLE))
    answers = encode_answers(chat, "Hello", ["A good day.", "No."], max_length=64)
    assert [r.reward for r in reward_tokens(models, chat, answers, beta=0.1)] == [0.0, 0.0]


def test_an_answer_ends_with_the_closing_token_and_must_fit() -> None:
    chat = chat_format(load_tokenizer(ORACLE))
    ((_, ids),) = encode_answers(chat, "Hello", ["A good day."], max_length=64)
    assert ids[-1] == chat.closing_id
    with pytest.raises(DataError, match=r"response 2 takes \d+ tokens with its prompt, more than"):
        encode_answers(chat, "Hello", ["A.", "A " * 64], max_length=32)


def test_a_reference_with_another_tokenizer_is_refused(policy_folder: Path) -> None:
    tiny = Path(__file__).parents[2] / "checkpoints" / "tiny-sft"
    chat = chat_format(load_tokenizer(policy_folder))
    with pytest.raises(UsageError, match="tiny-sft: has another tokenizer than the policy"):
        reward_pairs(
            (Named(str(policy_folder)), Named(str(tiny))),
            chat,
            random_pairs(1),
            beta=0.1,
            max_length=64,
        )


def test_one_model_is_in_memory_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the second is loaded, nothing refers to the first."""
    import weakref

    alive: list[weakref.ref[nn.Module]] = []
    opened = scoring.open_model

    def open_and_watch(name: str, adapter: str | None = None) -> scoring.LoadedModel:
        assert [ref for ref in alive if ref() is not None] == []
        loaded = opened(name, adapter)
        alive.append(weakref.ref(loaded.model))
        return loaded

    monkeypatch.setattr(scoring, "open_model", open_and_watch)
    chat = chat_format(load_tokenizer(ORACLE))
    reward_pairs(
        (Named(str(ORACLE)), Named(str(ORACLE))), chat, random_pairs(1), beta=0.1, max_length=64
    )
    assert len(alive) == 2

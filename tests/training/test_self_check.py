"""A fast path is taken only where it gives the plain path's numbers, on this model and data."""

import mlx.core as mx
import mlx.nn as nn
import pytest

from mlx_dpo.records import PreferenceExample
from mlx_dpo.training import prompts
from mlx_dpo.training.paths import PlainPath
from mlx_dpo.training.self_check import Choice, choose_path
from tests.training import architectures

PAIRS = [PreferenceExample([7] * n, [*range(10, 12 + n), 2], [20, 21, 2]) for n in range(2, 9)]


def choose(model: nn.Module) -> Choice:
    return choose_path(model, PAIRS, max_seq_len=32, pad_id=0)


def test_a_transformer_shares_its_prompts() -> None:
    choice = choose(architectures.make("llama"))
    assert choice.path.name == "shared-prompt"
    assert choice.refused == ()
    assert choice.num_pairs == 4
    assert choice.largest_difference < 1e-4


def test_attention_without_masks_by_row_gets_prompts_of_one_length() -> None:
    choice = choose(architectures.make("gemma2"))
    assert choice.path.name == "shared-prompt, one length"
    ((name, reason),) = choice.refused
    assert name == "shared-prompt"
    assert reason == "this model's layers do not go on from prompts of different lengths"


def test_states_that_take_in_padding_get_prompts_without_any() -> None:
    choice = choose(architectures.make("jamba"))
    assert choice.path.name == "shared-prompt, unpadded"
    assert {reason for _, reason in choice.refused} == {
        "this model keeps recurrent state, and does not leave padding out of it"
    }


def test_a_model_that_hands_no_state_on_reads_prompt_and_response_together() -> None:
    choice = choose(architectures.make("mamba"))
    assert choice.path.name == "joined"
    assert choice.refused[-1] == (
        "shared-prompt, unpadded",
        "this model keeps recurrent state, and does not hand it on to the responses",
    )


def test_a_cache_of_an_unknown_kind_is_named_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    model = architectures.make("llama")
    monkeypatch.setattr(type(model), "make_cache", lambda self: [object(), object()])
    choice = choose(model)
    assert choice.path.name == "joined"
    assert "neither keys and values nor a state" in choice.refused[0][1]


def test_layers_whose_kernel_has_no_gradient_outside_training_mode_are_in_it() -> None:
    model = architectures.make("qwen3_5").eval()
    assert choose(model).path.name == "shared-prompt"
    assert all(module.training for module in model.modules())


def test_a_cache_with_wrong_keys_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    right = prompts.AfterPrompt.update_and_fetch

    def wrong(
        self: prompts.AfterPrompt, keys: mx.array, values: mx.array
    ) -> tuple[mx.array, mx.array]:
        keys, values = right(self, keys, values)
        return keys * 1.01, values

    monkeypatch.setattr(prompts.AfterPrompt, "update_and_fetch", wrong)
    choice = choose(architectures.make("llama"))
    assert choice.path.name == "joined"
    assert "off by" in choice.refused[0][1]


def test_a_cache_that_stops_gradients_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    right = prompts.PromptKeys.update_and_fetch

    def constant(
        self: prompts.PromptKeys, keys: mx.array, values: mx.array
    ) -> tuple[mx.array, mx.array]:
        return right(self, mx.stop_gradient(keys), mx.stop_gradient(values))

    monkeypatch.setattr(prompts.PromptKeys, "update_and_fetch", constant)
    choice = choose(architectures.make("llama"))
    assert choice.path.name == "joined"
    assert "gradient" in choice.refused[0][1]


class Whole(nn.Module):
    """A model whose embedding stands beside its output layer: it has no trunk to call alone."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.embedding = nn.Embedding(64, 8)
        self.layers = [nn.Linear(8, 8)]
        self.output = nn.Linear(8, 64)

    def __call__(self, ids: mx.array, cache: object = None) -> mx.array:
        logits: mx.array = self.output(self.layers[0](self.embedding(ids)))
        return logits


def test_a_model_in_one_piece_is_called_whole_and_told_why() -> None:
    choice = choose(Whole())
    assert isinstance(choice.path, PlainPath)
    assert choice.num_pairs == 0
    assert "output layer" in choice.refused[-1][1]

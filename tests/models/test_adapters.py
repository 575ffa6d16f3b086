"""Adapters: which layers get one, what they begin as, and the model that is there without them."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlx_dpo.errors import UsageError
from mlx_dpo.models.adaptable import choose_modules
from mlx_dpo.models.adapters import (
    Part,
    adapted_matrix,
    adapter_parameters,
    attach,
    attach_adapters,
    base_parameters,
    new_adapter,
    parts_of,
    small_updates,
    without_adapter,
)
from mlx_dpo.models.parameters import fingerprint, named_arrays
from tests.training import architectures

IDS = mx.array([[5, 9, 11, 2, 7]])
ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}


def last_names(paths: list[str]) -> set[str]:
    return {path.rpartition(".")[2] for path in paths}


def shifted(model: nn.Module, size: float = 0.05) -> None:
    """Give every B random values, as if the adapter had been trained."""
    adapter = {}
    for number, (path, part) in enumerate(parts_of(model).items()):
        b = size * mx.random.normal(part.b.shape, key=mx.random.key(number))
        adapter[path] = Part(part.a, b, part.scale)
    for path, module in model.named_modules():
        if path in adapter:
            module.lora_b = adapter[path].b


def test_by_default_every_linear_layer_of_the_blocks_has_an_adapter() -> None:
    paths = choose_modules(architectures.make("llama"))
    assert last_names(paths) == ATTENTION | {"gate_proj", "up_proj", "down_proj"}
    assert len(paths) == 2 * 7
    assert all(path.startswith("model.layers.") for path in paths)


def test_attention_alone_names_and_the_last_blocks_may_be_asked_for() -> None:
    model = architectures.make("llama")
    assert last_names(choose_modules(model, "attention")) == ATTENTION
    assert last_names(choose_modules(model, "q_proj, mlp.up_proj")) == {"q_proj", "up_proj"}
    assert {path.split(".")[2] for path in choose_modules(model, layers=1)} == {"1"}


def test_experts_have_adapters_and_their_router_has_none() -> None:
    names = last_names(choose_modules(architectures.make("mixtral")))
    assert {"gate_proj", "up_proj", "down_proj"} <= names
    assert "gate" not in names


def test_layers_whose_weights_a_model_clips_itself_have_none() -> None:
    paths = choose_modules(architectures.make("gemma3n"))
    assert {"q_proj", "linear_left", "per_layer_projection"} <= last_names(paths)
    assert not [path for path in paths if "altup" in path]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"modules": "q_porj"}, ["'q_porj'", "did you mean q_proj?", "down_proj"]),
        ({"modules": "lm_head"}, ["'lm_head'", "blocks"]),
        ({"layers": 3}, ["--lora-layers 3", "2 blocks"]),
        ({"rank": 33}, ["--lora-rank 33", "at most the smaller side"]),
        ({"rank": 0}, ["--lora-rank 0", "at least 1"]),
    ],
)
def test_what_no_layer_is_meant_by_is_refused_by_name(
    arguments: dict[str, str | int], words: list[str]
) -> None:
    with pytest.raises(UsageError) as error:
        attach_adapters(architectures.make("qwen2"), **arguments)  # type: ignore[arg-type]
    assert all(word in str(error.value) for word in words)


def test_an_adapter_begins_by_changing_nothing() -> None:
    for name in ("llama", "qwen2", "gpt2", "mixtral", "phi3"):
        model = architectures.make(name)
        expected = model(IDS)
        attach_adapters(model, rank=4)
        assert mx.array_equal(model(IDS), expected), name


def test_a_matrix_a_follows_from_the_seed_and_its_own_path_alone() -> None:
    model = architectures.make("llama")
    both = new_adapter(model, choose_modules(model), rank=4, seed=3)
    one = new_adapter(model, choose_modules(model, "v_proj"), rank=4, seed=3)
    other = new_adapter(model, choose_modules(model), rank=4, seed=4)
    for path, part in one.items():
        assert mx.array_equal(part.a, both[path].a)
        assert not mx.array_equal(part.a, other[path].a)
    assert len({float(part.a[0, 0]) for part in both.values()}) == len(both)
    bound = 1 / np.sqrt(32)
    assert float(mx.abs(both["model.layers.0.self_attn.q_proj"].a).max()) <= bound


def test_only_a_and_b_train_and_they_are_float32_on_any_base() -> None:
    model = architectures.make("llama")
    model.set_dtype(mx.bfloat16)
    attach_adapters(model, rank=4)
    trained = named_arrays(model.trainable_parameters())
    assert {name.rpartition(".")[2] for name in trained} == {"lora_a", "lora_b"}
    assert {array.dtype for array in trained.values()} == {mx.float32}
    assert model(IDS).dtype == mx.bfloat16


def test_the_base_keeps_its_names_and_every_byte() -> None:
    for name in ("llama", "mixtral"):
        model = architectures.make(name)
        before = fingerprint(model)
        attach_adapters(model, rank=4)
        assert fingerprint(base_parameters(model)) == before
        assert not set(adapter_parameters(model)) & set(base_parameters(model))


def test_without_its_adapter_a_model_is_its_base_to_the_bit() -> None:
    for name in ("llama", "mixtral"):
        model = architectures.make(name)
        base = model(IDS)
        attach_adapters(model, rank=4)
        shifted(model)
        view = without_adapter(model)
        assert not mx.allclose(model(IDS), base, atol=1e-3)
        assert mx.array_equal(view(IDS), base)
        assert not mx.allclose(model(IDS), base, atol=1e-3), "the view changed the model"
        assert {id(a) for a in named_arrays(view.parameters()).values()} == {
            id(a) for a in named_arrays(model.parameters()).values()
        }, "a second copy of the arrays"


def test_adapters_of_head_and_embedding_are_taken_from_a_file_s() -> None:
    model = architectures.make("qwen2")  # its head is not its embedding
    expected = {
        path: dict(model.named_modules())[path] for path in ("lm_head", "model.embed_tokens")
    }
    head = Part(mx.ones((32, 2)), 0.01 * mx.ones((2, architectures.VOCAB)), 2.0)
    table = Part(mx.ones((architectures.VOCAB, 2)), 0.01 * mx.ones((2, 32)), 2.0)
    matrices = {
        "lm_head.weight": adapted_matrix(expected["lm_head"], head),
        "model.embed_tokens.weight": adapted_matrix(expected["model.embed_tokens"], table),
    }
    other = architectures.make("qwen2")
    other.load_weights(list(matrices.items()), strict=False)
    attach(model, {"lm_head": head, "model.embed_tokens": table})
    np.testing.assert_allclose(model(IDS), other(IDS), atol=1e-5)


@pytest.mark.parametrize(
    ("path", "part", "words"),
    [
        (
            "model.layers.2.self_attn.q_proj",
            Part(mx.zeros((32, 2)), mx.zeros((2, 32)), 1.0),
            ["model.layers.2.self_attn.q_proj", "no such layer", "nearest"],
        ),
        (
            "model.layers.0.self_attn.q_proj",
            Part(mx.zeros((48, 2)), mx.zeros((2, 32)), 1.0),
            ["(48, 2)", "(32, 2)", "another model"],
        ),
        (
            "model.norm",
            Part(mx.zeros((32, 2)), mx.zeros((2, 32)), 1.0),
            ["model.norm", "RMSNorm"],
        ),
    ],
    ids=["no such layer", "another shape", "no linear layer"],
)
def test_an_adapter_that_does_not_fit_is_refused_and_the_model_is_as_it_was(
    path: str, part: Part, words: list[str]
) -> None:
    model = architectures.make("llama")
    before = fingerprint(model), len(named_arrays(model.trainable_parameters()))
    with pytest.raises(UsageError) as error:
        attach(model, {path: part})
    assert all(word in str(error.value) for word in words)
    assert (fingerprint(model), len(named_arrays(model.trainable_parameters()))) == before


def test_a_self_check_has_b_that_is_not_zero_and_leaves_it_as_it_was() -> None:
    model = architectures.make("llama")
    attach_adapters(model, rank=4)
    before = fingerprint(model)
    base = model(IDS)
    with small_updates(model):
        assert all(part.b.any().item() for part in parts_of(model).values())
        assert not mx.array_equal(model(IDS), base)
    assert fingerprint(model) == before
    shifted(model)
    trained = fingerprint(model)
    with small_updates(model):
        assert fingerprint(model) == trained, "an adapter that was trained is checked as it is"

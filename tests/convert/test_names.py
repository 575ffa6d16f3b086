"""Rules of architectures: names of every parameter, both ways."""

from pathlib import Path

import pytest

from mlx_dpo.convert.hf.names import BUFFERS, RULES, skeleton
from mlx_dpo.models.dialects import for_mlx, names_embedding, names_head
from mlx_dpo.models.parameters import named_arrays
from tests.convert.conftest import GOLDEN
from tests.convert.tiny import CASES, model_type


def test_every_rule_is_proven_by_a_case() -> None:
    assert {model_type(case) for case in CASES} == set(RULES)


@pytest.mark.parametrize("case", CASES)
def test_rules_give_the_names_transformers_saves(case: str) -> None:
    config, shapes = GOLDEN[case]["config"], GOLDEN[case]["tensors"]
    rule = RULES[model_type(case)]
    parameters = named_arrays(skeleton(for_mlx(config)).parameters())
    found = {
        rule.torch_name(name): list(value.shape[::-1] if rule.is_transposed(name) else value.shape)
        for name, value in parameters.items()
    }
    if config["tie_word_embeddings"]:
        found.pop("lm_head.weight", None)  # Gemma 3 has one until it has seen the checkpoint
    assert found == shapes


@pytest.mark.parametrize(
    "name",
    [
        "transformer.h.0.attn.bias",
        "h.11.attn.masked_bias",
        "gpt_neox.layers.0.attention.bias",
        "gpt_neox.layers.0.attention.masked_bias",
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "gpt_neox.layers.0.attention.rotary_emb.inv_freq",
    ],
)
def test_buffers_are_known(name: str) -> None:
    assert BUFFERS.search(name)


def test_no_parameter_is_taken_for_a_buffer() -> None:
    names = {name for case in GOLDEN.values() for name in case["tensors"]}
    assert [name for name in names if BUFFERS.search(name)] == []


def test_each_model_has_one_embedding_and_at_most_one_head() -> None:
    for case in GOLDEN.values():
        assert sum(map(names_embedding, case["tensors"])) == 1
        assert sum(map(names_head, case["tensors"])) == (not case["config"]["tie_word_embeddings"])


def test_convert_is_imported_under_its_package_only() -> None:
    import sys

    assert "convert" not in sys.modules
    file = Path(sys.modules["mlx_dpo.convert.hf.names"].__file__ or "")
    assert file.parts[-4:-2] == ("mlx_dpo", "convert")

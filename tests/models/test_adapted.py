"""Adapted and quantised models as a whole: counted, told apart, and with the adapter off."""

from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import pytest

from mlx_dpo.convert.sources import load_model
from mlx_dpo.models.adapters import (
    Part,
    adapted_matrix,
    attach,
    attach_adapters,
    describe,
    new_adapter,
    parts_of,
    whole_digest,
    without_adapter,
)
from mlx_dpo.models.packed import num_parameters, packed_bits
from mlx_dpo.models.parameters import fingerprint, named_arrays
from tests.runs.conftest import ORACLE

IDS = mx.array([[5, 6, 7, 8]])
TINY = ORACLE.parents[3] / "checkpoints" / "tiny-sft"


def adapted(*, scale: float = 2.0, size: float = 0.01) -> nn.Module:
    """The oracle's llama with an adapter that is not zero."""
    model = load_model(ORACLE)
    adapter = new_adapter(model, ["model.layers.1.self_attn.q_proj"], rank=2, scale=scale)
    attach(model, {n: Part(p.a, p.b + size, p.scale) for n, p in adapter.items()})
    return model


def test_packed_weights_count_once_each(packed_folder: Path, partly_packed_folder: Path) -> None:
    for source, folder in ((ORACLE, packed_folder), (TINY, partly_packed_folder)):
        dense = named_arrays(load_model(source).parameters())
        model = load_model(folder)
        assert num_parameters(model) == sum(array.size for array in dense.values())
        assert packed_bits(model) == [4]
    assert packed_bits(load_model(ORACLE)) == []


def test_an_adapter_is_described_by_what_differs_in_it(packed_folder: Path) -> None:
    model = load_model(packed_folder)
    before = num_parameters(model)
    assert describe(model) is None
    attach_adapters(model, rank=4, modules="q_proj,v_proj", layers=2)
    about = describe(model)
    assert about is not None
    assert (about.ranks, about.scales, about.modules) == ([4], [2.0], 4)
    assert num_parameters(model) == before + about.parameters
    assert about.parameters == sum(part.a.size + part.b.size for part in parts_of(model).values())


def test_the_digest_of_a_whole_is_of_base_adapter_and_scale() -> None:
    assert whole_digest(load_model(ORACLE)) == fingerprint(load_model(ORACLE))
    digests = {
        whole_digest(model)
        for model in (load_model(ORACLE), adapted(), adapted(scale=1.0), adapted(size=0.02))
    }
    assert len(digests) == 4
    assert whole_digest(adapted()) == whole_digest(adapted())


def test_a_dora_adapter_that_is_off_leaves_the_model_it_is_on() -> None:
    path = "model.layers.1.self_attn.q_proj"
    model = load_model(ORACLE)
    linear = dict(model.named_modules())[path]
    (part,) = new_adapter(model, [path], rank=2).values()
    lengths = 1.5 * mx.linalg.norm(adapted_matrix(linear, part), axis=1)
    expected = model(IDS)
    attach(model, {path: Part(part.a, part.b, part.scale, lengths)})
    assert not mx.allclose(model(IDS), expected)
    assert mx.array_equal(without_adapter(model)(IDS), expected)


@pytest.mark.parametrize("folder", ["packed_folder", "partly_packed_folder"])
def test_an_adapter_on_packed_weights_that_is_off_leaves_them(
    folder: str, request: pytest.FixtureRequest
) -> None:
    model = load_model(request.getfixturevalue(folder))
    expected = model(IDS)
    attach_adapters(model, rank=4)
    for module in parts_of(model):
        layer = dict(model.named_modules())[module]
        layer.lora_b = layer.lora_b + 0.01
    assert not mx.array_equal(model(IDS), expected)
    assert mx.array_equal(without_adapter(model)(IDS), expected)

"""A fused model computes what its adapter did, from plain weights that were rounded once."""

import json
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import numpy.typing as npt
import pytest

from mlx_dpo.errors import UsageError
from mlx_dpo.models import export
from mlx_dpo.models.adaptable import choose_modules
from mlx_dpo.models.adapters import Part, adapted_matrix, attach, parts_of
from mlx_dpo.models.export import write_fused
from mlx_dpo.models.folder import load_model
from mlx_dpo.models.fuse import Packing, choose_packings, fused, packed_anew, packing_entry
from mlx_dpo.models.packed import dense, multiply_dense
from mlx_dpo.models.parameters import named_arrays, read_header, same_bits
from tests.runs.conftest import ORACLE
from tests.training import architectures

IDS = mx.array([[5, 9, 11, 2, 7, 3, 60]])


def random_part(module: nn.Module, number: int = 0, rank: int = 4, *, dora: bool = False) -> Part:
    """An adapter of a module that changes what it computes by about a tenth."""
    rows, columns = dense(module).shape[-2:]
    experts = module.weight.shape[:-2]
    inputs, outputs = (rows, columns) if is_embedding(module) else (columns, rows)
    shapes = ((*experts, rank, inputs), (*experts, outputs, rank))
    if not experts:
        shapes = ((inputs, rank), (rank, outputs))
    a, b = (0.1 * mx.random.normal(s, key=mx.random.key(number + i)) for i, s in enumerate(shapes))
    length = mx.linalg.norm(dense(module), axis=-1)
    return Part(a, b, 2.0, 1.1 * length + 0.01 if dora else None)


def is_embedding(module: nn.Module) -> bool:
    return isinstance(module, nn.Embedding | nn.QuantizedEmbedding)


def adapted(model: nn.Module, *more: str, dora: bool = False) -> nn.Module:
    """The model with a random adapter on every layer that is adapted by default, and on more."""
    found = dict(model.named_modules())
    paths = [*choose_modules(model), *more]
    attach(model, {p: random_part(found[p], 7 * n, dora=dora) for n, p in enumerate(paths)})
    return model


def packed(model: nn.Module, bits: int = 4, mode: str = "affine") -> nn.Module:
    """The model with all packed that groups of 32 divide."""
    nn.quantize(
        model,
        32,
        bits,
        mode=mode,
        class_predicate=lambda _, m: hasattr(m, "to_quantized") and m.weight.shape[-1] % 32 == 0,
    )
    multiply_dense(model)
    return model


def with_weights(name: str, arrays: dict[str, mx.array]) -> nn.Module:
    """A bare model of an architecture with these parameters and no others."""
    model = architectures.make(name)
    model.load_weights(list(arrays.items()))
    return model


def logits(model: nn.Module) -> npt.NDArray[np.float32]:
    return np.array(model(IDS).astype(mx.float32))


def assert_same_logits(found: nn.Module, expected: nn.Module) -> None:
    wanted = logits(expected)
    assert np.abs(logits(found) - wanted).max() <= 1e-5 * max(1, np.abs(wanted).max())


CASES = [
    ("llama", (), False),
    ("llama", ("model.embed_tokens",), False),  # tied: its output layer too
    ("qwen2", ("model.embed_tokens", "lm_head"), False),  # biases
    ("qwen2", (), True),
    ("mixtral", (), False),  # experts
    ("gpt2", (), False),
]


@pytest.mark.parametrize(("name", "more", "dora"), CASES)
@pytest.mark.parametrize("bits", [None, 4])
def test_in_float32_it_computes_what_the_adapter_did(
    name: str, more: tuple[str, ...], dora: bool, bits: int | None
) -> None:
    base = architectures.make(name)
    model = adapted(packed(base, bits) if bits else base, *more, dora=dora)
    arrays = fused(model, mx.float32)
    assert arrays.keys() == named_arrays(architectures.make(name).parameters()).keys()
    assert_same_logits(with_weights(name, arrays), model)


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_a_sum_is_rounded_once(dtype: mx.Dtype) -> None:
    model = architectures.make("llama")
    model.set_dtype(dtype)
    adapted(model)
    path = "model.layers.0.mlp.up_proj"
    part = parts_of(model)[path]
    layer = model.layers[0].mlp.up_proj.linear
    arrays = fused(model, dtype)
    assert {array.dtype for array in arrays.values()} == {dtype}
    total = layer.weight.astype(mx.float32) + part.scale * (part.a @ part.b).T
    assert same_bits(arrays[f"{path}.weight"], total.astype(dtype))
    twice = layer.weight + (part.scale * (part.a @ part.b).T).astype(dtype)
    assert not same_bits(arrays[f"{path}.weight"], twice)
    assert same_bits(arrays["model.norm.weight"], model.model.norm.weight)


def test_what_an_architecture_keeps_in_its_own_dtype_stays_in_it() -> None:
    class Careful(nn.Module):
        def __init__(self) -> None:
            super().__init__()  # type: ignore[no-untyped-call]
            self.layer, self.bias = nn.Linear(4, 4), mx.zeros(4)

        @property
        def cast_predicate(self):  # type: ignore[no-untyped-def] # as mlx-lm's models have it
            return lambda name: name != "bias"

    arrays = fused(Careful(), mx.bfloat16)
    assert {name: array.dtype for name, array in arrays.items()} == {
        "bias": mx.float32,
        "layer.bias": mx.bfloat16,
        "layer.weight": mx.bfloat16,
    }


def test_the_float32_sums_are_what_is_packed() -> None:
    model = adapted(packed(architectures.make("llama")))
    packings = choose_packings(model, 8)
    arrays = packed_anew(model, mx.bfloat16, packings)
    path = "model.layers.1.mlp.down_proj"
    total = adapted_matrix(model.layers[1].mlp.down_proj.linear, parts_of(model)[path])
    weight, scales, biases = mx.quantize(total, 64, 8)
    assert same_bits(arrays[f"{path}.weight"], weight)
    assert same_bits(arrays[f"{path}.scales"], scales.astype(mx.bfloat16))
    assert same_bits(arrays[f"{path}.biases"], biases.astype(mx.bfloat16))
    assert arrays["model.norm.weight"].dtype == mx.bfloat16
    assert f"{path}.linear.weight" not in arrays


def test_it_is_packed_as_the_base_is_where_that_has_these_bits() -> None:
    model = architectures.make("llama")
    own = {"model.layers.0.mlp.up_proj": {"bits": 6, "group_size": 32}}
    nn.quantize(
        model, 32, 4, class_predicate=lambda p, m: own.get(p, p.endswith(("up_proj", "k_proj")))
    )
    adapted(model)
    found = choose_packings(model, 4)
    assert found.pop("model.layers.0.mlp.up_proj") == Packing(32, 6)
    assert set(found.values()) == {Packing(32, 4)}
    assert {path.rpartition(".")[2] for path in found} == {"up_proj", "k_proj"}
    others = choose_packings(model, 8)
    assert set(others.values()) == {Packing(64, 8)}  # where 64 divides the columns: down_proj
    assert {path.rpartition(".")[2] for path in others} == {"down_proj"}


def test_other_modes_are_packed_anew_in_their_own() -> None:
    model = adapted(packed(architectures.make("llama"), mode="mxfp4"))
    packings = choose_packings(model, 4)
    assert set(packings.values()) == {Packing(32, 4, "mxfp4")}
    arrays = packed_anew(model, mx.bfloat16, packings)
    assert arrays["model.embed_tokens.scales"].dtype == mx.uint8
    assert not [name for name in arrays if name.endswith("biases")]


def test_exceptions_of_an_architecture_are_kept_and_written_as_mlx_lm_does() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()  # type: ignore[no-untyped-call]
            for name in ("up", "down", "gate", "head"):
                setattr(self, name, nn.Linear(64, 8))
            self.odd = nn.Linear(40, 8)

        @property
        def quant_predicate(self):  # type: ignore[no-untyped-def] # as mlx-lm's models have it
            names = {"gate": {"group_size": 32, "bits": 8}, "head": False}
            return lambda path, _: names.get(path, True)

    packings = choose_packings(Model(), 4)
    assert packings == {
        **dict.fromkeys(("up", "down"), Packing(64, 4)),
        "gate": Packing(32, 8),
    }
    common = {"group_size": 64, "bits": 4, "mode": "affine"}
    gate = {"group_size": 32, "bits": 8, "mode": "affine"}
    assert packing_entry(packings) == {**common, "gate": gate}


def test_a_model_whose_columns_no_group_divides_is_refused() -> None:
    with pytest.raises(UsageError, match=r"--quantize 4: no layer .* 32 divides"):
        choose_packings(nn.Linear(40, 8), 4)


def shifted_oracle(bits: int | None = None) -> nn.Module:
    model = load_model(ORACLE)
    return adapted(packed(model, bits) if bits else model)


@pytest.mark.parametrize("limit", [10**9, 30_000])
def test_a_folder_is_written_in_files_of_a_size(
    limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "SHARD_BYTES", limit)
    model = shifted_oracle(bits=4)
    done: list[int] = []
    write_fused(
        tmp_path, model, ORACLE, mx.float32, progress=lambda name, total, more: done.append(more)
    )
    files = sorted(tmp_path.glob("*.safetensors"))
    index = tmp_path / "model.safetensors.index.json"
    if limit == 10**9:
        assert [file.name for file in files] == ["model.safetensors"]
        assert not index.exists()
    else:
        number = len(files)
        assert files[0].name == f"model-00001-of-{number:05}.safetensors"
        places = json.loads(index.read_text())["weight_map"]
        headers = {file.name: read_header(file).tensors for file in files}
        assert places == {name: file for file, names in headers.items() for name in names}
        sizes = [file.stat().st_size for file in files if len(headers[file.name]) > 1]
        assert max(sizes) < limit + 4000  # with its header
    config = json.loads((tmp_path / "config.json").read_text())
    assert not {"quantization", "quantization_config"} & config.keys()
    assert (tmp_path / "tokenizer.json").is_file()
    loaded = load_model(tmp_path)
    assert sum(done) == len(named_arrays(loaded.parameters()))
    assert_same_logits(loaded, model)


def test_memory_holds_one_file_beside_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = nn.Sequential(*(nn.Linear(512, 512, bias=False) for _ in range(16)))
    nn.quantize(model, 64, 4)
    mx.eval(model.parameters())
    monkeypatch.setattr(export, "SHARD_BYTES", 2**20)  # one matrix in float32
    mx.clear_cache()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    write_fused(tmp_path, model, ORACLE, mx.float32)
    assert len(list(tmp_path.glob("*.safetensors"))) == 16
    assert mx.get_peak_memory() - before < 4 * 2**20


def test_a_value_too_large_for_the_dtype_is_refused_by_name(tmp_path: Path) -> None:
    model = shifted_oracle()
    model.model.norm.weight = model.model.norm.weight * 1e6
    with pytest.raises(UsageError, match=r"model.norm.weight: .* too large .*float16"):
        write_fused(tmp_path, model, ORACLE, mx.float16)


def test_the_record_of_a_conversion_leads_back_from_dense_weights_only(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for file in ORACLE.iterdir():
        (source / file.name).write_bytes(file.read_bytes())
    (source / "convert.json").write_text("{}")
    for bits in (None, 8):
        folder = tmp_path / f"out-{bits}"
        folder.mkdir()
        write_fused(folder, shifted_oracle(), source, mx.float16, bits=bits)
        assert (folder / "convert.json").exists() == (bits is None)

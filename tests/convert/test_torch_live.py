"""PyTorch itself: it reads what is written here, and what it writes is read here."""

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_dpo.convert.conversion import Options, convert
from mlx_dpo.convert.course.checkpoint import read_artifact
from mlx_dpo.convert.sources import load_folder
from mlx_dpo.convert.torch_zip.archive import read_state_dict, read_torch_zip, write_torch_zip
from mlx_dpo.convert.torch_zip.tensors import BFloat16, as_mlx, from_mlx
from mlx_dpo.convert.verify import check_course_logits
from mlx_dpo.errors import MlxDpoError, UsageError
from tests import g2c

pytestmark = pytest.mark.torch

DTYPES = (
    *("float32", "float16", "bfloat16", "float64"),
    *("int64", "int32", "int16", "int8", "uint8", "bool"),
)


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch", reason="`make test-torch` runs it")


def bits(tensor: Any) -> bytes:
    """Of a tensor of PyTorch or of ours, in the order of its elements."""
    if isinstance(tensor, BFloat16):
        return tensor.bits.tobytes()
    if isinstance(tensor, np.ndarray):
        return tensor.tobytes()
    torch = pytest.importorskip("torch", reason="`make test-torch` runs it")
    flat = tensor.detach().contiguous().reshape(-1)
    return bytes(flat.view(torch.uint8).numpy().tobytes())


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_pytorch_saves_is_read_bit_for_bit(
    torch: Any, tmp_path: Path, dtype: str, protocol: int
) -> None:
    torch.manual_seed(0)
    base = (torch.randn(6, 4) * 50).to(getattr(torch, dtype))
    content = {
        "whole": base,
        "turned": base.T,
        "slice": base[1:4, ::2],
        "number": base[2, 3],
        "empty": base[:0],
        "parameter": torch.nn.Parameter(base.clone(), requires_grad=False),
        "nested": [base[0], {"a": (1, 2.5, None, True, "x")}],
    }
    torch.save(content, tmp_path / "x.pt", pickle_protocol=protocol)
    found = read_torch_zip(tmp_path / "x.pt")
    assert list(found) == list(content)
    for name in ("whole", "turned", "slice", "number", "empty", "parameter"):
        assert found[name].shape == tuple(content[name].shape), name
        assert bits(found[name]) == bits(content[name]), name
        array = as_mlx(found[name])
        assert str(array.dtype) == f"mlx.core.{dtype}", name
    assert found["nested"][1] == content["nested"][1]


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_written_here_pytorch_loads_bit_for_bit(
    torch: Any, tmp_path: Path, dtype: str
) -> None:
    mx.random.seed(0)
    with mx.stream(mx.cpu):  # float64 lives there alone
        array = (mx.random.normal((5, 3)) * 50).astype(getattr(mx, dtype.replace("bool", "bool_")))
        tensors = [from_mlx(array), from_mlx(array[0, 0]), from_mlx(array[:0])]
    content = {"w": tensors, "n": [1, -1, 2**40, 0.1, None, True], "d": {"é": "日本"}}
    write_torch_zip(tmp_path / "x.pt", content)
    for mapped in (False, True):
        found = torch.load(tmp_path / "x.pt", weights_only=True, mmap=mapped)
        assert {key: found[key] for key in "nd"} == {key: content[key] for key in "nd"}
        for tensor, ours in zip(found["w"], tensors, strict=True):
            assert str(tensor.dtype) == f"torch.{dtype}"
            assert tuple(tensor.shape) == ours.shape
            assert tensor.is_contiguous()
            assert bits(tensor) == bits(ours)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_hugging_face_state_dict_keeps_tied_tensors_tied(
    torch: Any, tmp_path: Path, dtype: str
) -> None:
    class Tied(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.embed = torch.nn.Embedding(11, 6)
            self.norm = torch.nn.BatchNorm1d(6)
            self.lm_head = torch.nn.Linear(6, 11, bias=False)
            self.lm_head.weight = self.embed.weight

    model = Tied().to(getattr(torch, dtype))
    for content in (model.state_dict(), dict(model.named_parameters(remove_duplicate=False))):
        torch.save(content, tmp_path / "pytorch_model.bin")
        found = read_torch_zip(tmp_path / "pytorch_model.bin")
        assert list(found) == list(content)
        for name, tensor in content.items():
            assert bits(found[name]) == bits(tensor), name
        tied = [getattr(found[n], "bits", found[n]) for n in ("embed.weight", "lm_head.weight")]
        assert np.shares_memory(*tied)
        arrays = read_state_dict(tmp_path / "pytorch_model.bin")
        assert {str(arrays[n].dtype) for n in ("embed.weight", "norm.weight")} == {
            f"mlx.core.{dtype}"
        }


def test_the_older_format_and_whole_modules_are_refused(torch: Any, tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    for name, reason in (("old.pt", "save it again"), ("module.pt", "no checkpoint needs")):
        with pytest.raises(UsageError, match=reason):
            read_torch_zip(tmp_path / name)


def test_pytorch_loads_the_artifact_that_comes_back(torch: Any, tmp_path: Path) -> None:
    convert(g2c.ARTIFACT, tmp_path / "mlx", Options(verify=False), print)
    convert(tmp_path / "mlx", tmp_path / "back", Options(verify=False), print)
    before = torch.load(g2c.ARTIFACT / "model.pt", weights_only=True)
    after = torch.load(tmp_path / "back" / "model.pt", weights_only=True)
    assert list(after) == ["vocab_size", "model_config", "params"]
    assert {k: after[k] for k in ("vocab_size", "model_config")} == {
        k: before[k] for k in ("vocab_size", "model_config")
    }
    for one, two in zip(before["params"], after["params"], strict=True):
        assert one.dtype == two.dtype
        assert torch.equal(one, two)


def test_the_logits_are_those_of_pytorch_s_own_layers(torch: Any, tmp_path: Path) -> None:
    """The model once more, of PyTorch's functions alone."""
    functional = torch.nn.functional
    content = torch.load(g2c.ARTIFACT / "model.pt", weights_only=True)
    params = iter(content["params"])
    heads, dim = content["model_config"]["num_heads"], content["model_config"]["embedding_dim"]
    ids = torch.tensor([g2c.pairs()[1].prompt_ids + g2c.pairs()[1].chosen_ids])

    def norm(x: Any) -> Any:
        return functional.layer_norm(x, (dim,), next(params), next(params), 1e-5)

    def linear(x: Any) -> Any:
        return x @ next(params) + next(params)

    def split(x: Any) -> Any:
        return x.unflatten(-1, (heads, -1)).transpose(1, 2)

    token_embed, positions = next(params), next(params)
    x = token_embed[ids] + positions[: ids.shape[1]]
    for _ in range(content["model_config"]["num_layers"]):
        normed = norm(x)
        q, k, v = (split(linear(normed)) for _ in range(3))
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + linear(mixed.transpose(1, 2).flatten(2))
        x = x + linear(functional.gelu(linear(norm(x))))
    expected = (norm(x) @ token_embed.T + next(params)).numpy()

    convert(g2c.ARTIFACT, tmp_path / "mlx", Options(verify=False), print)
    model, _ = load_folder(tmp_path / "mlx")
    np.testing.assert_allclose(np.array(model(mx.array(ids.numpy()))), expected, atol=1e-4)


def test_torch_and_mlx_answer_alike_for_a_course_artifact(torch: Any, tmp_path: Path) -> None:
    told: list[str] = []
    convert(g2c.ARTIFACT, tmp_path / "mlx", Options(), told.append)
    convert(tmp_path / "mlx", tmp_path / "back", Options(), told.append)
    convert(g2c.ARTIFACT, tmp_path / "half", Options(dtype="bfloat16"), told.append)
    lines = [line for line in told if line.startswith("logits, torch beside MLX on 128 tokens")]
    assert len(lines) == 3
    assert "likeliest token equal at 128 of 128" in lines[0]
    assert "cast included" in lines[2]


def test_a_course_model_that_answers_otherwise_is_not_written(torch: Any, tmp_path: Path) -> None:
    checkpoint = read_artifact(g2c.ARTIFACT)
    convert(g2c.ARTIFACT, tmp_path / "mlx", Options(verify=False), print)
    wrong = {
        k: v.T if k.endswith("attention.q.weight") else v for k, v in checkpoint.arrays.items()
    }
    with pytest.raises(MlxDpoError, match="nothing was written"):
        check_course_logits(
            g2c.ARTIFACT / "model.pt", wrong, checkpoint.args, tmp_path / "mlx", exact=True
        )

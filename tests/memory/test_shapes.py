"""A model of the right shapes, made without its weights."""

import json
import shutil
from pathlib import Path

import mlx.core as mx
import pytest

from mlx_dpo.errors import UsageError
from mlx_dpo.memory.shapes import shell
from mlx_dpo.models.folder import load_folder, load_model
from mlx_dpo.models.parameters import named_arrays, num_bytes
from tests import oracle
from tests.packed import pack

MODELS = sorted(path.parent for path in oracle.FOLDER.glob("*/model/config.json"))


def emptied(folder: Path, copy: Path) -> Path:
    """A copy of a model folder whose weight files hold NaN in place of every weight."""
    shutil.copytree(folder, copy)
    for file in copy.glob("model*.safetensors"):
        content = file.read_bytes()
        end = 8 + int.from_bytes(content[:8], "little")
        file.write_bytes(content[:end] + b"\xff" * (len(content) - end))
    return copy


@pytest.mark.parametrize("folder", MODELS, ids=lambda folder: folder.parent.name)
def test_a_shell_has_the_shapes_of_the_model_without_its_data(folder: Path, tmp_path: Path) -> None:
    loaded, _ = load_folder(folder)
    made = shell(emptied(folder, tmp_path / "empty"))
    expected = {n: (a.shape, a.dtype) for n, a in named_arrays(loaded.parameters()).items()}
    assert {n: (a.shape, a.dtype) for n, a in named_arrays(made.parameters()).items()} == expected
    assert num_bytes(made.parameters()) == num_bytes(loaded.parameters())


@pytest.mark.parametrize("mode", ["affine", "mxfp4"])
def test_a_shell_of_a_quantised_model_is_packed_as_the_loaded_one(
    mode: str, tmp_path: Path
) -> None:
    folder = pack(Path("checkpoints/tiny-sft"), tmp_path / "packed", mode=mode, dtype=mx.bfloat16)
    loaded = load_model(folder, mx.bfloat16)
    made = shell(emptied(folder, tmp_path / "empty"), mx.bfloat16)
    expected = {n: (a.shape, a.dtype) for n, a in named_arrays(loaded.parameters()).items()}
    assert {n: (a.shape, a.dtype) for n, a in named_arrays(made.parameters()).items()} == expected
    assert any(a.dtype == mx.uint32 for a in named_arrays(made.parameters()).values())
    # Nor is its product the one of dense weights that a loaded model has on a CPU.
    assert not any(hasattr(module, "unpacks") for module in made.modules())


def test_without_weights_the_shapes_are_those_of_the_config(tmp_path: Path) -> None:
    folder = pack(oracle.FOLDER / "llama" / "model", tmp_path / "packed")
    expected = {n: a.shape for n, a in named_arrays(shell(folder).parameters()).items()}
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    made = shell(folder)
    assert {n: a.shape for n, a in named_arrays(made.parameters()).items()} == expected


@pytest.mark.parametrize("change", [{"vocab_size": 10**9}, {"num_hidden_layers": 10**6}])
def test_without_weights_sizes_that_no_model_has_are_refused(
    change: dict[str, int], tmp_path: Path
) -> None:
    config = json.loads((oracle.FOLDER / "llama" / "model" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(UsageError, match=f"{next(iter(change))} is 10+"):
        shell(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": 10**9}, "vocab_size is 1000000000"),
        ({"hidden_size": 48}, "cannot be loaded"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantised by awq"),
        ({"quantization": {"bits": 4}}, "cannot be loaded"),
        ({"model_type": "nothing"}, "no architecture 'nothing'"),
        ({"model_file": "code.py"}, "names code to run"),
    ],
)
def test_what_loading_refuses_is_refused(
    change: dict[str, object], message: str, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(oracle.FOLDER / "llama" / "model", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(UsageError, match=message):
        shell(folder)


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff" * 64, b"\x02\0\0\0\0\0\0\0[]", b"\x0c\0\0\0\0\0\0\0" + b'{"a":{"s":1}'],
    ids=["empty", "noise", "a list", "cut off"],
)
def test_a_broken_header_is_refused_in_one_line(content: bytes, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(oracle.FOLDER / "llama" / "model", folder)
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(UsageError, match="not a valid safetensors file"):
        shell(folder)

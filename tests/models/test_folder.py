"""Model folders: read as they are meant, or refused in one line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlx_dpo.errors import UsageError
from mlx_dpo.models.dialects import normalised
from mlx_dpo.models.folder import load_folder
from mlx_dpo.models.parameters import (
    load_arrays,
    named_arrays,
    read_header,
    save_arrays,
    tensor_shapes,
)
from tests import oracle

MODEL_FOLDER = oracle.FOLDER / "llama" / "model"
# Long enough for rotary angles of another base to show.
IDS = mx.arange(10, 90)[None]

MakeFolder = Callable[..., Path]


@pytest.fixture
def make_folder(tmp_path: Path) -> MakeFolder:
    """Makes a copy of the oracle's llama; keywords change its config, None removes an entry."""

    def make(name: str = "model", **changes: Any) -> Path:
        folder = tmp_path / name
        shutil.copytree(MODEL_FOLDER, folder)
        config = json.loads((folder / "config.json").read_text())
        config = {k: v for k, v in {**config, **changes}.items() if v is not None}
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return make


def logits_of(folder: Path) -> Any:
    return np.array(load_folder(folder)[0](IDS))


def refusal(folder: Path) -> str:
    with pytest.raises(UsageError) as raised:
        load_folder(folder)
    text = str(raised.value)
    assert raised.value.exit_code == 2
    assert text.startswith(str(folder))
    assert "\n" not in text
    return text


# --- Rotary embeddings: the spelling of transformers 5 -------------------------------------------


def test_rope_parameters_are_read_like_a_top_level_theta(make_folder: MakeFolder) -> None:
    """mlx-lm's llama reads only the old spelling, and goes on with 10000 without a word."""
    old = logits_of(make_folder("old", rope_theta=500.0))
    new = logits_of(
        make_folder(
            "new", rope_theta=None, rope_parameters={"rope_type": "default", "rope_theta": 500.0}
        )
    )
    default = logits_of(make_folder("default", rope_theta=None))
    np.testing.assert_array_equal(new, old)
    assert np.abs(new - default).max() > 1e-2


def test_rope_scaling_inside_rope_parameters_is_read(make_folder: MakeFolder) -> None:
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    }
    old = logits_of(make_folder("old", rope_theta=500.0, rope_scaling=scaling))
    new = logits_of(
        make_folder("new", rope_theta=None, rope_parameters={**scaling, "rope_theta": 500.0})
    )
    unscaled = logits_of(make_folder("unscaled", rope_theta=500.0))
    np.testing.assert_array_equal(new, old)
    assert np.abs(new - unscaled).max() > 1e-2


def test_rope_parameters_of_a_language_model_inside_another_are_read() -> None:
    """A multimodal config holds the language model's; its other entries stay."""
    text = {"hidden_size": 32, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}
    assert normalised({"model_type": "x", "text_config": text}) == {
        "text_config": {**text, "rope_theta": 5e5}
    }
    assert normalised({"model_type": "x", "text_config": {"rope_theta": 5e5}}) == {}


@pytest.mark.parametrize(
    ("rope", "expected"),
    [
        (None, {}),
        ({"rope_type": "default", "rope_theta": 5e5}, {"rope_theta": 5e5}),
        (
            {"rope_theta": 1e4, "partial_rotary_factor": 0.4},
            {"rope_theta": 1e4, "partial_rotary_factor": 0.4},
        ),
        (
            {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            {"rope_theta": 1e6, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
        ),
        (
            {
                "full_attention": {"rope_type": "default", "rope_theta": 2e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 3e4},
            },
            {"rope_theta": 2e6, "rope_local_base_freq": 3e4},
        ),
    ],
    ids=["old spelling", "theta", "partial", "scaled", "one set for each kind of layer"],
)
def test_only_what_has_to_be_added_is_added(
    rope: dict[str, Any] | None, expected: dict[str, Any]
) -> None:
    assert normalised({"rope_parameters": rope} if rope else {"rope_theta": 7.0}) == expected


# --- Headers -------------------------------------------------------------------------------------


def test_shapes_and_dtypes_of_all_files_come_from_their_headers(tmp_path: Path) -> None:
    save_arrays(tmp_path / "model-1.safetensors", {"a": mx.zeros((2, 3), mx.bfloat16)})
    save_arrays(tmp_path / "model-2.safetensors", {"b": mx.zeros((), mx.int32)}, {"format": "mlx"})
    assert tensor_shapes(tmp_path) == {"a": ((2, 3), "BF16"), "b": ((), "I32")}
    assert read_header(tmp_path / "model-2.safetensors").metadata == {"format": "mlx"}


# --- Precision and tokenizer ---------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16, mx.float32])
def test_weights_come_as_float32_with_the_values_of_the_file(
    make_folder: MakeFolder, dtype: mx.Dtype
) -> None:
    folder = make_folder()
    original = mx.load(str(folder / "model.safetensors"))
    assert isinstance(original, dict)
    stored = {name: value.astype(dtype) for name, value in original.items()}
    mx.eval(stored)
    mx.save_safetensors(str(folder / "model.safetensors"), stored)
    parameters = named_arrays(load_folder(folder)[0].parameters())
    assert parameters.keys() == stored.keys()
    for name, value in parameters.items():
        assert value.dtype == mx.float32, name
        assert mx.array_equal(value, stored[name].astype(mx.float32)), name


def test_weights_may_lie_in_several_files(make_folder: MakeFolder) -> None:
    whole, parts = make_folder("whole"), make_folder("parts")
    weights = mx.load(str(whole / "model.safetensors"))
    assert isinstance(weights, dict)
    names = sorted(weights)
    for number, some in enumerate((names[:7], names[7:]), 1):
        file = parts / f"model-{number:05}-of-00002.safetensors"
        mx.save_safetensors(str(file), {name: weights[name] for name in some})
    (parts / "model.safetensors").unlink()
    np.testing.assert_array_equal(logits_of(parts), logits_of(whole))


@pytest.mark.parametrize(("eos", "expected"), [(3, {3}), ([3, 4], {3, 4})])
def test_every_eos_of_the_generation_config_ends_an_answer(
    make_folder: MakeFolder, eos: Any, expected: set[int]
) -> None:
    folder = make_folder()
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}))
    assert set(load_folder(folder)[1].eos_token_ids) == expected


# --- What is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"quantization_config": {"quant_method": "gptq"}},
        {"text_config": {"quantization_config": {"quant_method": "awq"}}},
        {"quantization_config": {"quant_method": "compressed-tensors"}},
    ],
    ids=["gptq", "awq, nested", "compressed tensors"],
)
def test_a_model_that_others_quantised_is_refused_by_the_name_of_the_method(
    make_folder: MakeFolder, changes: dict[str, Any]
) -> None:
    text = changes.get("text_config", changes)
    message = refusal(make_folder(**changes))
    assert f"quantised by {text['quantization_config']['quant_method']}" in message
    assert "full-precision model" in message


def test_code_named_by_a_config_is_never_run(make_folder: MakeFolder) -> None:
    folder = make_folder(model_file="model.py")
    (folder / "model.py").write_text("raise SystemExit('this ran')")
    assert "names code to run" in refusal(folder)


@pytest.mark.parametrize("num_bytes", [0, 7, 5_000, -1])
def test_a_truncated_weights_file_is_refused(make_folder: MakeFolder, num_bytes: int) -> None:
    file = make_folder() / "model.safetensors"
    file.write_bytes(file.read_bytes()[:num_bytes])
    assert "not a valid safetensors file" in refusal(file.parent)


def test_bytes_after_the_weights_are_refused(make_folder: MakeFolder) -> None:
    """MLX itself would load such a file."""
    file = make_folder() / "model.safetensors"
    with file.open("ab") as end:
        end.write(b"\0" * 8)
    assert isinstance(mx.load(str(file)), dict)
    assert "not a valid safetensors file" in refusal(file.parent)


def test_a_tensor_of_another_shape_is_refused(make_folder: MakeFolder) -> None:
    assert "cannot be loaded" in refusal(make_folder(intermediate_size=128))


def test_a_missing_tensor_is_refused(make_folder: MakeFolder) -> None:
    file = make_folder() / "model.safetensors"
    weights = mx.load(str(file))
    assert isinstance(weights, dict)
    mx.eval(weights)
    del weights["model.norm.weight"]
    mx.save_safetensors(str(file), weights)
    assert "cannot be loaded" in refusal(file.parent)


def test_a_config_transformers_refuses_is_refused_in_one_line(make_folder: MakeFolder) -> None:
    """64 features can't be divided among 6 heads; it is the tokenizer's loader that says so."""
    assert refusal(make_folder(hidden_size=64))


def test_an_unknown_architecture_is_refused_by_name(make_folder: MakeFolder) -> None:
    assert "abacus" in refusal(make_folder(model_type="abacus"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no config.json"),
        ("{", "not readable as JSON"),
        ("[]", "expected a JSON object"),
        ("[" * 100_000, "not readable as JSON"),
        ("{}", "expected the name of an architecture"),
    ],
    ids=["missing", "broken", "array", "nested", "empty"],
)
def test_a_config_that_is_none_is_refused(
    make_folder: MakeFolder, content: str | None, message: str
) -> None:
    folder = make_folder()
    (folder / "config.json").unlink()
    if content is not None:
        (folder / "config.json").write_text(content)
    assert message in refusal(folder)


def test_a_folder_without_weights_is_refused(make_folder: MakeFolder) -> None:
    folder = make_folder()
    (folder / "model.safetensors").unlink()
    assert "no model*.safetensors" in refusal(folder)


def test_a_folder_without_a_tokenizer_is_refused(make_folder: MakeFolder) -> None:
    folder = make_folder()
    for file in folder.glob("tokenizer*"):
        file.unlink()
    assert "no usable tokenizer" in refusal(folder)


def test_the_model_is_a_module_called_with_ids() -> None:
    model, tokenizer = load_folder(MODEL_FOLDER)
    assert isinstance(model, nn.Module)
    assert model(IDS).shape == (1, 80, 512)
    assert tokenizer.decode(tokenizer.encode("The otter")) == "The otter"


# --- Output layers: what the config leaves open --------------------------------------------------


def with_own_head(folder: Path) -> Path:
    """Gives a tied model an output layer of its own."""
    file = folder / "model.safetensors"
    arrays = load_arrays(file)
    arrays["lm_head.weight"] = arrays["model.embed_tokens.weight"] * 2 + 1
    save_arrays(file, arrays)
    return folder


def test_an_output_layer_is_used_where_the_config_says_nothing_of_tying(
    make_folder: MakeFolder,
) -> None:
    """mlx-lm's default for llama is tied: it would drop the layer without a word."""
    silent = with_own_head(make_folder("silent", tie_word_embeddings=None))
    explicit = with_own_head(make_folder("explicit", tie_word_embeddings=False))
    tied = make_folder("tied", tie_word_embeddings=None)
    np.testing.assert_array_equal(logits_of(silent), logits_of(explicit))
    np.testing.assert_array_equal(logits_of(tied), logits_of(MODEL_FOLDER))
    assert "lm_head.weight" in named_arrays(load_folder(silent)[0].parameters())


def test_an_output_layer_that_the_config_denies_is_not_dropped(make_folder: MakeFolder) -> None:
    folder = with_own_head(make_folder())
    assert "lm_head.weight differs from the embeddings: it would be dropped" in refusal(folder)


def test_more_layers_than_tensors_are_refused_before_they_are_built(
    make_folder: MakeFolder,
) -> None:
    text = refusal(make_folder(num_hidden_layers=10**7))
    assert "num_hidden_layers is 10000000, and the weights are" in text


def test_rope_parameters_of_the_wrong_kind_are_passed_over(make_folder: MakeFolder) -> None:
    rope = {"full_attention": {"rope_theta": 500.0}, "sliding_attention": "x"}
    load_folder(make_folder(rope_parameters=rope))


# --- Nothing outside the folder, nothing larger than the weights, nothing that is no number -------


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "tokenizer.json", "README.md"]
)
def test_a_link_out_of_the_folder_is_refused(
    make_folder: MakeFolder, tmp_path: Path, name: str
) -> None:
    folder = make_folder()
    (tmp_path / "elsewhere").write_text("{}")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(tmp_path / "elsewhere")
    assert f"{name!r} points outside the folder" in refusal(folder)


@pytest.mark.parametrize(
    ("repository", "target", "is_followed"),
    [
        ("models--a--b", "blobs", True),
        ("models--a--b", "refs", False),
        ("mine", "blobs", False),
    ],
)
def test_a_link_of_a_hub_snapshot_leads_into_its_own_blobs_and_nowhere_else(
    make_folder: MakeFolder, tmp_path: Path, repository: str, target: str, is_followed: bool
) -> None:
    snapshot = tmp_path / repository / "snapshots" / "0123"
    blobs = tmp_path / repository / target
    snapshot.mkdir(parents=True)
    make_folder().rename(blobs)
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(file)
    if is_followed:
        load_folder(snapshot)
    else:
        assert "points outside the folder" in refusal(snapshot)


@pytest.mark.parametrize("key", ["hidden_size", "vocab_size", "num_attention_heads", "head_dim"])
@pytest.mark.parametrize("size", [10**6, -4, float("inf")])
def test_a_size_the_weights_do_not_have_is_refused_before_anything_is_made(
    make_folder: MakeFolder, key: str, size: float
) -> None:
    folder = make_folder(**{key: size})
    assert f"config.json: {key} is {size}, and no tensor" in refusal(folder)


def test_a_config_of_many_megabytes_is_not_read(make_folder: MakeFolder) -> None:
    assert "has more than 4000000 bytes" in refusal(make_folder(note="a" * 4_000_000))


def test_weights_that_are_no_numbers_are_refused_by_name(make_folder: MakeFolder) -> None:
    folder = make_folder()
    arrays = load_arrays(folder / "model.safetensors")
    name = sorted(arrays)[-1]
    arrays[name] = arrays[name] * mx.nan
    save_arrays(folder / "model.safetensors", arrays)
    assert f"{name} holds NaN or infinite values" in refusal(folder)

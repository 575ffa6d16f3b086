"""mlx-lm's layout, beside mlx-lm's own loader, and the conversion from one layout to the other."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from click.testing import CliRunner, Result

from mlx_dpo.cli.adapter import adapter as command
from mlx_dpo.convert.adapters import conversion, layout_of, read_adapter, write_mlx, write_peft
from mlx_dpo.errors import MlxDpoError, UsageError
from mlx_dpo.models.adapters import (
    Adapter,
    Part,
    adapted_modules,
    attach,
    attach_adapters,
    new_adapter,
    parts_of,
)
from mlx_dpo.models.parameters import load_arrays, read_header, same_bits
from tests.convert.adapters import base, difference, logits
from tests.convert.conftest import change_json, digests
from tools.peft_adapters import FOLDER, KINDS, write_base

ROUNDING = 1e-5  # of logits up to 4: sums of float32 in another order
QUERY, VALUE = (f"model.layers.{{}}.self_attn.{name}_proj" for name in "qv")


def made_up(model: nn.Module, paths: list[str], **options: Any) -> dict[str, Part]:
    """An adapter of random numbers."""
    parts = new_adapter(model, paths, **options)
    return {
        path: Part(part.a, 0.2 * mx.random.normal(part.b.shape, key=mx.random.key(i)), part.scale)
        for i, (path, part) in enumerate(parts.items())
    }


def loaded_by_mlx_lm(folder: Path, model: nn.Module) -> nn.Module:
    from mlx_lm.tuner.utils import load_adapters

    model = load_adapters(model, str(folder))
    model.eval()
    return model


def same(first: Adapter, second: Adapter) -> bool:
    return first.keys() == second.keys() and all(
        same_bits(first[path].a, second[path].a)
        and same_bits(first[path].b, second[path].b)
        and first[path].scale == second[path].scale
        for path in first
    )


@pytest.mark.parametrize("kind", KINDS)
def test_mlx_lm_loads_what_is_written(kind: str, tmp_path: Path) -> None:
    of, _ = KINDS[kind]
    model = base(of, tmp_path / "base")
    expected = logits(model, read_adapter(FOLDER / kind, model))
    write_mlx(tmp_path, parts_of(model), model)  # of a model that has it
    theirs = loaded_by_mlx_lm(tmp_path, base(of, tmp_path / "base"))
    assert difference(logits(theirs), expected) < ROUNDING
    again = base(of, tmp_path / "base")
    assert difference(logits(again, read_adapter(tmp_path, again)), expected) < ROUNDING


def test_an_adapter_comes_back_bit_by_bit(tmp_path: Path) -> None:
    model = base("llama", tmp_path / "base")
    attach_adapters(model, rank=3, scale=2.5, layers=2)
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        write_mlx(tmp_path / name, parts_of(model), model)
    assert digests(tmp_path / "first") == digests(tmp_path / "second")
    bare = base("llama", tmp_path / "base")
    read = read_adapter(tmp_path / "first", bare)
    assert same(read, parts_of(model))
    assert same(read_adapter(tmp_path / "first", model), read)  # of a model that has one


def test_what_mlx_lm_saves_is_read(tmp_path: Path) -> None:
    from mlx.utils import tree_flatten
    from mlx_lm.tuner.utils import linear_to_lora_layers

    model = base("llama", tmp_path / "base")
    model.freeze()
    parameters = {"rank": 4, "scale": 20.0, "dropout": 0.1}
    linear_to_lora_layers(model, 2, parameters)
    for module in adapted_modules(model).values():
        module.lora_b = 0.1 * mx.random.normal(module.lora_b.shape, key=mx.random.key(1))
    model.eval()
    trained = dict(tree_flatten(model.trainable_parameters()))
    mx.save_safetensors(str(tmp_path / "adapters.safetensors"), trained)
    config = {"fine_tune_type": "lora", "num_layers": 2, "lora_parameters": parameters,
              "adapter_path": "adapters", "seed": 0, "train": True}  # fmt: skip
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    bare = base("llama", tmp_path / "base")
    found = read_adapter(tmp_path, bare)
    assert len(found) == 14
    assert difference(logits(bare, found), logits(model)) < ROUNDING


def test_config_of_the_last_layers(tmp_path: Path) -> None:
    model = base("llama", tmp_path / "base")
    paths = [QUERY.format(1), QUERY.format(2), VALUE.format(2), "lm_head"]
    write_mlx(tmp_path, made_up(model, paths, rank=2, scale=2.0), model)
    assert json.loads((tmp_path / "adapter_config.json").read_text()) == {
        "fine_tune_type": "lora",
        "num_layers": 2,
        "lora_parameters": {
            "rank": 2,
            "scale": 2,
            "alpha": 4,
            "dropout": 0.0,
            "keys": ["lm_head", "self_attn.q_proj", "self_attn.v_proj"],
        },
    }
    header = read_header(tmp_path / "adapters.safetensors")
    assert header.metadata == {"format": "mlx"}
    assert {name.rpartition(".")[0] for name in header.tensors} == set(paths)


def test_a_layer_that_is_not_adapted_stays_as_it_is(tmp_path: Path) -> None:
    """The config names v_proj of the second block too, which has no adapter."""
    model = base("llama", tmp_path / "base")
    paths = [QUERY.format(1), QUERY.format(2), VALUE.format(2)]
    write_mlx(tmp_path, made_up(model, paths, rank=2, scale=2.0), model)
    expected = logits(model, read_adapter(tmp_path, model))
    theirs = loaded_by_mlx_lm(tmp_path, base("llama", tmp_path / "base"))
    assert len(parts_of(theirs)) == 4
    assert difference(logits(theirs), expected) < ROUNDING


def test_only_the_head(tmp_path: Path) -> None:
    model = base("llama", tmp_path / "base")
    write_mlx(tmp_path, made_up(model, ["lm_head"], rank=2, scale=2.0), model)
    expected = logits(model, read_adapter(tmp_path, model))
    theirs = loaded_by_mlx_lm(tmp_path, base("llama", tmp_path / "base"))
    assert list(parts_of(theirs)) == ["lm_head"]
    assert difference(logits(theirs), expected) < ROUNDING


def test_ranks_are_filled_up_and_scales_go_into_b(tmp_path: Path) -> None:
    model = base("llama", tmp_path / "base")
    query, value, head = QUERY.format(0), VALUE.format(0), "lm_head"
    parts = {
        query: Part(mx.ones((32, 1)), mx.ones((1, 32)), scale=2.0),
        value: Part(mx.ones((32, 3)), mx.ones((3, 16)), scale=0.5),
        head: Part(mx.ones((32, 3)), mx.ones((3, 96)), scale=2.0),
    }
    write_mlx(tmp_path, parts, model)
    arrays = load_arrays(tmp_path / "adapters.safetensors")
    assert arrays[f"{query}.lora_a"][0].tolist() == [1.0, 0.0, 0.0]
    assert arrays[f"{query}.lora_b"][:, 0].tolist() == [1.0, 0.0, 0.0]
    assert arrays[f"{value}.lora_b"][:, 0].tolist() == [0.25] * 3
    assert arrays[f"{head}.lora_b"][:, 0].tolist() == [1.0] * 3
    settings = json.loads((tmp_path / "adapter_config.json").read_text())["lora_parameters"]
    assert (settings["rank"], settings["scale"]) == (3, 2)


def test_a_scale_of_zero_stays_nothing(tmp_path: Path) -> None:
    model = base("llama", tmp_path / "base")
    bare = logits(model)
    part = Part(mx.ones((32, 1)), mx.ones((1, 32)), scale=0.0)
    for write, name in ((write_mlx, "mlx"), (_write_peft, "peft")):
        (tmp_path / name).mkdir()
        write(tmp_path / name, {QUERY.format(0): part}, model)
        other = base("llama", tmp_path / "base")
        assert difference(logits(other, read_adapter(tmp_path / name, other)), bare) == 0


def _write_peft(folder: Path, adapter: Adapter, model: nn.Module) -> None:
    write_peft(folder, adapter, model, None)


@pytest.mark.parametrize("write", [write_mlx, _write_peft])
def test_lora_beside_dora_becomes_dora(write: Callable[..., None], tmp_path: Path) -> None:
    model = base("llama", tmp_path / "base")
    adapter = read_adapter(FOLDER / "dora", model)
    adapter |= made_up(model, [QUERY.format(1)], rank=2, scale=2.0)
    write(tmp_path, adapter, model)
    expected = logits(model, adapter)
    again = base("llama", tmp_path / "base")
    read = read_adapter(tmp_path, again)
    assert all(part.magnitude is not None for part in read.values())
    assert difference(logits(again, read), expected) < ROUNDING
    table = {"model.embed_tokens": Part(mx.ones((96, 2)), mx.ones((2, 32)), 1.0)}
    with pytest.raises(UsageError, match=r"is DoRA, and that of model.embed_tokens is not"):
        write(tmp_path, {**adapter, **table}, again)


def test_experts_in_mlx_lms_layout(tmp_path: Path) -> None:
    from tests.training import architectures

    model = architectures.make("mixtral")
    attach_adapters(model, rank=2, scale=3.0)
    adapter = {
        path: Part(part.a, 0.1 * mx.random.normal(part.b.shape, key=mx.random.key(1)), part.scale)
        for path, part in parts_of(model).items()
    }
    assert any(part.a.ndim == 3 for part in adapter.values())
    adapter[min(adapter)] = Part(adapter[min(adapter)].a, adapter[min(adapter)].b, 1.0)
    write_mlx(tmp_path, adapter, model)
    ids = mx.arange(12)[None]
    first, second = architectures.make("mixtral"), architectures.make("mixtral")
    attach(first, adapter)
    attach(second, read_adapter(tmp_path, second))
    theirs = loaded_by_mlx_lm(tmp_path, architectures.make("mixtral"))
    assert mx.allclose(first(ids), second(ids), atol=ROUNDING)
    assert mx.allclose(first(ids), theirs(ids), atol=ROUNDING)


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """An adapter in mlx-lm's layout, to be spoilt."""
    model = base("llama", tmp_path / "base")
    (tmp_path / "adapter").mkdir()
    paths = [QUERY.format(i) for i in range(3)]
    write_mlx(tmp_path / "adapter", made_up(model, paths, rank=2, scale=2.0), model)
    return tmp_path / "adapter"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fine_tune_type": "full"}, "fine_tune_type is 'full': its file holds weights"),
        ({"fine_tune_type": "vera"}, "fine_tune_type is 'vera'; expected lora or dora"),
        ({"fine_tune_type": "dora"}, "has no magnitude, and adapter_config.json says dora"),
        ({"lora_parameters": None}, "has no lora_parameters"),
        ({"lora_parameters": {"rank": 2}}, "scale is None; expected a number"),
        ({"lora_parameters": {"rank": 0, "scale": 1.0}}, "rank is 0; expected"),
        ({"lora_parameters": {"rank": 4, "scale": 1.0}}, "says rank 4"),
    ],
)
def test_configs_that_are_refused(
    change: dict[str, Any], message: str, written: Path, tmp_path: Path
) -> None:
    change_json(written / "adapter_config.json", lambda config: config.update(change))
    with pytest.raises(UsageError, match=message):
        read_adapter(written, base("llama", tmp_path / "base"))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "model.norm.weight",
            mx.ones(32),
            "model.norm.weight, which is not a tensor of an",
        ),
        ("lora_a", mx.ones((32, 2)), "holds lora_a, which is not a tensor"),
        ("lm_head.lora_a", mx.ones((32, 2)), "lm_head has no matrix B"),
        (f"{QUERY.format(0)}.lora_b", mx.ones(32), r"q_proj are \(32, 2\) and \(32,\)"),
        (f"{QUERY.format(0)}.m", mx.ones(32), "has a magnitude, and adapter_config.json says lora"),
    ],
)
def test_tensors_that_are_refused(
    name: str, value: mx.array, message: str, written: Path, tmp_path: Path
) -> None:
    file = written / "adapters.safetensors"
    mx.save_safetensors(str(file), {**load_arrays(file), name: value})
    with pytest.raises(UsageError, match=message):
        read_adapter(written, base("llama", tmp_path / "base"))


def test_another_number_of_magnitudes(tmp_path: Path) -> None:
    model = base("llama", tmp_path / "base")
    write_mlx(tmp_path, read_adapter(FOLDER / "dora", model), model)
    file = tmp_path / "adapters.safetensors"
    arrays = {**load_arrays(file), f"{QUERY.format(0)}.m": mx.ones(31)}
    mx.save_safetensors(str(file), arrays)
    with pytest.raises(UsageError, match="has 31 magnitudes"):
        read_adapter(tmp_path, model)


def test_folders_that_are_no_adapters(written: Path, tmp_path: Path) -> None:
    model = base("llama", tmp_path / "base")
    with pytest.raises(UsageError, match="is not an adapter's folder"):
        read_adapter(tmp_path / "base", model)
    with pytest.raises(UsageError, match="no such folder"):
        read_adapter(tmp_path / "nowhere", model)
    shutil.copyfile(
        FOLDER / "plain" / "adapter_model.safetensors", written / "adapter_model.safetensors"
    )
    with pytest.raises(UsageError, match=r"holds adapters.safetensors and adapter_model"):
        read_adapter(written, model)


def test_peft_below_mlx_lms_files(written: Path, tmp_path: Path) -> None:
    shutil.copytree(FOLDER / "plain", written / "peft")
    assert layout_of(written) == "mlx"
    assert len(read_adapter(written, base("llama", tmp_path / "base"))) == 3


def test_a_link_out_of_the_folder_is_refused(written: Path, tmp_path: Path) -> None:
    (written / "adapters.safetensors").rename(tmp_path / "elsewhere.safetensors")
    (written / "adapters.safetensors").symlink_to(tmp_path / "elsewhere.safetensors")
    with pytest.raises(UsageError, match="points outside the folder"):
        read_adapter(written, base("llama", tmp_path / "base"))


# The command.


def invoke(*args: object) -> Result:
    return CliRunner().invoke(command, ["convert", *(str(arg) for arg in args)])


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return write_base("llama", tmp_path / "llama")


def test_there_and_back(llama: Path, tmp_path: Path) -> None:
    there, back = tmp_path / "mlx", tmp_path / "back"
    result = invoke(FOLDER / "patterns", there, "--to", "mlx", "--model", llama)
    assert result.exit_code == 0, result.exception
    lines = result.stdout.splitlines()
    assert lines[0] == (
        f"{FOLDER / 'patterns'}: LoRA of rank 1 to 3 on 21 layers, from PEFT to mlx-lm"
    )
    assert lines[1].startswith("logits of 48 tokens, before and after: equal to ")
    assert lines[2] == f"wrote {there}"
    assert sorted(f.name for f in there.iterdir()) == [
        "adapter_config.json",
        "adapters.safetensors",
        "digests.json",
    ]
    result = invoke(there, back, "--to", "peft", "--model", llama)
    assert result.exit_code == 0, result.exception
    config = json.loads((back / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "llama"


def test_what_lies_beside_goes_along(llama: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(FOLDER / "plain", tmp_path / "source"))
    record = {"trained_from": {"model": str(llama)}}
    beside = {
        "dpo.json": json.dumps(record),
        "README.md": "# mine",
        "chat_template.jinja": "{{ messages }}",
        "optimizer.bin": "not this",
    }
    for name, text in beside.items():
        (source / name).write_text(text)
    assert invoke(source, tmp_path / "out", "--to", "mlx").exit_code == 0  # the record says of what
    found = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    assert found.keys() == {
        *(beside.keys() - {"optimizer.bin"}),
        *("adapters.safetensors", "adapter_config.json", "digests.json"),
    }
    assert found["dpo.json"].decode() == beside["dpo.json"]


def test_pefts_config_names_a_folder(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(llama.parent)  # the stored config says "llama"
    assert invoke(FOLDER / "plain", tmp_path / "out", "--to", "mlx").exit_code == 0
    monkeypatch.chdir(llama)
    refused = invoke(FOLDER / "plain", tmp_path / "other", "--to", "mlx")
    assert "its model 'llama' is not a folder here; pass --model" in str(refused.exception)


def test_nothing_is_left_of_a_conversion_that_failed(llama: Path, tmp_path: Path) -> None:
    other = write_base("llama", tmp_path / "other")
    arrays = load_arrays(other / "model.safetensors")
    arrays["lm_head.weight"] *= 2
    mx.save_safetensors(str(other / "model.safetensors"), arrays)
    cases = {
        "is in PEFT's layout already": (FOLDER / "plain", "peft", llama),
        "the model has no such layer": (FOLDER / "gpt2", "mlx", llama),
        "output layer too": (FOLDER / "embedding", "mlx", _tied(tmp_path)),
        "differs from the model's": (FOLDER / "lm-head", "mlx", other),
    }
    before = set(tmp_path.iterdir())
    for message, (source, to, model) in cases.items():
        result = invoke(source, tmp_path / "out", "--to", to, "--model", model)
        assert isinstance(result.exception, UsageError), message
        assert message in str(result.exception)
    assert set(tmp_path.iterdir()) == before


def _tied(tmp_path: Path) -> Path:
    return write_base("llama:tied", tmp_path / "tied")


def test_a_difference_fails_the_conversion(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_wrong(folder: Path, adapter: Adapter, model: nn.Module) -> None:
        write_mlx(folder, {p: Part(x.a, 1.01 * x.b, x.scale) for p, x in adapter.items()}, model)

    monkeypatch.setattr(conversion, "write_mlx", write_wrong)
    result = invoke(FOLDER / "plain", tmp_path / "out", "--to", "mlx", "--model", llama)
    assert isinstance(result.exception, MlxDpoError)
    assert "logits with the adapter differ" in str(result.exception)
    assert not (tmp_path / "out").exists()


def test_only_an_adapter_is_replaced(llama: Path, tmp_path: Path) -> None:
    args = (FOLDER / "plain", tmp_path / "out", "--to", "mlx", "--model", llama)
    assert invoke(*args).exit_code == 0
    assert "pass --overwrite" in str(invoke(*args).exception)
    assert invoke(*args, "--overwrite").exit_code == 0
    onto_model = invoke(FOLDER / "plain", llama, "--to", "mlx", "--model", llama, "--overwrite")
    assert isinstance(onto_model.exception, UsageError)
    assert (llama / "model.safetensors").exists()


def test_a_base_in_bfloat16(llama: Path, tmp_path: Path) -> None:
    half = tmp_path / "half"
    shutil.copytree(llama, half)
    arrays = {n: v.astype(mx.bfloat16) for n, v in load_arrays(llama / "model.safetensors").items()}
    mx.save_safetensors(str(half / "model.safetensors"), arrays)
    result = invoke(FOLDER / "patterns", tmp_path / "out", "--to", "mlx", "--model", half)
    assert result.exit_code == 0, result.exception

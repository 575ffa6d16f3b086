"""Model folders that are broken or hostile: refused in one line, with little memory and time."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

from mlx_dpo.cli import main
from mlx_dpo.cli.screen import about_template
from mlx_dpo.errors import UsageError
from mlx_dpo.models.export import read_companions
from mlx_dpo.models.folder import load_model
from mlx_dpo.models.parameters import read_header
from mlx_dpo.models.tokenizer import load_tokenizer
from mlx_dpo.paths import check_ordinary
from mlx_dpo.preferences.chat import chat_format
from mlx_dpo.runs.config import read_settings
from tests.runs.conftest import ORACLE


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(ORACLE, tmp_path / "model")
    return tmp_path / "model"


def edit(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def twice(what: str, kind: str, times: int) -> dict[str, Any]:
    each = {"type": "Replace", "pattern": {kind: what}, "content": what * 2 or "xx"}
    return {"type": "Sequence", "normalizers": [each] * times, "decoders": [each] * times}


@pytest.mark.parametrize("part", ["normalizer", "decoder"])
@pytest.mark.parametrize(("kind", "times"), [("String", 40), ("Regex", 4000)])
def test_a_tokenizer_that_makes_texts_longer_is_not_run(
    folder: Path, part: str, kind: str, times: int
) -> None:
    growing = twice("o", kind, times)
    edit(folder / "tokenizer.json", lambda content: content.update({part: growing}))
    with pytest.raises(UsageError, match=f"the {part} in its tokenizer.json makes a text up to"):
        load_tokenizer(folder)


def test_an_id_beyond_any_model_is_refused_before_memory_is_taken_for_it(folder: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        vocab = content["model"]["vocab"]
        vocab[next(iter(vocab))] = 2**31

    edit(folder / "tokenizer.json", change)
    with pytest.raises(UsageError, match="has id 2147483648, and no model has 10000000 tokens"):
        load_tokenizer(folder)


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors"]
)
def test_a_pipe_in_a_folder_is_not_waited_for(
    folder: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    with pytest.raises(SystemExit) as ended:
        main(["generate", "--model", str(folder), "--prompt", "Who?"])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{name}: is a pipe, socket or device" in line


def test_a_pipe_among_the_named_templates_is_not_waited_for(folder: Path, tmp_path: Path) -> None:
    (folder / "additional_chat_templates").mkdir()
    os.mkfifo(folder / "additional_chat_templates" / "rag.jinja")
    with pytest.raises(UsageError, match=r"rag.jinja: is a pipe"):
        load_tokenizer(folder)
    with pytest.raises(UsageError, match=r"rag.jinja: is a pipe"):
        read_companions(folder)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{# caf\xe9 #}", "chat_template.jinja:1: byte 0xe9 is not UTF-8"),
        ("{# a #}".encode("utf-16"), "chat_template.jinja:1: the file is UTF-16"),
        ("{# a #}".encode("utf-8-sig"), "chat_template.jinja:1: begins with a byte order mark"),
    ],
)
def test_a_template_that_is_not_plain_utf8_is_refused(
    folder: Path, content: bytes, reason: str
) -> None:
    (folder / "chat_template.jinja").write_bytes(content)
    with pytest.raises(UsageError, match=reason):
        load_tokenizer(folder)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json"])
def test_half_of_a_surrogate_pair_in_a_tokenizer_is_refused_with_its_file(
    folder: Path, name: str
) -> None:
    (folder / name).write_text('{"pad_token": "\\ud800"}')
    with pytest.raises(UsageError, match=f"{name}: holds half of a surrogate pair"):
        load_tokenizer(folder)


def test_a_template_where_no_tokenizer_reads_it_is_refused_and_another_one_is_named(
    folder: Path,
) -> None:
    (folder / "chat_template.jinja").unlink()
    config = json.loads((folder / "tokenizer_config.json").read_text())
    template = config.pop("chat_template")
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    tokenizer = load_tokenizer(folder)  # as a conversion does
    with pytest.raises(UsageError, match=r"chat_template\.json, which tokenizers don't read"):
        chat_format(tokenizer)
    (folder / "chat_template.jinja").write_text(template + "{# newer #}")
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": template}))
    said = about_template(chat_format(load_tokenizer(folder)))
    assert said == "another one, in tokenizer_config.json and chat_template.json, is not used"


def test_which_of_several_templates_is_used_is_said(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    config = json.loads((folder / "tokenizer_config.json").read_text())
    assert about_template(chat_format(load_tokenizer(folder))) == ""
    template = config["chat_template"]
    named = [{"name": name, "template": template} for name in ("rag", "default")]
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": named}))
    assert about_template(chat_format(load_tokenizer(folder))) == "default, of default, rag"
    config.pop("chat_template")
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    assert about_template(chat_format(load_tokenizer(folder))).startswith("none; turns are")


def test_a_template_that_writes_half_of_a_surrogate_pair_is_refused(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ '\\ud800' }}{{ messages[0].content }}")
    with pytest.raises(UsageError, match="refuses the conversation: half of a surrogate pair"):
        chat_format(load_tokenizer(folder))


@pytest.mark.parametrize("read", [read_header, read_settings, check_ordinary])
def test_a_device_is_no_file(read: Callable[[Path], Any]) -> None:
    with pytest.raises(UsageError, match="/dev/zero: is a pipe, socket or device"):
        read(Path("/dev/zero"))


@pytest.mark.parametrize("value", ["10000.0", None, [10000.0], True, 0, -1.0])
def test_a_base_of_rotary_positions_that_is_no_number_is_refused(
    folder: Path, value: object
) -> None:
    def change(content: dict[str, Any]) -> None:
        content.pop("rope_parameters", None)
        content["rope_theta"] = value

    edit(folder / "config.json", change)
    with pytest.raises(UsageError, match=r"config.json: rope_theta is .*; expected a number"):
        load_model(folder)


@pytest.mark.parametrize("kind", ["int8", "int64", "bool"])
def test_weights_of_whole_numbers_are_refused(folder: Path, kind: str) -> None:
    file = folder / "model.safetensors"
    whole = {name: (10 * value).astype(kind) for name, value in load_file(file).items()}
    save_file(whole, file)
    with pytest.raises(UsageError, match=r"weight is stored as .*names no quantization"):
        load_model(folder)


def test_a_panic_of_rust_is_one_line(
    monkeypatch: pytest.MonkeyPatch, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    panic = type("PanicException", (BaseException,), {})

    def fails(*_: object, **__: object) -> None:
        raise panic("index out of\nbounds")

    monkeypatch.setattr("mlx_lm.utils.load_tokenizer", fails)
    with pytest.raises(UsageError, match="no usable tokenizer: index out of bounds"):
        load_tokenizer(folder)
    monkeypatch.setattr("mlx_dpo.models.config.read_config", fails)
    with pytest.raises(SystemExit) as ended:
        main(["generate", "--model", str(folder), "--prompt", "Who?"])
    assert ended.value.code == 1
    assert capsys.readouterr().err == "mlx_dpo: a library failed: index out of bounds\n"


def test_weights_that_the_index_does_not_name_are_refused(folder: Path) -> None:
    arrays = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    places = dict.fromkeys(arrays, "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    load_model(folder)
    save_file(arrays, folder / "model-00001-of-00003.safetensors")
    with pytest.raises(UsageError, match="does not name model-00001-of-00003"):
        load_model(folder)

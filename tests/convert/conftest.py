"""Hugging Face folders of tiny models, as transformers saves them."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlx_dpo.convert.conversion import Options, convert
from tests.convert.tiny import write_folder

MakeSource = Callable[..., Path]
Tensors = dict[str, mx.array]

GOLDEN: dict[str, Any] = json.loads(
    (Path(__file__).parent / "data" / "golden.json").read_text(encoding="utf-8")
)


@pytest.fixture
def make_source(tmp_path: Path) -> MakeSource:
    """Makes the folder of a case; keywords change its config, None removes an entry."""

    def make(case: str = "llama", change: Any = None, **entries: Any) -> Path:
        config = {**GOLDEN[case]["config"], **entries}
        config = {k: v for k, v in config.items() if v is not None or k not in entries}
        folder = tmp_path / "source"
        options = {"change": change} if change else {}
        return write_folder(folder, config, GOLDEN[case]["tensors"], **options)

    return make


def run(source: Path, destination: Path, **options: Any) -> str:
    """Convert, and return the lines shown."""
    lines: list[str] = []
    convert(source, destination, Options(**options), lines.append)
    return "\n".join(lines)


def change_json(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Rewrite an object in a JSON file."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content, indent=2) + "\n")


def tensors_of(folder: Path) -> Tensors:
    """All tensors of a folder's safetensors files."""
    found: Tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= mx.load(str(file))  # type: ignore[arg-type]
    return found


def digests(folder: Path) -> dict[str, str]:
    """sha256 of every file."""
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def assert_same_bits(found: Tensors, expected: Tensors) -> None:
    """Equal names, and under each equal shape, dtype and bits."""
    from mlx_dpo.models.parameters import same_bits

    assert found.keys() == expected.keys()
    assert [name for name in expected if not same_bits(found[name], expected[name])] == []

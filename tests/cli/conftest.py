"""A folder with pairs to type commands in, and what a typed command shows."""

import json
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest

from mlx_dpo.cli import main
from mlx_dpo.manifest import write_digests
from mlx_dpo.runs.config import RunConfig
from mlx_dpo.runs.run import train
from tests.runs.conftest import ORACLE, ROWS, workplace

__all__ = ["workplace"]  # a fixture, used by its name


def run(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command."""
    with pytest.raises(SystemExit) as ended:
        main(list(args))
    shown = capsys.readouterr()
    assert isinstance(ended.value.code, int)
    return ended.value.code, shown.out, shown.err


@pytest.fixture(scope="session")
def packed_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The oracle's llama in 4 bits, as mlx-lm packs it."""
    from mlx_lm import convert

    folder = tmp_path_factory.mktemp("bases") / "packed"
    convert(str(ORACLE), str(folder), quantize=True, q_bits=4, q_group_size=32)
    return folder


def trained(folder: Path, **settings: Any) -> Path:
    """The adapter of a short run, measured on the pairs it was trained on: a margin for sure."""
    (folder / "pairs.json").write_text(json.dumps(ROWS))
    common: dict[str, Any] = {"data": "pairs.json", "batch_size": 4, "warmup_steps": 0}
    with chdir(folder):
        assert train(RunConfig(**common, method="lora", out="adapter", **settings))
    record = json.loads((folder / "adapter" / "dpo.json").read_text())
    split = record["data"]["split"]
    split["train"], split["held_out"] = split["held_out"], split["train"]
    del record["held_out"]
    (folder / "adapter" / "dpo.json").write_text(json.dumps(record))
    write_digests(folder / "adapter")
    return folder / "adapter"


@pytest.fixture(scope="session")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that changes much."""
    folder = tmp_path_factory.mktemp("large")
    return trained(folder, model=str(ORACLE), learning_rate=5e-3, steps=12)

"""A reference model, and a policy that has moved away from it."""

from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_map

from mlx_dpo.convert.sources import load_folder
from mlx_dpo.models.export import export_folder, read_files
from mlx_dpo.models.parameters import fingerprint
from mlx_dpo.records import Message, Preference
from tests.runs.conftest import ORACLE


def nudge(model: nn.Module, size: float = 0.02) -> nn.Module:
    """Move every weight a little, the same way every time."""
    key = mx.random.key(5)
    model.update(
        tree_map(lambda p: p + size * mx.random.normal(p.shape, key=key), model.parameters())
    )
    mx.eval(model.parameters())
    return model


@pytest.fixture(scope="session")
def policy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The oracle's llama, nudged, with a dpo.json that names what it came from."""
    folder = tmp_path_factory.mktemp("models") / "policy"
    model, _ = load_folder(ORACLE)
    origin = fingerprint(model)
    record = {
        "trained_from": {"model": str(ORACLE), "fingerprint": origin},
        "data": {
            "file": "pairs.json",
            "split": {
                "train": [str(n) for n in range(1, 11)],
                "held_out": [str(n) for n in range(11, 15)],
            },
        },
        "settings": {"beta": 0.3, "max_length": 96},
    }
    export_folder(nudge(model), read_files(ORACLE), folder, record)
    return folder


def pair(prompt: str, chosen: str, rejected: str, kind: str = "", number: str = "0") -> Preference:
    """A row of three texts."""
    return Preference(
        (Message("user", prompt),),
        (Message("assistant", chosen),),
        (Message("assistant", rejected),),
        kind,
        number,
    )

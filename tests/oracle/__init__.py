"""Reference numbers made with PyTorch, and how to read them (see README.md)."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from safetensors.numpy import load_file

from mlx_dpo.models.folder import load_folder
from mlx_dpo.models.parameters import named_arrays
from mlx_dpo.records import PreferenceExample

FOLDER = Path(__file__).parent
MODELS = ("llama", "gpt2")
BETA = 0.1
PAD_ID = 4
# Longer than any pair of the oracle, so that nothing is cut.
MAX_SEQ_LEN = 256


@cache
def read(name: str) -> Any:
    """A JSON file of the oracle; not to be changed by the caller."""
    return json.loads((FOLDER / name).read_text(encoding="utf-8"))


@cache
def pairs(model_name: str) -> list[PreferenceExample]:
    """The 64 pairs as token ids, in their order."""
    return [
        PreferenceExample(row["prompt_ids"], row["chosen_ids"], row["rejected_ids"])
        for row in read(f"{model_name}/token_ids.json")
    ]


def load_model(model_name: str) -> nn.Module:
    """A fresh copy of the initial policy."""
    return load_folder(FOLDER / model_name / "model")[0]


def packed(model_name: str, file: str, model: nn.Module) -> dict[str, mx.array]:
    """A packed file as float32 arrays under the names, and in the layout, of `model`."""
    stored = load_file(FOLDER / model_name / f"{file}.safetensors")
    tensors = {
        name: mx.array((values * stored[f"{name}.scale"]).astype(np.float32))
        for name, values in stored.items()
        if not name.endswith(".scale")
    }
    # mlx-lm's own renaming: for gpt2 it adds a prefix and transposes the linear layers.
    named: dict[str, mx.array] = model.sanitize(tensors)
    return named


def largest(values: mx.array) -> float:
    """Largest absolute value."""
    return float(mx.abs(values).max())


def trained_policy(model_name: str) -> nn.Module:
    """The policy of pitfalls.json: the initial weights after 16 AdamW steps of TRL."""
    model = load_model(model_name)
    weights = named_arrays(model.parameters())
    moved = packed(model_name, "adamw_moved", model)
    model.load_weights([(name, weights[name] + moved[name]) for name in weights])
    return model

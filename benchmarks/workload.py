"""What the benchmarks run: two models, pairs of a fixed seed, and the least work they need."""

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from benchmarks.measure import now
from mlx_dpo.insight.doctor.hardware import backend
from mlx_dpo.models.parameters import named_arrays
from mlx_dpo.records import PreferenceExample

MAX_SEQ_LEN = 384
PAIRS_PER_STEP = 4
PROMPT, RESPONSE = (64, 256), (32, 128)  # lengths, uniform, ends included
SEED = 0


@dataclass(frozen=True)
class Shape:
    """A llama with a tied output layer."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    mlp: int
    vocabulary: int


SHAPES = {
    "A": Shape(512, 8, 8, 8, 1408, 8192),
    "B": Shape(576, 12, 9, 3, 1536, 49152),
}


def make_model(shape: Shape) -> nn.Module:
    """Random float32 weights, the same every time."""
    from mlx_lm.models.llama import Model, ModelArgs

    mx.random.seed(SEED)
    model: nn.Module = Model(
        ModelArgs(
            model_type="llama",
            hidden_size=shape.hidden,
            num_hidden_layers=shape.layers,
            intermediate_size=shape.mlp,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv_heads,
            rms_norm_eps=1e-5,
            vocab_size=shape.vocabulary,
            tie_word_embeddings=True,
        )
    )
    mx.eval(model.parameters())
    return model


def make_batches(shape: Shape, count: int) -> list[list[PreferenceExample]]:
    """Batches of random pairs, not sorted by length."""
    rng = np.random.default_rng(SEED)

    def ids(bounds: tuple[int, int]) -> list[int]:
        length = rng.integers(bounds[0], bounds[1] + 1)
        drawn: list[int] = rng.integers(3, shape.vocabulary, length).tolist()
        return drawn

    return [
        [
            PreferenceExample(ids(PROMPT), ids(RESPONSE), ids(RESPONSE))
            for _ in range(PAIRS_PER_STEP)
        ]
        for _ in range(count)
    ]


def num_parameters(model: nn.Module) -> int:
    """Parameters, the embedding included."""
    return sum(a.size for a in named_arrays(model.parameters()).values())


class Floor(NamedTuple):
    """Least floating-point operations of a forward and backward pass, by part."""

    layers: float
    output: float
    attention: float


def floor_parts(examples: Sequence[PreferenceExample], shape: Shape, non_embedding: int) -> Floor:
    """Least work: real tokens only, each prompt once.

    ``6 N (P-1+C+R)`` for the layers, ``6 V H (C+R)`` for the output layer, and attention: a score
    and a sum of H multiplications each, for every position a token may attend to, three times.
    """
    layers = output = attention = 0.0
    for prompt, chosen, rejected in examples:
        p, c, r = len(prompt), len(chosen), len(rejected)
        layers += 6 * non_embedding * (p - 1 + c + r)
        output += 6 * shape.vocabulary * shape.hidden * (c + r)
        attended = p * p / 2 + c * (p + c / 2) + r * (p + r / 2)
        attention += 3 * 4 * attended * shape.hidden * shape.layers
    return Floor(layers, output, attention)


def floor_flops(examples: Sequence[PreferenceExample], shape: Shape, non_embedding: int) -> float:
    """The sum of `floor_parts`."""
    return sum(floor_parts(examples, shape, non_embedding))


def sgemm_rate(size: int = 1024, times: int = 20) -> float:
    """Floating-point operations a second (see `now`) in square float32 products."""
    a, b = mx.random.normal((size, size)), mx.random.normal((size, size))
    mx.eval(a @ b)
    start = now()
    for _ in range(times):
        mx.eval(a @ b)
    return 2.0 * times * size**3 / (now() - start)


def machine() -> str:
    """Platform, processor and versions a figure comes from; no host or user name."""
    info: dict[str, Any] = mx.device_info()
    device = info.get("device_name", platform.machine())
    gpu = "" if backend() == "CPU" else f" ({backend()}, {info.get('architecture')})"
    return (
        f"{platform.system()} {platform.machine()}, {device}, {mx.default_device()}{gpu}, MLX "
        f"{version('mlx')}, mlx-lm {version('mlx-lm')}, Python {platform.python_version()}"
    )

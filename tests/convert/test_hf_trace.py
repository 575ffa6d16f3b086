"""What `sanitize` may do to a checkpoint, and that it is undone, or refused, without a rule."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest

from mlx_dpo.convert.hf.trace import restore, trace
from mlx_dpo.errors import UsageError
from mlx_dpo.models.parameters import same_bits

Weights = dict[str, mx.array]


def model_of(sanitize: Callable[[Weights], Weights]) -> nn.Module:
    class Model(nn.Module):
        def sanitize(self, weights: Weights) -> Weights:
            return sanitize(weights)

    return Model()  # type: ignore[no-untyped-call]


def stack_experts(w: Weights) -> Weights:
    return {"up": mx.stack([w.pop(f"experts.{i}.up") for i in range(3)])}


WAYS: dict[str, Callable[[Weights], Weights]] = {
    "as it is": lambda w: w,
    "renamed": lambda w: {f"model.{name}": value for name, value in w.items()},
    "transposed": lambda w: {name: value.T for name, value in w.items()},
    "axes moved": lambda w: {name: mx.moveaxis(value, 2, 1) for name, value in w.items()},
    "stacked": stack_experts,
    "stacked and transposed": lambda w: {"up": stack_experts(w)["up"].swapaxes(1, 2)},
    "split": lambda w: dict(zip("ab", mx.split(w["fused"], 2, axis=0), strict=True)),
    "split unevenly": lambda w: {"a": w["fused"][:1], "b": w["fused"][1:]},
    "joined": lambda w: {"fused": mx.concatenate([w["a"], w["b"]], axis=0)},
    "interleaved": lambda w: {"x": w["x"].reshape(2, 2, 3).swapaxes(0, 1).reshape(4, 3)},
}
SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "axes moved": {"x": (2, 3, 4)},
    "stacked": {f"experts.{i}.up": (2, 3) for i in range(3)},
    "stacked and transposed": {f"experts.{i}.up": (2, 3) for i in range(3)},
    "split": {"fused": (4, 3)},
    "split unevenly": {"fused": (4, 3)},
    "joined": {"a": (1, 3), "b": (2, 3)},
    "interleaved": {"x": (4, 3)},
}


def random(shapes: dict[str, tuple[int, ...]]) -> Weights:
    mx.random.seed(0)
    return {n: mx.random.normal(s).astype(mx.bfloat16) for n, s in shapes.items()}


@pytest.mark.parametrize("way", WAYS)
def test_moved_numbers_are_moved_back(way: str) -> None:
    shapes = SHAPES.get(way, {"x": (3, 4), "norm": (5,), "square": (4, 4), "scalar": ()})
    source = random(shapes)
    weights = WAYS[way](dict(source))
    expected = {name: tuple(value.shape) for name, value in weights.items()}
    back = restore(trace(model_of(WAYS[way]), shapes, expected), weights)
    assert back.keys() == source.keys()
    assert all(same_bits(back[name], source[name]) for name in source)


def test_what_is_dropped_is_named() -> None:
    path = trace(model_of(lambda w: {"x": w["x"]}), {"x": (2,), "y": (2,)}, {"x": (2,)})
    assert path.dropped == ["y"]
    path = trace(model_of(lambda w: w), {"x": (2,), "y": (2,)}, {"x": (2,)})
    assert (path.dropped, path.unplaced) == (["y"], ["y"])


@pytest.mark.parametrize(
    ("sanitize", "message"),
    [
        (lambda w: {"x": w["x"] + 1}, "only parts of it|computes it"),
        (lambda w: {"x": w["x"] * 2}, "only parts of it|computes it"),
        (lambda w: {"x": w["x"].astype(mx.float32)}, "computes it"),
        (lambda w: {"x": mx.concatenate([w["x"][:3], w["x"][:3]])}, "keeps them twice"),
        (lambda w: {"x": w["x"], "y": w["x"]}, "in two places"),
        (lambda w: {"x": w["missing"]}, "can't read these tensors: KeyError"),
        (lambda w: {}, "x: nothing in the checkpoint leads to it"),
        (lambda w: {"x": w["x"][None]}, r"x: expected shape \[6, 2\], found \[1, 6, 2\]"),
    ],
)
def test_what_can_not_be_undone_is_refused(sanitize: Any, message: str) -> None:
    expected = {name: (6, 2) for name in sanitize_names(sanitize)}
    weights = {name: mx.ones((6, 2)) for name in expected}
    with pytest.raises(UsageError, match=message):
        restore(trace(model_of(sanitize), {"x": (6, 2)}, expected), weights)


def sanitize_names(sanitize: Any) -> list[str]:
    try:
        return list(sanitize({"x": mx.ones((6, 2))})) or ["x"]
    except KeyError:
        return ["x"]

"""LoRA (Hu et al. 2021, arXiv:2106.09685): small matrices beside a model's own, which stay frozen.

An adapted layer computes ``y = W x + scale * (x A) B``. A (in, r) and B (r, out) are float32, of
whatever dtype the model is, and are the only parameters that train. B begins at zero, so that the
policy begins as the model it adapts. Names of modules and parameters are mlx-lm's, so that its
tools load what is saved here.
"""

import copy
import difflib
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from mlx_dpo.errors import UsageError
from mlx_dpo.models.adaptable import INNER, choose_modules, is_experts, is_linear
from mlx_dpo.models.packed import dense, num_inputs
from mlx_dpo.models.parameters import fingerprint, named_arrays

RANK, SCALE = 16, 2.0
_ADAPTED = ("lora_a", "lora_b", "m")  # parameters that are an adapter's
_SMALL = 1e-2  # of the values of B in a self-check


@dataclass(frozen=True)
class Part:
    """The adapter of one module; E experts, rank r.

    Attributes:
        a: float32 (in, r); of experts (E, r, in), of an embedding (rows, r).
        b: float32 (r, out); of experts (E, out, r).
        scale: Factor of the product.
        magnitude: float32 (out,), length of each row of the adapted matrix: DoRA (Liu et al. 2024,
            arXiv:2402.09353). None for LoRA.
    """

    a: mx.array
    b: mx.array
    scale: float
    magnitude: mx.array | None = None

    @property
    def rank(self) -> int:
        """Rank of the product."""
        return int(self.a.shape[-2] if self.a.ndim == 3 else self.a.shape[-1])


Adapter = Mapping[str, Part]  # by path of the module


@dataclass(frozen=True)
class About:
    """What an adapter is: the different ranks and scales in it, its modules, its parameters."""

    ranks: list[int]
    scales: list[float]
    modules: int
    parameters: int


class Lora(nn.Module):
    """A linear layer with an adapter.

    Args:
        linear: The layer; it may be packed.
        part: Its adapter.
    """

    def __init__(self, linear: nn.Module, part: Part) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # MLX publishes no types here
        self.linear = linear
        self.lora_a, self.lora_b = part.a, part.b
        self.scale = part.scale

    def __call__(self, x: mx.array) -> mx.array:
        """What the layer computes, and the adapter's product on top, in the dtype of `x`."""
        y: mx.array = self.linear(x)
        low = x @ self.lora_a.astype(x.dtype)
        flat = mx.addmm(
            y.reshape(-1, y.shape[-1]),
            low.reshape(-1, low.shape[-1]),
            self.lora_b.astype(x.dtype),
            alpha=self.scale,
        )
        return flat.reshape(y.shape)


class Dora(Lora):
    """A linear layer with a DoRA adapter, to compute with; it does not train here."""

    def __init__(self, linear: nn.Module, part: Part) -> None:
        super().__init__(linear, part)
        assert part.magnitude is not None
        self.m = part.magnitude
        direction = adapted_matrix(linear, replace(part, magnitude=None))
        self._factor = part.magnitude / mx.linalg.norm(direction, axis=1)

    def __call__(self, x: mx.array) -> mx.array:
        """The adapted product, its outputs scaled to their magnitudes."""
        bias = self.linear.get("bias")
        y = super().__call__(x)
        y = y if bias is None else y - bias
        y = y * self._factor.astype(x.dtype)
        return y if bias is None else y + bias


def new_adapter(
    model: nn.Module, paths: Sequence[str], *, rank: int = RANK, scale: float = SCALE, seed: int = 0
) -> dict[str, Part]:
    """An adapter that changes nothing yet: B is zero, A is uniform within 1 / sqrt(in).

    Each A follows from the seed and the module's path alone.

    Raises:
        UsageError: If the rank is above the smaller side of a matrix.
    """
    found = dict(model.named_modules())
    adapter = {}
    for path in paths:
        module = found[path]
        inputs, outputs = num_inputs(module), int(module.weight.shape[-2])
        if not 0 < rank <= min(inputs, outputs):
            raise UsageError(
                f"--lora-rank {rank}: {path} is {outputs} x {inputs}; a rank is at least 1 and at "
                "most the smaller side"
            )
        digest = hashlib.sha256(f"{seed} {path}".encode()).digest()
        key = mx.random.key(int.from_bytes(digest[:8], "little"))
        experts = module.weight.shape[:-2]
        shape = (*experts, rank, inputs) if experts else (inputs, rank)
        bound = 1 / math.sqrt(inputs)
        a = mx.random.uniform(-bound, bound, shape, key=key)
        b = mx.zeros((*experts, outputs, rank) if experts else (rank, outputs))
        adapter[path] = Part(a, b, scale)
    return adapter


def attach(model: nn.Module, adapter: Adapter) -> None:
    """Freeze a model and put an adapter onto it: only A and B train.

    Raises:
        UsageError: If a module is not there, can't be adapted, or is of another shape.
    """
    found = dict(model.named_modules())
    wrapped = []
    for path, part in adapter.items():
        if path not in found:
            near = difflib.get_close_matches(path, found, n=1)
            hint = f"; the nearest is {near[0]}" if near else ""
            raise UsageError(f"the adapter has {path}, and the model has no such layer{hint}")
        _check_shapes(path, found[path], part)
        wrapped.append((path, _wrapper(path, found[path], part)))
    model.freeze()
    for _, module in wrapped:
        module.freeze()
        if not isinstance(module, Dora):
            module.unfreeze(keys=["lora_a", "lora_b"], recurse=False)
    model.update_modules(tree_unflatten(wrapped))
    model.eval()


def attach_adapters(
    model: nn.Module,
    *,
    rank: int = RANK,
    scale: float = SCALE,
    modules: str = "all",
    layers: int | None = None,
    seed: int = 0,
) -> None:
    """Put a new LoRA adapter onto a model, which is frozen; its A and B are what trains.

    Args:
        model: A model of mlx-lm's kind; it may be quantised.
        rank: Columns of A, rows of B.
        scale: Factor of the product; PEFT's alpha / r.
        modules: ``all`` linear layers of the blocks, ``attention``, or names, by commas.
        layers: The last so many blocks; None for all.
        seed: Decides A.

    Raises:
        UsageError: If nothing is meant by `modules`, or the rank does not fit a layer.
    """
    paths = choose_modules(model, modules, layers)
    attach(model, new_adapter(model, paths, rank=rank, scale=scale, seed=seed))


def adapted_modules(model: nn.Module) -> dict[str, Any]:
    """The modules that have an adapter, by path, in order."""
    return dict(sorted((path, m) for path, m in model.named_modules() if "lora_a" in m))


def parts_of(model: nn.Module) -> dict[str, Part]:
    """The adapter of a model, by path of the module; empty where it has none."""
    return {
        path: Part(module.lora_a, module.lora_b, float(module.scale), module.get("m"))
        for path, module in adapted_modules(model).items()
    }


def base_parameters(model: nn.Module) -> dict[str, mx.array]:
    """Parameters of a model without its adapter, under the names they have without it."""
    adapted = adapted_modules(model)
    base = {}
    for name, value in named_arrays(model.parameters()).items():
        path, _, last = name.rpartition(".")
        if path in adapted and last in _ADAPTED:
            continue
        outer, _, inner = path.rpartition(".")
        base[f"{outer}.{last}" if inner in INNER and outer in adapted else name] = value
    return dict(sorted(base.items()))


def adapter_parameters(model: nn.Module) -> dict[str, mx.array]:
    """The adapter's arrays of a model, by name."""
    names = [f"{path}." for path in adapted_modules(model)]
    arrays = named_arrays(model.parameters())
    return {
        name: value
        for name, value in arrays.items()
        if name.rpartition(".")[2] in _ADAPTED and name.rpartition(".")[0] + "." in names
    }


def describe(model: nn.Module) -> About | None:
    """What the adapter of a model is; None where there is none."""
    adapter = parts_of(model)
    if not adapter:
        return None
    return About(
        ranks=sorted({part.rank for part in adapter.values()}),
        scales=sorted({part.scale for part in adapter.values()}),
        modules=len(adapter),
        parameters=sum(array.size for array in adapter_parameters(model).values()),
    )


def adapter_digest(model: nn.Module) -> str:
    """sha256 of a model's adapter: its arrays, and the factors of their products."""
    scales = [part.scale for part in parts_of(model).values()]
    arrays = fingerprint(adapter_parameters(model))
    return hashlib.sha256(f"{arrays} {scales}".encode()).hexdigest()


def whole_digest(model: nn.Module) -> str:
    """`fingerprint` of a model; with an adapter, one of both."""
    if not adapted_modules(model):
        return fingerprint(model)
    both = f"{fingerprint(base_parameters(model))} {adapter_digest(model)}"
    return hashlib.sha256(both.encode()).hexdigest()


def without_adapter(model: nn.Module) -> nn.Module:
    """A view of an adapted model whose adapter counts nothing: the same arrays, its scales 0.

    The products are still made, except for DoRA, which does not train. In half precision MLX rounds
    otherwise where an input has a gradient, and both sides of the loss must round alike.
    """
    return _silenced(model) if adapted_modules(model) else model


@contextmanager
def small_updates(model: nn.Module) -> Iterator[None]:
    """While the block runs, no B is zero: where it is, the gradient of A is zero whatever is wrong.

    Args:
        model: Its adapter is as it was afterwards.
    """
    zero = {path: m for path, m in adapted_modules(model).items() if not m.lora_b.any().item()}
    old = {path: module.lora_b for path, module in zero.items()}
    for number, module in enumerate(zero.values()):
        module.lora_b = _SMALL * mx.random.normal(module.lora_b.shape, key=mx.random.key(number))
    try:
        yield
    finally:
        for path, module in zero.items():
            module.lora_b = old[path]


def adapted_matrix(module: nn.Module, part: Part) -> mx.array:
    """The dense matrix of a module with its adapter added, float32, summed in float32."""
    matrix = dense(module)
    if matrix.ndim == 3:
        return matrix + part.scale * (part.b @ part.a)
    if isinstance(module, nn.Embedding | nn.QuantizedEmbedding):
        return matrix + part.scale * (part.a @ part.b)
    matrix = matrix + part.scale * (part.a @ part.b).T
    if part.magnitude is None:
        return matrix
    return matrix * (part.magnitude / mx.linalg.norm(matrix, axis=1))[:, None]


def _wrapper(path: str, module: nn.Module, part: Part) -> nn.Module:
    from mlx_lm.tuner.lora import LoRAEmbedding, LoRASwitchLinear

    if is_linear(module):
        return Lora(module, part) if part.magnitude is None else Dora(module, part)
    if is_experts(module):
        kind: Any = LoRASwitchLinear
    elif isinstance(module, nn.Embedding | nn.QuantizedEmbedding):
        kind = LoRAEmbedding
    else:
        raise UsageError(f"the adapter has {path}, which is a {type(module).__name__}: no layer "
                         "that can be adapted")  # fmt: skip
    if part.magnitude is not None:
        raise UsageError(f"the adapter has {path} with a magnitude (DoRA): only linear layers may")
    wrapper: nn.Module = kind.from_base(module, r=part.rank, scale=part.scale)
    wrapper.lora_a, wrapper.lora_b = part.a, part.b
    return wrapper


def _check_shapes(path: str, module: Any, part: Part) -> None:
    if "weight" not in module or module.weight.ndim < 2:
        return  # refused by its kind
    rank, columns = part.rank, num_inputs(module)
    *experts, rows = module.weight.shape[:-1]
    if experts:
        expected = ((*experts, rank, columns), (*experts, rows, rank))
    elif isinstance(module, nn.Embedding | nn.QuantizedEmbedding):
        expected = ((rows, rank), (rank, columns))
    else:
        expected = ((columns, rank), (rank, rows))
    found = (tuple(part.a.shape), tuple(part.b.shape))
    if found != expected:
        raise UsageError(
            f"the adapter's matrices for {path} are {found[0]} and {found[1]}, and the model's "
            f"layer takes {expected[0]} and {expected[1]}: it is an adapter of another model"
        )


def _silenced(module: Any) -> Any:
    if isinstance(module, list):
        return [_silenced(each) for each in module]
    if not isinstance(module, nn.Module):
        return {n: _silenced(m) for n, m in module.items()} if isinstance(module, dict) else module
    if isinstance(module, Dora):
        return module.linear
    view = copy.copy(module)
    if "lora_a" in view:
        view.scale = 0.0
        return view
    for name, child in module.children().items():
        view[name] = _silenced(child)
    return view

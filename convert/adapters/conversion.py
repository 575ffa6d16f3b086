"""One layout made of the other: the new folder, its companions, and its proof."""

import shutil
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_unflatten

from mlx_dpo.convert.adapters.layouts import Layout, layout_of, read_adapter
from mlx_dpo.convert.adapters.mlx_layout import write_mlx
from mlx_dpo.convert.adapters.peft_layout import write_peft
from mlx_dpo.convert.adapters.tensors import CONFIG, bare_modules
from mlx_dpo.convert.conversion import check_destination
from mlx_dpo.convert.sources import RECORD, base_of, check_base, find_mlx, is_adapter, name_of
from mlx_dpo.convert.verify import Logits, compare
from mlx_dpo.errors import MlxDpoError, UsageError
from mlx_dpo.manifest import check_digests
from mlx_dpo.models.adaptable import wrapped_module
from mlx_dpo.models.adapters import Adapter, adapted_modules, attach
from mlx_dpo.models.card import carried_card
from mlx_dpo.models.config import read_json
from mlx_dpo.models.export import (
    new_model_folder,
    read_companions,
    write_card,
    write_companions,
)
from mlx_dpo.models.folder import load_model
from mlx_dpo.models.parameters import is_float32
from mlx_dpo.models.parts import is_embedding
from mlx_dpo.paths import check_links, inside

Say = Callable[[str], None]

_CALLED = {"mlx": "mlx-lm", "peft": "PEFT"}
_TOKENS = 48
# Of the largest logit. In half precision a scale that goes into B rounds B otherwise.
_TOLERANCE, _HALF_TOLERANCE = 1e-5, 0.03


def convert_adapter(
    source: Path, destination: Path, to: Layout, base: str | None, *, overwrite: bool, say: Say
) -> None:
    """Write an adapter in the other layout; the folder appears complete and proven, or not at all.

    Args:
        source: The adapter's folder; only read.
        destination: The new folder.
        to: The layout it is to have.
        base: The model it is for: a folder or hub id. None for the one the adapter names.
        overwrite: Whether `destination` may be replaced, if it is an adapter's.
        say: Called with each line of the result.

    Raises:
        UsageError: If the adapter can't be converted, or the destination can't be written to.
        MlxDpoError: If both do not compute the same.
        DiskError: If a file can't be written.
    """
    if source.is_dir():
        check_links(source)
        check_digests(source)
    if layout_of(source) == to:
        raise UsageError(f"{source}: is in {_CALLED[to]}'s layout already")
    check_destination(source, destination, overwrite, is_adapter)
    name = base or _base_of(source)
    folder = find_mlx(name)
    check_base(source, folder)
    model = load_model(folder, None)
    adapter = read_adapter(source, model)
    say(f"{source}: {_described(adapter)}, from {_CALLED[layout_of(source)]} to {_CALLED[to]}")
    before = _logits(model, adapter)
    record = read_json(inside(source, RECORD)) if (source / RECORD).is_file() else {}
    card = carried_card(source, record, destination.name, library=to)
    with new_model_folder(destination, replace=overwrite) as new:
        if to == "mlx":
            write_mlx(new, adapter, model)
        else:
            write_peft(new, adapter, model, name_of(name) if Path(name).is_dir() else name)
        write_companions(read_companions(source), new)
        if record:
            shutil.copyfile(inside(source, RECORD), new / RECORD)
        if card is not None:
            write_card(new, card)
        say(_proof(before, _logits(model, read_adapter(new, model)), is_float32(model)))
    say(f"wrote {destination}")


def _base_of(adapter: Path) -> str:
    """The model that an adapter names: in its record, or a folder here in PEFT's config."""
    if not (adapter / RECORD).is_file() and layout_of(adapter) == "peft":
        name = read_json(adapter / CONFIG).get("base_model_name_or_path")
        if isinstance(name, str) and name and Path(name).is_dir():
            return name
        raise UsageError(
            f"{adapter}: its model {name!r} is not a folder here; pass --model, a folder or hub id"
        )
    return base_of(adapter)


def _described(adapter: Adapter) -> str:
    ranks = sorted(part.rank for part in adapter.values())
    kind = "LoRA" if all(part.magnitude is None for part in adapter.values()) else "DoRA"
    between = f"rank {ranks[0]}" + (f" to {ranks[-1]}" if ranks[0] < ranks[-1] else "")
    return f"{kind} of {between} on {len(adapter)} layers"


def _logits(model: nn.Module, adapter: Adapter) -> Logits:
    """Logits of made-up tokens with an adapter, float32 (1, T, V); the model is bare again."""
    tables = [module for module in bare_modules(model).values() if is_embedding(module)]
    rows = min((len(table.weight) for table in tables), default=_TOKENS)
    attach(model, adapter)
    try:
        logits = model(3 + 7 * mx.arange(_TOKENS)[None] % (rows - 3))
        return np.array(logits.astype(mx.float32))
    finally:
        bare = [(path, wrapped_module(m)) for path, m in adapted_modules(model).items()]
        model.update_modules(tree_unflatten(bare))


def _proof(before: Logits, after: Logits, is_exact: bool) -> str:
    """The line to show.

    Raises:
        MlxDpoError: If the logits differ by more than rounding.
    """
    found = compare(before, after)
    tolerance = _TOLERANCE if is_exact else _HALF_TOLERANCE
    # Written so that NaN fails.
    if not found.difference <= tolerance * max(1.0, found.largest):
        raise MlxDpoError(f"logits with the adapter differ before and after: {found}")
    equal = f"equal to {found.difference:.1e}"
    return f"logits of {found.num_tokens} tokens, before and after: {equal} of {found.largest:.3g}"

"""Hugging Face folders and MLX folders: the tensors of one from the other, both ways."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_dpo.convert import record as records
from mlx_dpo.convert.hf.names import (
    BUFFERS,
    RULES,
    check_tensors,
    listed,
    shapes_of,
    skeleton,
    without_code,
)
from mlx_dpo.convert.hf.trace import restore, sanitized, trace
from mlx_dpo.convert.record import Record
from mlx_dpo.convert.weights import read_weights
from mlx_dpo.errors import UsageError
from mlx_dpo.models.config import checked_config, is_quantised
from mlx_dpo.models.dialects import (
    TIED,
    check_sizes,
    for_mlx,
    names_head,
    tied_entry,
    twin,
)
from mlx_dpo.models.parameters import check_finite, named_arrays


@dataclass(frozen=True)
class Model:
    """The tensors of a model in one of the two formats.

    Attributes:
        arrays: By name.
        config: Its config.json.
        record: What the way back to Hugging Face needs; None where it is not known.
        notes: What the user should know.
    """

    arrays: dict[str, mx.array]
    config: dict[str, Any]
    record: Record | None = None
    notes: list[str] = field(default_factory=list)


def mlx_model(folder: Path) -> Model:
    """The tensors of a folder, of either format, under MLX's names and in its layout.

    Args:
        folder: Holds config.json and weights; only read.

    Returns:
        Every parameter of mlx-lm's model, in the folder's dtype. The config has both spellings
        where mlx-lm and transformers differ. The record is the folder's own, or one with the
        folder's tensors as the source.

    Raises:
        UsageError: If a file is missing or damaged, a tensor is missing, superfluous, not finite or
            of another shape, or mlx-lm does not know the architecture.
    """
    original = checked_config(folder)
    if is_quantised(original):
        raise UsageError(
            f"{folder}: the model is quantised, and its copy would be rounded without saying so; "
            "convert the full-precision model, or unpack this one: mlx_lm.convert --dequantize"
        )
    _check_finite(folder)
    stored = read_weights(folder)
    config = for_mlx({**original, **tied_entry(original, stored.arrays)})
    check_sizes(config, [value.shape for value in stored.arrays.values()])
    model = skeleton(config)
    arrays = sanitized(model, stored.arrays)
    expected = named_arrays(model.parameters())
    record: Record | None
    if records.source_kind(folder) == "huggingface":
        # None of MLX's own tensors is dropped; the record says what the conversion dropped.
        record = records.read_record(folder)
    else:
        record = Record(stored.kind, original, records.describe(stored.arrays))
        record = _account(record, stored.arrays, config, expected, folder)
        arrays = {k: v for k, v in arrays.items() if k in expected or record is None}
    check_tensors(arrays, expected, folder)
    ordered = {name: arrays[name] for name in expected}
    return Model(ordered, without_code(config), record, _notes(original))


def torch_model(folder: Path) -> Model:
    """The tensors of a folder under Hugging Face's names and in PyTorch's layout.

    They follow the source's own tensors where a conversion recorded them, else the rule of the
    architecture.

    Raises:
        UsageError: As `mlx_model`; and if neither a record nor a rule says how to name them.
    """
    model = mlx_model(folder)
    if model.record and records.source_kind(folder) == "huggingface":
        arrays = _by_record(model, model.record, folder)
        return Model(arrays, without_code(model.record.config), model.record, model.notes)
    kind = model.config["model_type"]
    if kind not in RULES:
        raise UsageError(
            f"{folder}: how mlx-lm renamed the tensors of {kind!r} is not known, and no "
            f"{records.FILE} records it; converting the original Hugging Face folder writes one, "
            "unless mlx-lm leaves out tensors or computes them anew"
        )
    rule = RULES[kind]
    arrays = {
        rule.torch_name(name): mx.contiguous(value.T) if rule.is_transposed(name) else value
        for name, value in model.arrays.items()
    }
    tied = not any(names_head(name) for name in arrays)
    return Model(arrays, {**model.config, TIED: tied}, notes=model.notes)


def _check_finite(folder: Path) -> None:
    arrays = read_weights(folder).arrays
    for name in list(arrays):  # each is read from its file here, and freed
        check_finite({name: arrays.pop(name)}, folder)


def _notes(config: dict[str, Any]) -> list[str]:
    notes = []
    if "auto_map" in config:
        notes.append("auto_map in config.json names code of the model's own; it was not run")
    return notes


def _account(
    record: Record,
    arrays: dict[str, mx.array],
    config: dict[str, Any],
    expected: dict[str, mx.array],
    folder: Path,
) -> Record | None:
    """Account for every tensor of the source; None where the way back can't be known."""
    try:
        path = trace(skeleton(config), record.shapes, shapes_of(expected))
    except UsageError:
        return None
    for name in path.dropped:
        original = twin(name, arrays)
        if original:
            record.same_as[name] = original
        elif names_head(name):
            raise UsageError(
                f"{folder}: {name} differs from the embeddings, to which the architecture or "
                f"{TIED} in config.json ties it"
            )
        elif BUFFERS.search(name):
            record.add_buffer(name, arrays[name])
        elif name in path.unplaced:
            raise UsageError(
                f"{folder}: mlx-lm's {config['model_type']} has no place for {name} "
                f"{list(arrays[name].shape)}"
            )
        else:
            record.left_out.append(name)
    return record


def _by_record(model: Model, record: Record, folder: Path) -> dict[str, mx.array]:
    if record.left_out:
        raise UsageError(
            f"{folder}: the source held tensors that the MLX model does not use, and they were "
            f"not stored: {listed(record.left_out)}"
        )
    config = dict(record.config)
    if config.get("model_type") != model.config.get("model_type"):
        raise UsageError(
            f"{folder / records.FILE}: is of a {config.get('model_type')!r}, and config.json of a "
            f"{model.config.get('model_type')!r}"
        )
    if TIED not in config and TIED in model.config:
        config[TIED] = model.config[TIED]
    try:
        path = trace(skeleton(for_mlx(config)), record.shapes, shapes_of(model.arrays))
        arrays = restore(path, model.arrays)
    except UsageError as error:
        raise UsageError(f"{folder / records.FILE}: does not fit the weights: {error}") from None
    arrays |= {name: record.buffer(name) for name in record.buffers}
    arrays |= {name: arrays[other] for name, other in record.same_as.items() if other in arrays}
    wrong = [n for n in record.shapes if n not in arrays or arrays[n].shape != record.shapes[n]]
    if wrong:
        raise UsageError(
            f"{folder / records.FILE}: the weights don't give what the source held: {listed(wrong)}"
        )
    return {name: arrays[name] for name in record.tensors}

"""A whole conversion: what a folder is, which way it goes, the new folder, and its proof."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Literal

import mlx.core as mx

from mlx_dpo.convert import record as records
from mlx_dpo.convert.course.artifact import (
    CONFIG,
    MANIFEST,
    MODEL,
    hf_folders,
    is_hf_artifact,
    missing_files,
    write_hf_records,
)
from mlx_dpo.convert.course.checkpoint import (
    CourseCheckpoint,
    read_artifact,
    read_course_folder,
    write_artifact,
    write_course_folder,
)
from mlx_dpo.convert.course.params import params_to_mlx
from mlx_dpo.convert.hf.model import Model, mlx_model, torch_model
from mlx_dpo.convert.hf.names import RULES, listed
from mlx_dpo.convert.record import Record
from mlx_dpo.convert.torch_zip.archive import read_torch_zip
from mlx_dpo.convert.verify import check_course_logits, check_logits, check_same, check_weights
from mlx_dpo.convert.weights import (
    FLOAT_DTYPES,
    MADE_BY,
    MAX_SHARD_BYTES,
    cast,
    dtype_names,
    largest_change,
    num_parameters,
    weight_files,
    with_dtype,
    write_weights,
)
from mlx_dpo.errors import UsageError
from mlx_dpo.files import new_folder
from mlx_dpo.models.card import carried_card
from mlx_dpo.models.config import is_quantised, read_config, read_json
from mlx_dpo.models.export import (
    left_behind,
    new_model_folder,
    read_companions,
    write_card,
    write_companions,
)
from mlx_dpo.models.parameters import read_header
from mlx_dpo.models.tokenizer import load_tokenizer
from mlx_dpo.models.verified import statement
from mlx_dpo.paths import inside

Direction = Literal["mlx", "torch"]
Say = Callable[[str], None]


class Kind(Enum):
    """Kinds of model folders, as they are called on the screen."""

    HUGGING_FACE = "Hugging Face folder"
    MLX = "MLX folder"
    COURSE = "course artifact"
    COURSE_BASE = "course artifact of a Hugging Face model"
    COURSE_MLX = "MLX folder of a course model"

    @property
    def is_mlx(self) -> bool:
        """Whether it is one of MLX's."""
        return self in (Kind.MLX, Kind.COURSE_MLX)


@dataclass(frozen=True)
class Options:
    """How to convert.

    Attributes:
        to: The direction; None takes the one the source suggests.
        dtype: float32, float16 or bfloat16; None keeps the source's.
        verify: Whether to compare weights and logits before the result appears.
        overwrite: Whether a folder an earlier conversion made may be replaced.
        max_shard_bytes: Largest weight file.
    """

    to: Direction | None = None
    dtype: str | None = None
    verify: bool = True
    overwrite: bool = False
    max_shard_bytes: int = MAX_SHARD_BYTES

    @property
    def mlx_dtype(self) -> mx.Dtype | None:
        """`dtype` as MLX knows it."""
        return FLOAT_DTYPES[self.dtype] if self.dtype else None


def convert(source: Path, destination: Path, options: Options, say: Say) -> None:
    """Convert a model folder; the destination appears complete and proven, or not at all.

    Args:
        source: A model folder of either kind, or a course artifact; only read.
        destination: The new folder.
        options: How to convert.
        say: Called with each line of the result.

    Raises:
        UsageError: If the source can't be converted or the destination can't be written to.
        MlxDpoError: If the proof fails.
        DiskError: If a file can't be written.
    """
    check_destination(source, destination, options.overwrite, _is_conversion)
    kind = kind_of(source)
    to: Direction = options.to or ("torch" if kind.is_mlx else "mlx")
    say(f"{source}: {kind.value}, to {'MLX' if to == 'mlx' else 'PyTorch'}")
    if kind in (Kind.COURSE, Kind.COURSE_MLX):
        if (to == "mlx") == kind.is_mlx:
            raise UsageError(f"{source}: is a {kind.value} already; leave out --to")
        run = _course_to_mlx if to == "mlx" else _course_to_torch
        run(source, destination, options, say)
    elif to == "mlx":
        _to_mlx(source, destination, kind, options, say)
    elif kind is Kind.COURSE_BASE:
        raise UsageError(f"{source}: is in PyTorch's format already; --to mlx converts it")
    else:
        _to_torch(source, destination, options, say)
    say(f"wrote {destination}")


def kind_of(folder: Path) -> Kind:
    """What a folder is.

    Where a folder could be read either way, as a llama's can, convert.json, dpo.json or the format
    named in its weights decides.

    Raises:
        UsageError: If it is no folder, its convert.json can't be read, or one file of a course
            artifact is missing.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder")
    missing = missing_files(folder)
    if not missing:
        return Kind.COURSE
    if is_hf_artifact(folder):
        return Kind.COURSE_BASE
    recorded = records.source_kind(folder)
    if recorded not in (None, "huggingface"):
        return Kind.COURSE_MLX
    metadata = _metadata(folder)
    form = (metadata or {}).get("format")
    if recorded or form == "mlx" or (form != "pt" and (folder / "dpo.json").exists()):
        return Kind.MLX
    if len(missing) == 1 and metadata is None:
        raise UsageError(
            f"{folder}: {missing[0]} is missing; the two other files of a course artifact are there"
        )
    return Kind.HUGGING_FACE


def closed_way_back(folder: Path) -> str | None:
    """Why what is trained from a folder can't be converted to PyTorch; None where it can.

    Adapters of quantised models are converted by themselves.

    Args:
        folder: A model folder that MLX reads.

    Raises:
        UsageError: If its config.json or convert.json can't be read.
    """
    config = read_config(folder)
    if is_quantised(config) or kind_of(folder) not in (Kind.HUGGING_FACE, Kind.MLX):
        return None
    if records.source_kind(folder) == "huggingface":
        left_out = records.read_record(folder).left_out
        return f"mlx-lm's model leaves out {listed(left_out)}" if left_out else None
    if config.get("model_type") in RULES:
        return None
    return f"how mlx-lm changed the tensors of {config.get('model_type')} is not recorded"


def check_destination(
    source: Path, destination: Path, overwrite: bool, is_ours: Callable[[Path], bool]
) -> None:
    """Refuse a destination that is the source, lies inside or around it, or holds other work.

    Args:
        source: A folder.
        destination: The folder to come.
        overwrite: Whether it may be there.
        is_ours: Whether a folder that is there may be replaced.

    Raises:
        UsageError: If it can't be written to.
    """
    here, there = source.resolve(), destination.resolve()
    if here == there or here in there.parents or there in here.parents:
        raise UsageError(f"{destination}: overlaps the source {source}, which is never written to")
    if not destination.exists() and not destination.is_symlink():
        return
    if not overwrite:
        raise UsageError(f"{destination}: exists; pass --overwrite to replace it, or another name")
    is_folder = destination.is_dir() and not destination.is_symlink()
    if not is_folder or not is_ours(destination):
        raise UsageError(f"{destination}: exists and no conversion made it; choose another name")


def _is_conversion(folder: Path) -> bool:
    """Whether a conversion wrote a folder."""
    weights = folder / "hf_model" if is_hf_artifact(folder) else folder
    return MADE_BY.items() <= (_metadata(weights) or {}).items()


def _metadata(folder: Path) -> dict[str, str] | None:
    """Of the first weight file, empty for PyTorch's; None where there is none that can be read."""
    try:
        files, kind, _ = weight_files(folder)
        return read_header(files[0]).metadata if kind == "safetensors" else {}
    except UsageError:
        return None


def _to_mlx(source: Path, destination: Path, kind: Kind, options: Options, say: Say) -> None:
    weights, tokenizer = hf_folders(source) if kind is Kind.COURSE_BASE else (source, source)
    model = mlx_model(weights)
    has_own = (source / records.FILE).exists()
    record = model.record if has_own or kind is not Kind.MLX else None
    if record and kind is Kind.COURSE_BASE:
        files = {"config": read_json(source / CONFIG), "manifest": read_json(source / MANIFEST)}
        record = replace(record, course=files)
    notes = [*model.notes, *([] if kind is Kind.MLX else _way_back(record))]
    _describe(model, source, [*notes, *_left_behind(weights)], say)
    with new_model_folder(destination, replace=options.overwrite) as folder:
        _write(model, folder, "mlx", options)
        for origin in dict.fromkeys((weights, tokenizer)):
            write_companions(read_companions(origin), folder, records.FILE)
        if record:
            record.write(folder)
        _write_record(source, folder, destination.name, "mlx")
        if options.verify:
            say(check_weights(weights, folder, options.mlx_dtype))
            if kind is not Kind.MLX:
                say(_score(weights, folder, folder, options, written=False))


def _to_torch(source: Path, destination: Path, options: Options, say: Say) -> None:
    model = torch_model(source)
    _describe(model, source, [*model.notes, *_left_behind(source)], say)
    with new_folder(destination, replace=options.overwrite) as folder:
        weights, tokenizer = folder, folder
        if model.record and model.record.course:
            weights, tokenizer = folder / "hf_model", folder / "hf_tokenizer"
            weights.mkdir()
            tokenizer.mkdir()
            run = read_json(source / "dpo.json") if (source / "dpo.json").exists() else None
            write_hf_records(folder, **model.record.course, run=run)
        _write(model, weights, "pt", options)
        write_companions(read_companions(source), tokenizer, records.FILE)
        if weights == folder:
            _write_record(source, folder, destination.name, "transformers")
        elif (tokenizer / "generation_config.json").exists():
            (tokenizer / "generation_config.json").replace(weights / "generation_config.json")
        if options.verify:
            say(check_weights(source, weights, options.mlx_dtype))
            say(_score(weights, source, source, options, written=True))


def _write_record(source: Path, folder: Path, name: str, library: str) -> None:
    """The ``dpo.json`` of a trained model, and a model card, where the source has them."""
    record = {}
    if (source / "dpo.json").is_file():
        record = read_json(inside(source, "dpo.json"))
        shutil.copyfile(inside(source, "dpo.json"), folder / "dpo.json")
    card = carried_card(source, record, name, library=library)
    if card is not None:
        write_card(folder, card)


def _write(model: Model, folder: Path, file_format: str, options: Options) -> None:
    arrays = cast(model.arrays, options.mlx_dtype)
    config = with_dtype(model.config, arrays)
    write_weights(arrays, folder, file_format, options.max_shard_bytes)
    model.arrays.clear()  # the proof reads the files, and memory may be short
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _score(
    torch_side: Path, mlx_side: Path, tokenizer_of: Path, options: Options, *, written: bool
) -> str:
    has_tokenizer = any(tokenizer_of.glob("tokenizer*")) or (tokenizer_of / "vocab.json").exists()
    tokenizer = load_tokenizer(tokenizer_of) if has_tokenizer else None
    exact = options.dtype is None
    return check_logits(torch_side, mlx_side, tokenizer, exact=exact, written=written)


def _describe(model: Model, source: Path, notes: list[str], say: Say) -> None:
    dtypes = " and ".join(dtype_names(model.arrays))
    say(f"{model.config['model_type']}, {dtypes}, {num_parameters(model.arrays):,} parameters")
    say(statement(model.config, str(source)))
    for note in notes:
        say(f"note: {note}")


def _left_behind(source: Path) -> list[str]:
    names = left_behind(source)
    return [f"not copied: {', '.join(names)}"] if names else []


def _way_back(record: Record | None) -> list[str]:
    if record is None:
        return ["mlx-lm computes some tensors anew, so that this can't be converted back"]
    if record.left_out:
        names = listed(record.left_out)
        return [f"not used by the MLX model, so that the way back is closed: {names}"]
    return []


def _course_to_mlx(source: Path, destination: Path, options: Options, say: Say) -> None:
    checkpoint = _cast_course(read_artifact(source), options, say)
    with new_model_folder(destination, replace=options.overwrite) as folder:
        write_course_folder(checkpoint, folder)
        if options.verify:
            written = read_course_folder(folder).arrays
            say(check_same(checkpoint.arrays, written))
            exact = options.dtype is None
            file, args = source / MODEL, checkpoint.args
            say(check_course_logits(file, written, args, folder, exact=exact))


def _course_to_torch(source: Path, destination: Path, options: Options, say: Say) -> None:
    checkpoint = _cast_course(read_course_folder(source), options, say)
    with new_folder(destination, replace=options.overwrite) as folder:
        name = write_artifact(checkpoint, folder)
        if options.verify:
            file = folder / MODEL
            params = read_torch_zip(file)["params"]
            say(check_same(checkpoint.arrays, params_to_mlx(params, checkpoint.args, file)))
            before = read_course_folder(source).arrays
            exact = options.dtype is None
            say(check_course_logits(file, before, checkpoint.args, source, exact=exact))
    say(f"the course looks for it as artifacts/models/{name}")


def _cast_course(checkpoint: CourseCheckpoint, options: Options, say: Say) -> CourseCheckpoint:
    arrays = checkpoint.arrays
    say(f"{' and '.join(dtype_names(arrays))}, {num_parameters(arrays):,} parameters")
    changed = cast(arrays, options.mlx_dtype)
    if options.mlx_dtype is not None:
        change = max(largest_change(arrays[name], changed[name]) for name in arrays)
        say(f"cast to {options.dtype}: largest change of a weight {change:.1e}")
    return replace(checkpoint, arrays=changed)

"""A whole conversion: what is there, which way it goes, the folder that comes of it, the proof."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlx_dpo.convert import record as records
from mlx_dpo.convert.folders import Kind, check_destination, copy_companions, kind_of
from mlx_dpo.convert.hf.model import Model, mlx_model, torch_model
from mlx_dpo.convert.hf.names import listed
from mlx_dpo.convert.options import Direction, Options, Say
from mlx_dpo.convert.record import Record
from mlx_dpo.convert.verify import check_logits, check_weights
from mlx_dpo.convert.weights import cast, dtype_names, num_parameters, with_dtype, write_weights
from mlx_dpo.errors import UsageError
from mlx_dpo.files import inside, new_folder
from mlx_dpo.models.hub import load_tokenizer


def convert(source: Path, destination: Path, options: Options, say: Say) -> None:
    """Convert a model folder; the destination appears complete and proven, or not at all.

    Args:
        source: A model folder of either kind, or a course artifact; only read.
        destination: The new folder.
        options: How.
        say: Is told the result line by line.

    Raises:
        UsageError: If the source can't be converted or the destination can't be written to.
        MlxDpoError: If the proof fails.
        DiskError: If the disk does not take it.
    """
    check_destination(source, destination, options.overwrite)
    kind = kind_of(source)
    to: Direction = options.to or ("torch" if kind.is_mlx else "mlx")
    say(f"{source}: {kind.value}, to {'MLX' if to == 'mlx' else 'PyTorch'}")
    if kind in (Kind.COURSE, Kind.COURSE_MLX):
        _convert_course(source, destination, kind, to, options, say)
    elif to == "mlx":
        _to_mlx(source, destination, kind, options, say)
    elif kind is Kind.COURSE_BASE:
        raise UsageError(f"{source}: is PyTorch's already; --to mlx converts it")
    else:
        _to_torch(source, destination, options, say)
    say(f"wrote {destination}")


def _convert_course(
    source: Path, destination: Path, kind: Kind, to: Direction, options: Options, say: Say
) -> None:
    from mlx_dpo.convert.course import conversion as course

    if (to == "mlx") == kind.is_mlx:
        raise UsageError(f"{source}: is a {kind.value} already; leave out --to")
    run = course.to_mlx if to == "mlx" else course.to_torch
    run(source, destination, options, say)


def _to_mlx(source: Path, destination: Path, kind: Kind, options: Options, say: Say) -> None:
    weights, tokenizer = source, source
    if kind is Kind.COURSE_BASE:
        from mlx_dpo.convert.course.artifact import hf_folders

        weights, tokenizer = hf_folders(source)
    model = mlx_model(weights)
    has_own = (source / records.FILE).exists()
    record = model.record if has_own or kind is not Kind.MLX else None
    if record and kind is Kind.COURSE_BASE:
        record = replace(record, course=_course_files(source))
    way_back = [] if kind is Kind.MLX else _way_back(record)
    _tell(model, [*model.notes, *way_back], say)
    with new_folder(destination, replace=options.overwrite) as folder:
        _write(model, folder, "mlx", options)
        for place in dict.fromkeys((weights, tokenizer)):
            copy_companions(place, folder)
        if record:
            record.write(folder)
        if (source / "dpo.json").is_file():
            shutil.copyfile(inside(source, "dpo.json"), folder / "dpo.json")
        if options.verify:
            say(check_weights(weights, folder, options.mlx_dtype))
            if kind is not Kind.MLX:
                say(_scored(weights, folder, folder, options, written=False))


def _to_torch(source: Path, destination: Path, options: Options, say: Say) -> None:
    model = torch_model(source)
    _tell(model, model.notes, say)
    with new_folder(destination, replace=options.overwrite) as folder:
        weights, tokenizer = folder, folder
        if model.record and model.record.course:
            weights, tokenizer = folder / "hf_model", folder / "hf_tokenizer"
            weights.mkdir()
            tokenizer.mkdir()
            _write_course_files(source, folder, model.record.course)
        _write(model, weights, "pt", options)
        copy_companions(source, tokenizer)
        if weights != tokenizer and (tokenizer / "generation_config.json").exists():
            (tokenizer / "generation_config.json").replace(weights / "generation_config.json")
        if options.verify:
            say(check_weights(source, weights, options.mlx_dtype))
            say(_scored(weights, source, source, options, written=True))


def _write(model: Model, folder: Path, file_format: str, options: Options) -> None:
    arrays = cast(model.arrays, options.mlx_dtype)
    config = with_dtype(model.config, arrays)
    write_weights(arrays, folder, file_format, options.max_shard_bytes)
    model.arrays.clear()  # the proof reads the files, and memory may be short
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _scored(
    torch_side: Path, mlx_side: Path, tokenizer_of: Path, options: Options, *, written: bool
) -> str:
    has_tokenizer = any(tokenizer_of.glob("tokenizer*")) or (tokenizer_of / "vocab.json").exists()
    tokenizer = load_tokenizer(tokenizer_of) if has_tokenizer else None
    exact = options.dtype is None
    return check_logits(torch_side, mlx_side, tokenizer, exact=exact, written=written)


def _tell(model: Model, notes: list[str], say: Say) -> None:
    dtypes = " and ".join(dtype_names(model.arrays))
    say(f"{model.config['model_type']}, {dtypes}, {num_parameters(model.arrays):,} parameters")
    for note in notes:
        say(f"note: {note}")


def _way_back(record: Record | None) -> list[str]:
    if record is None:
        return ["mlx-lm computes some tensors anew, so that this can't be converted back"]
    if record.left_out:
        names = listed(record.left_out)
        return [f"not used by the MLX model, so that the way back is closed: {names}"]
    return []


def _course_files(source: Path) -> dict[str, Any]:
    from mlx_dpo.convert.course.files import CONFIG, MANIFEST, read_json

    return {"config": read_json(source / CONFIG), "manifest": read_json(source / MANIFEST)}


def _write_course_files(source: Path, folder: Path, course: dict[str, Any]) -> None:
    from mlx_dpo.convert.course.artifact import write_hf_records
    from mlx_dpo.convert.course.files import read_json

    run = read_json(source / "dpo.json") if (source / "dpo.json").exists() else None
    write_hf_records(folder, course["config"], course["manifest"], run)

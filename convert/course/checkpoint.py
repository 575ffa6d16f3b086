"""A model of the course in memory, read from and written to either of its two forms.

The course's form is an artifact: ``model.pt``, ``config.json``, ``manifest.json``, and a tokenizer
beside it. The MLX form is a model folder in mlx-lm's layout, with ``convert.json`` for the way
back.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_dpo.convert import record
from mlx_dpo.convert.course.artifact import (
    CONFIG,
    MANIFEST,
    MODEL,
    dpo_manifest,
    tokenizer_file,
    write_json,
)
from mlx_dpo.convert.course.params import check_arrays, params_to_mlx, params_to_torch
from mlx_dpo.convert.course.tokenizer import (
    check_tokenizer,
    read_tokenizer,
    special_id,
    write_tokenizer,
)
from mlx_dpo.convert.torch_zip.archive import read_torch_zip, write_torch_zip
from mlx_dpo.convert.weights import MAX_SHARD_BYTES, read_weights, write_weights
from mlx_dpo.errors import UsageError
from mlx_dpo.models.config import read_json
from mlx_dpo.models.course import MODEL_TYPE, SIZES, CourseArgs
from mlx_dpo.paths import inside

KIND = "course"
_FORMAT = 1
_MODEL_KEYS = ("vocab_size", "model_config", "params")
_CONFIG_KEYS = frozenset(SIZES) - {"vocab_size"}
_REQUIRED_KEYS = _CONFIG_KEYS - {"hidden_dim"}


@dataclass(frozen=True)
class CourseCheckpoint:
    """A model of the course, with everything that either form of it is written from.

    Attributes:
        args: Its sizes.
        model_config: The sizes as the course wrote them.
        arrays: Parameters by MLX name, in the source's dtype.
        config: The course's config.json.
        manifest: The course's manifest.json, keys in its order.
        tokenizer: The course's tokenizer.json.
        run: ``dpo.json`` of the run it came from; None for the course's own.
    """

    args: CourseArgs
    model_config: dict[str, Any]
    arrays: dict[str, mx.array]
    config: dict[str, Any]
    manifest: dict[str, Any]
    tokenizer: dict[str, Any]
    run: dict[str, Any] | None = None


def read_artifact(folder: Path) -> CourseCheckpoint:
    """Read a TransformerLM artifact and its tokenizer.

    Raises:
        UsageError: If a file is missing or damaged, the files disagree about the sizes, or a
            tensor has another shape than its place in the list demands.
    """
    file = inside(folder, MODEL)
    config, manifest = read_json(folder / CONFIG), read_json(folder / MANIFEST)
    content = read_torch_zip(file)
    if not isinstance(content, dict) or sorted(map(str, content)) != sorted(_MODEL_KEYS):
        keys = ", ".join(map(str, content))[:120] if isinstance(content, dict) else "no dict"
        raise UsageError(f"{file}: expected the keys {', '.join(_MODEL_KEYS)}, found {keys}")
    model_config = content["model_config"]
    args = _args(content["vocab_size"], model_config, file)
    for name, other in ((CONFIG, config), (MANIFEST, manifest)):
        claimed = other.get("model_config", model_config)
        _check_equal(claimed, model_config, f"{folder}: {name}: model_config")
    vocab_size = manifest.get("vocab_size", args.vocab_size)
    _check_equal(vocab_size, args.vocab_size, f"{folder}: {MANIFEST}: vocab_size")
    arrays = params_to_mlx(content["params"], args, file)
    tokenizer = read_tokenizer(tokenizer_file(folder, manifest))
    return CourseCheckpoint(args, model_config, arrays, config, manifest, tokenizer)


def write_artifact(checkpoint: CourseCheckpoint, folder: Path) -> str:
    """Write the course's form into an empty folder.

    Returns:
        The name in its manifest. The course looks for ``artifacts/models/<that name>``.

    Raises:
        DiskError: If model.pt can't be written.
    """
    manifest = dpo_manifest(checkpoint.manifest, checkpoint.run)
    content = {
        "vocab_size": checkpoint.args.vocab_size,
        "model_config": checkpoint.model_config,
        "params": params_to_torch(checkpoint.arrays, checkpoint.args),
    }
    write_torch_zip(folder / MODEL, content)
    write_json(folder / CONFIG, checkpoint.config)
    write_json(folder / MANIFEST, manifest)
    return str(manifest.get("name"))


def is_course_folder(folder: Path) -> bool:
    """Whether a folder is the MLX form of a course model."""
    try:
        return read_json(folder / CONFIG).get("model_type") == MODEL_TYPE
    except UsageError:
        return False


def read_course_folder(folder: Path) -> CourseCheckpoint:
    """Read the MLX form.

    Raises:
        UsageError: If a file is missing or damaged, or a tensor is not the one expected.
    """
    path = folder / record.FILE
    content, config = read_json(path), read_json(folder / CONFIG)
    if content.get("format") != _FORMAT or _object(content, "source", path).get("kind") != KIND:
        raise UsageError(f"{path}: not the record of a course artifact, format {_FORMAT}")
    model_config, manifest, tokenizer, course_config = (
        _object(content, key, path) for key in ("model_config", "manifest", "tokenizer", "config")
    )
    check_tokenizer(tokenizer, path)
    args = _args(config.get("vocab_size"), model_config, path)
    for name in SIZES:
        _check_equal(config.get(name), getattr(args, name), f"{folder / CONFIG}: {name}")
    arrays = read_weights(folder).arrays
    check_arrays(arrays, args, folder)
    run = read_json(folder / "dpo.json") if (folder / "dpo.json").exists() else None
    return CourseCheckpoint(args, model_config, arrays, course_config, manifest, tokenizer, run)


def write_course_folder(checkpoint: CourseCheckpoint, folder: Path) -> None:
    """Write the MLX form into an empty folder.

    Raises:
        UsageError: If the tokenizer can't be put in Hugging Face's form.
    """
    args = checkpoint.args
    config = {
        "model_type": MODEL_TYPE,
        **{name: getattr(args, name) for name in SIZES},
        "eos_token_id": special_id(checkpoint.tokenizer, "<|end|>"),
        "pad_token_id": special_id(checkpoint.tokenizer, "<|pad|>"),
    }
    recorded = {
        "format": _FORMAT,
        "source": {"kind": KIND},
        "model_config": checkpoint.model_config,
        "config": checkpoint.config,
        "manifest": checkpoint.manifest,
        "tokenizer": checkpoint.tokenizer,
    }
    source = Path(str(checkpoint.manifest.get("tokenizer_artifact")))
    write_tokenizer(
        checkpoint.tokenizer,
        folder,
        vocab_size=args.vocab_size,
        max_seq_len=args.max_seq_len,
        source=source,
    )
    write_weights(checkpoint.arrays, folder, "mlx", MAX_SHARD_BYTES)
    write_json(folder / CONFIG, config)
    (folder / record.FILE).write_text(json.dumps(recorded) + "\n", encoding="utf-8")


def _args(vocab_size: Any, model_config: Any, source: Path) -> CourseArgs:
    if not isinstance(model_config, dict):
        raise UsageError(f"{source}: model_config: expected a dict")
    keys = {str(key) for key in model_config}
    wrong = sorted((keys - _CONFIG_KEYS) | (_REQUIRED_KEYS - keys))
    if wrong:
        what = "is missing" if wrong[0] in _REQUIRED_KEYS else "is not known"
        raise UsageError(f"{source}: model_config: {wrong[0]!r:.80} {what}")
    try:
        return CourseArgs.from_dict({**model_config, "vocab_size": vocab_size})
    except ValueError as error:
        raise UsageError(f"{source}: model_config: {error}") from None


def _check_equal(value: Any, expected: Any, source: str) -> None:
    if value != expected:
        raise UsageError(
            f"{source}: expected {expected!r:.200} as the weights have it, found {value!r:.200}"
        )


def _object(content: dict[str, Any], key: str, source: Path) -> dict[str, Any]:
    value = content.get(key)
    if not isinstance(value, dict):
        raise UsageError(f"{source}: {key}: expected an object")
    return value

"""The MLX form of a PyTorch checkpoint, converted when it is first asked for."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from mlx_dpo.convert.conversion import convert
from mlx_dpo.convert.course.files import MANIFEST, read_json, tokenizer_file
from mlx_dpo.convert.folders import Kind, kind_of
from mlx_dpo.convert.hf.names import RULES
from mlx_dpo.convert.options import Options
from mlx_dpo.convert.weights import weight_files
from mlx_dpo.models.hub import read_config

_SUFFIXES = (".json", ".pt", ".bin", ".safetensors", ".model", ".txt", ".jinja")


def needs_conversion(folder: Path) -> bool:
    """Whether a model folder has to be converted before a run can start from it.

    Either MLX can't read it, or the way back to PyTorch would be lost.

    Raises:
        UsageError: If the folder says of itself what can't be read.
    """
    kind = kind_of(folder)
    if kind in (Kind.COURSE, Kind.COURSE_BASE):
        return True
    if kind is Kind.HUGGING_FACE and (folder / "config.json").is_file():
        # With no rule for its names, only what a conversion records leads back to PyTorch.
        config = read_config(folder)
        is_quantised = "quantization" in config or "quantization_config" in config
        if config.get("model_type") not in RULES and not is_quantised:
            return True
    has_safetensors = any(folder.glob("model*.safetensors"))
    return not has_safetensors and weight_files(folder)[1] != "safetensors"


def converted_once(folder: Path, store: Path) -> Path:
    """The MLX folder of a checkpoint inside `store`; another content is another entry.

    Args:
        folder: A folder for which `needs_conversion` holds; only read.
        store: A folder of converted checkpoints, made if it is not there.

    Raises:
        UsageError: If the checkpoint is not as it must be.
        DiskError: If the result can't be written.
    """
    digest = hashlib.sha256()
    for file in _content(folder):
        digest.update(file.name.encode())
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    out = store / f"{folder.resolve().name}-{digest.hexdigest()[:16]}"
    if not (out / "config.json").is_file():
        convert(folder, out, Options(to="mlx", verify=False), lambda line: None)
    return out


def _content(folder: Path) -> Iterator[Path]:
    for place in (folder, folder / "hf_model", folder / "hf_tokenizer"):
        if place.is_dir():
            yield from sorted(f for f in place.iterdir() if f.suffix in _SUFFIXES and f.is_file())
    if kind_of(folder) is Kind.COURSE:
        yield tokenizer_file(folder, read_json(folder / MANIFEST))

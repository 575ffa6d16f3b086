"""Write a trained model as a folder that mlx-lm and this project load."""

import json
import shutil
from pathlib import Path
from typing import Any

import mlx.nn as nn

from mlx_dpo.files import inside, is_system_file, new_folder
from mlx_dpo.models.dialects import normalised
from mlx_dpo.models.hub import read_config
from mlx_dpo.models.parameters import named_arrays, save_arrays

# The files that belong to a model besides weights and config.json: tokenizer, chat template,
# generation settings, licence, and what the way back to PyTorch needs.
_COMPANIONS = (
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt"),
    *("*.tiktoken", "merges.txt", "chat_template*", "generation_config.json", "LICENSE*"),
    "convert.json",
)


def companions(source: Path) -> list[Path]:
    """The files to copy from a model folder beside the weights, by name.

    Raises:
        UsageError: If one of them is a link that leads out of the folder.
    """
    names = {file.name for pattern in _COMPANIONS for file in source.glob(pattern)}
    names = {name for name in names if (source / name).is_file() and not is_system_file(name)}
    return [inside(source, name) for name in sorted(names)]


def export_folder(
    model: nn.Module, source: Path, out: Path, record: dict[str, Any], *, replace: bool = False
) -> None:
    """Save `model` with the tokenizer and config of the folder it came from.

    Args:
        model: Trained weights, all of one dtype.
        source: The folder it was loaded from; only read.
        out: The new folder; it appears complete or not at all.
        record: The model's source and settings, written as ``dpo.json``.
        replace: Whether `out` may exist.

    Raises:
        DiskError: If it can't be written, or exists and may not.
    """
    config = read_config(source)
    # Both spellings, because mlx-lm reads one and transformers 5 the other.
    config |= normalised(config)
    dtype = str(next(iter(named_arrays(model.parameters()).values())).dtype)
    name = dtype.removeprefix("mlx.core.")
    config |= {key: name for key in ("torch_dtype", "dtype") if key in config}
    files = companions(source)  # refused before anything is written
    with new_folder(out, replace=replace) as folder:
        for file in files:
            shutil.copyfile(file, folder / file.name)
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        (folder / "dpo.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        save_arrays(folder / "model.safetensors", model.parameters(), {"format": "mlx"})

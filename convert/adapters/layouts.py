"""Which of the two layouts a folder has, and its adapter."""

from pathlib import Path
from typing import Literal

import mlx.nn as nn

from mlx_dpo.convert.adapters import mlx_layout, peft_layout
from mlx_dpo.errors import UsageError
from mlx_dpo.models.adapters import Part

Layout = Literal["mlx", "peft"]


def layout_of(folder: Path) -> Layout:
    """Whether an adapter's folder is mlx-lm's or PEFT's, by the name of its weights.

    Raises:
        UsageError: If it holds none that can be read, or both.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder; an adapter is a folder")
    has_mlx, has_peft = (folder / mlx_layout.FILE).exists(), (folder / peft_layout.FILE).exists()
    if has_mlx and has_peft:
        raise UsageError(
            f"{folder}: holds {mlx_layout.FILE} and {peft_layout.FILE}, and its one "
            "adapter_config.json describes one of them; move the other away"
        )
    if has_mlx or has_peft:
        return "mlx" if has_mlx else "peft"
    if (folder / "adapter_model.bin").exists():
        raise UsageError(
            f"{folder}: adapter_model.bin is a pickle, which may run code and is not read; save "
            "the adapter as safetensors: save_pretrained(folder, safe_serialization=True)"
        )
    raise UsageError(
        f"{folder}: is not an adapter's folder: neither {mlx_layout.FILE} (mlx-lm) nor "
        f"{peft_layout.FILE} (PEFT) is in it"
    )


def read_adapter(folder: Path, model: nn.Module) -> dict[str, Part]:
    """Read an adapter of either layout.

    Args:
        folder: Holds its weights and ``adapter_config.json``.
        model: The model it is for; it may have an adapter, and is not changed.

    Returns:
        Its parts in float32, by path of the module, in order. Whether they fit the model is for
        `mlx_dpo.models.adapters.attach` to say.

    Raises:
        UsageError: If a file is missing or damaged, or the adapter is of a kind that is not known.
    """
    if layout_of(folder) == "mlx":
        return mlx_layout.read_mlx(folder)
    return peft_layout.read_peft(folder, model)

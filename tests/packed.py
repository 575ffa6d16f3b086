"""Small quantised model folders, made as mlx_lm.convert --quantize makes them."""

from pathlib import Path

import mlx.core as mx
from mlx_lm.utils import load_model, quantize_model, save_config, save_model

from mlx_dpo.models.export import read_companions, write_companions


def pack(
    source: Path,
    folder: Path,
    *,
    bits: int = 4,
    group_size: int = 32,
    mode: str = "affine",
    dtype: mx.Dtype = mx.float32,
) -> Path:
    """Quantise a model folder into another one.

    Layers whose rows are no multiple of the group stay as they are: those of 400 inputs of
    tiny-sft, which makes of it a model that is packed in part.

    Args:
        source: A model folder; only read.
        folder: The new one.
        bits: Of a packed weight.
        group_size: Weights that share a scale.
        mode: Packing: ``affine``, ``mxfp4``, ...
        dtype: Of what is not packed.

    Returns:
        The new folder.
    """
    model, config = load_model(source)
    model.set_dtype(dtype)
    model, config = quantize_model(model, config, group_size, bits, mode)
    save_model(folder, model)
    save_config(config, folder / "config.json")
    write_companions(read_companions(source), folder)
    return folder

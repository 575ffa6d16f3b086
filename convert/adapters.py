"""Stub until the real file is merged."""

from pathlib import Path
from typing import Any

import mlx.nn as nn

from mlx_dpo.models.adapters import Adapter, Part


def read_adapter(folder: Path, model: nn.Module) -> dict[str, Part]:
    """Read."""
    import json

    import mlx.core as mx

    arrays: Any = mx.load(str(folder / "adapters.safetensors"))
    config = json.loads((folder / "adapter_config.json").read_text())
    scale = config["lora_parameters"]["scale"]
    paths = {name.rpartition(".")[0] for name in arrays}
    return {p: Part(arrays[f"{p}.lora_a"], arrays[f"{p}.lora_b"], scale) for p in sorted(paths)}


def write_mlx(folder: Path, adapter: Adapter, model: nn.Module) -> None:
    """Write."""
    import json

    from mlx_dpo.models.parameters import save_arrays

    arrays = {}
    for path, part in adapter.items():
        arrays[f"{path}.lora_a"], arrays[f"{path}.lora_b"] = part.a, part.b
    save_arrays(folder / "adapters.safetensors", arrays, {"format": "mlx"})
    first = next(iter(adapter.values()))
    keys = sorted({p.split(".layers.")[1].split(".", 1)[1] for p in adapter})
    (folder / "adapter_config.json").write_text(
        json.dumps(
            {
                "fine_tune_type": "lora",
                "num_layers": len(model.layers),
                "lora_parameters": {
                    "rank": first.b.shape[0],
                    "scale": first.scale,
                    "dropout": 0.0,
                    "keys": keys,
                },
            }
        )
    )


def write_peft(folder: Path, adapter: Adapter, model: nn.Module, base_name: str) -> None:
    """Write."""
    raise NotImplementedError

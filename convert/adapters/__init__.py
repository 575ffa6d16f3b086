"""Adapters as files: mlx-lm's layout and PEFT's, each read, written and made of the other."""

from mlx_dpo.convert.adapters.layouts import layout_of, read_adapter
from mlx_dpo.convert.adapters.mlx_layout import write_mlx
from mlx_dpo.convert.adapters.peft_layout import write_peft

__all__ = ["layout_of", "read_adapter", "write_mlx", "write_peft"]

"""From preference files to batches of token ids."""

from mlx_dpo.preferences.reader import read_preferences

__all__ = ["read_preferences"]

"""How a conversion is told what to do, and how it tells what it did."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import mlx.core as mx

from mlx_dpo.convert.weights import MAX_SHARD_BYTES, NAMED

Direction = Literal["mlx", "torch"]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """How to convert.

    Attributes:
        to: The direction; None takes the one the source suggests.
        dtype: float32, float16 or bfloat16; None keeps what the source has.
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
        return NAMED[self.dtype] if self.dtype else None

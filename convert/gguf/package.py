"""The package `gguf`, an extra of this one."""

from typing import Any

from mlx_dpo.errors import UsageError
from mlx_dpo.extras import to_install


def package() -> Any:
    """The module `gguf`, which llama.cpp's own converters write with.

    Raises:
        UsageError: If it is not installed.
    """
    try:
        import gguf
    except ImportError:
        raise UsageError(f"GGUF needs the package gguf: {to_install('gguf')}") from None
    return gguf

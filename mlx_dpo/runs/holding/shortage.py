"""When memory runs out: an error of MLX becomes one line that says which setting to change."""

from collections.abc import Iterator
from contextlib import contextmanager

from mlx_dpo.errors import MemoryShortError, is_shortage
from mlx_dpo.runs.config import RunConfig


@contextmanager
def shortage_explained(config: RunConfig, *, loading: bool = False) -> Iterator[None]:
    """Turn an error about memory into one with advice.

    Args:
        config: The settings of the run inside.
        loading: Whether nothing happens inside but that the model is read.

    Raises:
        MemoryShortError: If memory has run out.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_shortage(error):
            raise
        said = " ".join(str(error).split())[:160] or type(error).__name__
        raise MemoryShortError(
            f"not enough memory ({said}): close other programs, or start again with "
            f"{advice(config, loading=loading)}; mlx_dpo plan says what fits"
        ) from None


def advice(config: RunConfig, *, loading: bool = False) -> str:
    """The next setting to change, in the order of `mlx_dpo plan`; never one that is so already."""
    half = max(1, config.batch_size // 2)
    parts = -(-config.batch_size * config.grad_accumulation // half)
    bfloat16 = (config.dtype == "float32", "--dtype bfloat16")
    smaller = (True, "a smaller model")
    if loading:  # batches and optimizer are not there yet
        changes = [bfloat16, smaller]
    else:
        changes = [
            (config.reference == "copy", "--reference cached, which holds no second model"),
            (config.batch_size > 1, f"--batch-size {half} --grad-accumulation {parts}"),
            (not config.checkpoint_layers, "--checkpoint-layers"),
            (config.grad_clip > 0, "--grad-clip 0, which frees gradients as they are used"),
            bfloat16,
            (config.optimizer != "adafactor", "--optimizer adafactor"),
            (config.max_length > 64, f"--max-length {config.max_length // 2}"),
            smaller,
        ]
    return next(setting for is_open, setting in changes if is_open)

"""Direct Preference Optimization on Apple silicon, native to MLX.

The names below are the library. They are imported on first use, so that `import mlx_dpo` and
`mlx_dpo --help` stay quick.
"""

import os

# On an M5 MLX cuts the operands of float32 products to 10 mantissa bits unless this is 0. It reads
# the variable at the first product of the process.
os.environ.setdefault("MLX_ENABLE_TF32", "0")

import resource
from importlib import import_module
from typing import TYPE_CHECKING, Any

from mlx_dpo.records import VERSION

__version__ = VERSION

_OPEN_FILES = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
if 0 <= _OPEN_FILES < 4096:
    # mlx-lm asks for 4096 when it is imported, and fails where the system allows fewer.
    _set_limit = resource.setrlimit

    def _set_allowed(kind: int, limits: tuple[int, int]) -> None:
        if kind == resource.RLIMIT_NOFILE:
            limits = (min(limits[0], _OPEN_FILES), _OPEN_FILES)
        _set_limit(kind, limits)

    resource.setrlimit = _set_allowed

if TYPE_CHECKING:
    from mlx_dpo.convert.sources import load
    from mlx_dpo.errors import MlxDpoError
    from mlx_dpo.models.adapters import attach_adapters
    from mlx_dpo.preferences.collate import pad_and_collate_pref
    from mlx_dpo.preferences.reader import read_preferences
    from mlx_dpo.preferences.rows import encode
    from mlx_dpo.records import Preference, PreferenceExample
    from mlx_dpo.runs.finished import save
    from mlx_dpo.training.logprobs import sequence_logprob
    from mlx_dpo.training.loss import dpo_loss
    from mlx_dpo.training.trainer import Callback, DPOTrainer

_HOME = {
    "Callback": "mlx_dpo.training.trainer",
    "DPOTrainer": "mlx_dpo.training.trainer",
    "MlxDpoError": "mlx_dpo.errors",
    "Preference": "mlx_dpo.records",
    "PreferenceExample": "mlx_dpo.records",
    "attach_adapters": "mlx_dpo.models.adapters",
    "dpo_loss": "mlx_dpo.training.loss",
    "encode": "mlx_dpo.preferences.rows",
    "load": "mlx_dpo.convert.sources",
    "pad_and_collate_pref": "mlx_dpo.preferences.collate",
    "read_preferences": "mlx_dpo.preferences.reader",
    "save": "mlx_dpo.runs.finished",
    "sequence_logprob": "mlx_dpo.training.logprobs",
}

__all__ = [
    "Callback",
    "DPOTrainer",
    "MlxDpoError",
    "Preference",
    "PreferenceExample",
    "__version__",
    "attach_adapters",
    "dpo_loss",
    "encode",
    "load",
    "pad_and_collate_pref",
    "read_preferences",
    "save",
    "sequence_logprob",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'mlx_dpo' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)

"""The machines a plan is held against, and how much of their memory MLX should use.

Apple silicon shares one memory; macOS recommends a part of it for the GPU, about two thirds on
machines of up to 32 GB: 5.3 of 8 and 10.7 of 16 GB by public logs, not measured here.
"""

from dataclasses import dataclass
from typing import Any

import mlx.core as mx

GIB = 2**30
# Of what is recommended for the GPU: room for MLX's buffer cache and for predictions that are off.
SHARE = 0.75
_RECOMMENDED = {8: 5.3, 16: 10.7, 24: 16.0, 32: 21.3}  # GiB; the last two by the same share


@dataclass(frozen=True)
class Machine:
    """A machine.

    Attributes:
        name: As it is shown.
        recommended: Bytes the system recommends that a GPU program keeps within.
    """

    name: str
    recommended: int

    def verdict(self, peak: int) -> str:
        """``fits``, ``tight`` (more than `SHARE` of what is recommended) or ``does not fit``."""
        if peak <= SHARE * self.recommended:
            return "fits"
        return "tight" if peak <= self.recommended else "does not fit"


def machines() -> list[Machine]:
    """The standing machines, and this one where it says what it recommends."""
    standing = [Machine(f"{size} GB", round(gib * GIB)) for size, gib in _RECOMMENDED.items()]
    recommended = recommended_here()
    return standing + ([Machine("this one", recommended)] if recommended else [])


def recommended_here() -> int | None:
    """Bytes this device recommends to keep within; None where it does not say, as on a CPU."""
    info: dict[str, Any] = mx.device_info()
    found = info.get("max_recommended_working_set_size")
    return int(found) if found else None

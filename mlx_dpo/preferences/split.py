"""Hold pairs out: by kind, and never one prompt on both sides."""

import random
from collections import defaultdict
from collections.abc import Sequence

from mlx_dpo.records import Preference


def held_out(preferences: Sequence[Preference], fraction: float, seed: int = 0) -> list[bool]:
    """Choose which pairs are held out.

    Pairs with the same prompt stay together. Each kind gives its share of prompts, at least
    one, so that no kind goes unmeasured; a kind with a single prompt stays in training.

    Args:
        preferences: All rows.
        fraction: Share to hold out, at least 0 and below 1.
        seed: Decides which.

    Returns:
        For each row, whether it is held out.
    """
    groups: dict[str, dict[object, list[int]]] = defaultdict(lambda: defaultdict(list))
    home: dict[object, str] = {}
    for row, preference in enumerate(preferences):
        kind = home.setdefault(preference.prompt, preference.kind)
        groups[kind][preference.prompt].append(row)
    out = [False] * len(preferences)
    if fraction <= 0:
        return out
    rng = random.Random(seed)
    for kind in sorted(groups):
        prompts = list(groups[kind].values())
        rng.shuffle(prompts)
        count = min(max(1, round(len(prompts) * fraction)), len(prompts) - 1)
        for rows in prompts[:count]:
            for row in rows:
                out[row] = True
    return out

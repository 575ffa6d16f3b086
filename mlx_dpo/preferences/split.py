"""Hold pairs out: by kind, and never one prompt on both sides."""

import random
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence

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
    rows = ((preference.prompt, preference.kind) for preference in preferences)
    return held_out_rows(rows, fraction, seed)


def held_out_rows(
    rows: Iterable[tuple[Hashable, str]], fraction: float, seed: int = 0
) -> list[bool]:
    """The same from what stands for each row's prompt, and its kind."""
    groups: dict[str, dict[Hashable, list[int]]] = defaultdict(lambda: defaultdict(list))
    home: dict[Hashable, str] = {}
    number = -1
    for number, (prompt, kind) in enumerate(rows):
        groups[home.setdefault(prompt, kind)][prompt].append(number)
    out = [False] * (number + 1)
    if fraction <= 0:
        return out
    rng = random.Random(seed)
    for kind in sorted(groups):
        prompts = list(groups[kind].values())
        rng.shuffle(prompts)
        count = min(max(1, round(len(prompts) * fraction)), len(prompts) - 1)
        for same_prompt in prompts[:count]:
            for row in same_prompt:
                out[row] = True
    return out

"""How figures of the looking commands are written, and how they show that they are at work."""

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from mlx_dpo.insight.evaluation import wilson_interval


def share(successes: float, trials: int) -> str:
    """`0.60 (0.46-0.72)`: a share with its Wilson 95 % interval; `-` of nothing."""
    if not trials:
        return "-"
    low, high = wilson_interval(successes, trials)
    return f"{successes / trials:.2f} ({low:.2f}-{high:.2f})"


def table(rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Rows of cells as aligned text; the first `left` columns flush left, the others right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if place < left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


@contextmanager
def progress() -> Iterator[Callable[[str, int, int], None]]:
    """A bar on stderr while a block runs, where stderr is a terminal.

    Yields:
        To be called with what is done, how much of it there is, and how much more is done.
    """
    if not sys.stderr.isatty():
        yield lambda name, total, more: None
        return
    from rich.console import Console

    from mlx_dpo.cli.screen.terminal import Bar

    bar = Bar(Console(stderr=True))
    done: Counter[str] = Counter()

    def advance(name: str, total: int, more: int) -> None:
        done[name] += more
        bar.update(name, done[name], total, pace=f"{done[name]}/{total}")

    try:
        yield advance
    finally:
        bar.stop()

"""What the page shows, as JSON."""

from typing import Any

from mlx_dpo.preferences.audit import LOPSIDED
from mlx_dpo.records import Preference
from mlx_dpo.workshop.labelling.book import SKIP, Book
from mlx_dpo.workshop.labelling.tasks import is_shown_swapped

ENOUGH_PAIRS = 20  # that differ in length; under this many, a lopsided share is often chance
ENOUGH_TO_SHOW = 10  # the same; under this many, one decision moves the mark by a tenth or more


def view(book: Book) -> dict[str, Any]:
    """The state of a book, for the page."""
    task = book.next_task()
    shown = None
    if task is not None:
        a, b = task.texts
        if is_shown_swapped(task, book.salt):
            a, b = b, a
        shown = {
            "id": task.id,
            "kind": task.kind,
            "prompt": [turn._asdict() for turn in task.prompt],
            "is_choice": task.is_choice,
            "a": a,
            "b": b,
        }
    return {
        "revision": book.revision,
        "task": shown,
        "done": book.num_done(),
        "total": len(book.tasks),
        **book.shares(),
        "skipped": book.counts[SKIP],
        "can_undo": bool(book.decisions),
        "lengths": length_meter(book.pairs),
        "out": str(book.out),
    }


def length_meter(pairs: list[Preference]) -> dict[str, Any]:
    """How often the chosen answer is the longer one, in characters, and whether that leans."""
    gaps = [_length(pair.chosen) - _length(pair.rejected) for pair in pairs]
    longer, shorter = sum(gap > 0 for gap in gaps), sum(gap < 0 for gap in gaps)
    share = longer / (longer + shorter) if longer + shorter else 0.5
    low, high = LOPSIDED
    leans = longer + shorter >= ENOUGH_PAIRS and not low <= share <= high
    return {
        "longer": longer,
        "shorter": shorter,
        "share": share,
        "enough": ENOUGH_TO_SHOW,
        "leans": ("longer" if share > 0.5 else "shorter") if leans else "",
    }


def _length(turns: tuple[Any, ...]) -> int:
    return sum(len(turn.content.strip()) for turn in turns)

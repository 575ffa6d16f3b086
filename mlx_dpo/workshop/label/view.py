"""What the page shows of a book: the task at hand, counts, lengths and the last decisions."""

from typing import Any

from mlx_dpo.preferences.store import LOPSIDED
from mlx_dpo.records import Message, Preference
from mlx_dpo.workshop.label.book import SKIP, Book, LabelDecision, Task
from mlx_dpo.workshop.label.rendering import render

ENOUGH_PAIRS = 20  # that differ in length; with fewer, a lopsided share is often chance
ENOUGH_TO_SHOW = 10  # the same; with fewer, one decision moves the mark by a tenth or more
NUM_LAST = 10  # decisions in the list on the page
LONGEST_LAST = 1000  # characters of each text in that list


def view(book: Book) -> dict[str, Any]:
    """The state of a book, as JSON for the page."""
    task = book.next_task()
    known = {each.id: each for each in book.tasks}
    return {
        "revision": book.revision,
        "task": None if task is None else _task_view(task, book.salt),
        "done": book.num_done(),
        "total": len(book.tasks),
        **book.shares(),
        "skipped": book.counts[SKIP],
        "can_undo": bool(book.decisions),
        "last": [_last_view(each, known) for each in reversed(book.decisions[-NUM_LAST:])],
        "lengths": length_meter(book.pairs),
        "out": str(book.out),
    }


def _task_view(task: Task, salt: str) -> dict[str, Any]:
    a, b = reversed(task.texts) if task.is_shown_swapped(salt) else task.texts
    return {
        "id": task.id,
        "kind": task.kind,
        "prompt": [{"role": turn.role, "html": render(turn.content)} for turn in task.prompt],
        "is_choice": task.is_choice,
        "a": a,
        "b": b,
        "html": {"a": render(a), "b": render(b)},
    }


def _last_view(decision: LabelDecision, known: dict[str, Task]) -> dict[str, Any]:
    """A decision with its texts, the chosen first; a task of other files has none of a tie."""
    task, pair = known.get(decision.task), decision.pair
    if pair is not None:
        prompt, texts = pair.prompt, [_content(pair.chosen), _content(pair.rejected)]
    else:
        prompt, texts = (task.prompt, list(task.texts)) if task else ((), [])
    question = prompt[-1].content if prompt else ""
    return {
        "number": decision.number,
        "event": decision.event,
        "has_task": task is not None,
        "question": question[:LONGEST_LAST],
        "texts": [text[:LONGEST_LAST] for text in texts],
    }


def _content(turns: tuple[Message, ...]) -> str:
    return "\n\n".join(turn.content for turn in turns)


def length_meter(pairs: list[Preference]) -> dict[str, Any]:
    """How often the chosen answer is the longer one, in characters, and whether it leans."""
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


def _length(turns: tuple[Message, ...]) -> int:
    return sum(len(turn.content.strip()) for turn in turns)

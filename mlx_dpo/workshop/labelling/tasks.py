"""What a person is asked: to choose between two answers, or to write them."""

from collections.abc import Iterable
from hashlib import blake2b
from typing import NamedTuple

from mlx_dpo.preferences.repeats import text_digest
from mlx_dpo.records import Message
from mlx_dpo.workshop.candidates import Candidates
from mlx_dpo.workshop.contests import contests_of, different_answers


class Task(NamedTuple):
    """One thing to decide.

    Attributes:
        id: Follows from the texts, so that a changed or reordered file keeps what is done.
        prompt: The turns to answer.
        kind: What the choice teaches; "" when that is not known.
        texts: The two answers; an empty one is still to be written.
    """

    id: str
    prompt: tuple[Message, ...]
    kind: str
    texts: tuple[str, str]

    @property
    def is_choice(self) -> bool:
        """Whether both answers are there."""
        return all(self.texts)


def tasks_of(rows: Iterable[Candidates]) -> list[Task]:
    """All tasks of some rows, each once, whatever files they come from.

    Every two answers of a row meet. Where there are none, or one, the others are to be written.
    """
    tasks: dict[str, Task] = {}
    for row in rows:
        pairs = [(contest.first.text, contest.second.text) for contest in contests_of(row)]
        if not pairs:
            one = [answer.text for answer in different_answers(row)]
            pairs = [(one[0] if one else "", "")]
        for pair in pairs:
            task = Task(_task_id(row.prompt, pair), row.prompt, row.kind, pair)
            tasks.setdefault(task.id, task)
    return list(tasks.values())


def is_shown_swapped(task: Task, salt: str) -> bool:
    """Whether the second answer stands first on the page: by chance, but always the same way."""
    return bool(blake2b((salt + task.id).encode(), digest_size=1).digest()[0] & 1)


def _task_id(prompt: tuple[Message, ...], texts: tuple[str, str]) -> str:
    answers = tuple(Message("assistant", text) for text in sorted(texts))
    return text_digest(prompt, answers).hex()

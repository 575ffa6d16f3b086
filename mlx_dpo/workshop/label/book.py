"""What has been decided so far: a journal on the disk, and the preference file it comes to."""

import secrets
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

from mlx_dpo.errors import DataError
from mlx_dpo.files import write_file
from mlx_dpo.preferences.json_text import Finding
from mlx_dpo.preferences.reader import Repeats, plain, preference_line, text_digest
from mlx_dpo.preferences.schema import ERROR, LEVELS, read_messages, read_text
from mlx_dpo.records import Message, Preference
from mlx_dpo.workshop.candidates import Candidates
from mlx_dpo.workshop.collection import contests_of, different_answers
from mlx_dpo.workshop.journal import Journal

# --- What a person is asked: to choose between two answers, or to
# write them.


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


PAIR, TIE, SKIP, UNDO, BEGIN = "pair", "tie", "skip", "undo", "begin"


@dataclass(frozen=True, slots=True)
class Decision:
    """An entry of the journal that stands, not undone.

    Attributes:
        event: pair, tie or skip.
        task: Id of the task it decides; "" for a pair that was written from scratch.
        pair: The pair, where there is one.
    """

    event: str
    task: str
    pair: Preference | None = None


class Book:
    """Decisions of a person, durable one by one.

    Args:
        out: The preference file. It is written anew after each decision; the journal beside it,
            ``OUT.labels.jsonl``, is what counts.
        tasks: What there is to decide.

    Attributes:
        salt: Decides the order in which answers are shown.
        decisions: Those that stand. Skips of earlier sessions don't: they are asked again.

    Raises:
        DataError: If `out` holds anything that is not of this journal, or the journal is damaged.
        LockedError: If another process has it open.
    """

    def __init__(self, out: Path, tasks: Sequence[Task]) -> None:
        self.out = out
        self.tasks = tasks
        self._undone: list[str] = []
        if not journal_path(out).exists():
            self._refuse_foreign([""])
        self._journal = Journal(journal_path(out))
        try:
            self._open()
        except BaseException:
            self._journal.close()
            raise

    def _open(self) -> None:
        entries = self._journal.entries
        if not entries:
            self._refuse_foreign([""])
            self._journal.append({"event": BEGIN, "salt": secrets.token_hex(8)})
        try:
            self.salt = str(entries[0]["salt"])
            self.decisions = _replay(entries)
            before = _replay(entries[:-1])
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise DataError(f"{self._journal.path}: not a journal of labels: {error}") from None
        # A kill may have come after the last entry and before the file that follows from it.
        self._refuse_foreign([_text(self.decisions), _text(before)])
        self._export()

    def _refuse_foreign(self, known: list[str]) -> None:
        """Refuse to write over a file with anything in it that the journal does not know."""
        try:
            is_foreign = self.out.exists() and self.out.read_bytes().decode() not in known
        except (OSError, UnicodeDecodeError):
            is_foreign = True
        if is_foreign:
            raise DataError(
                f"{self.out}: holds something other than {journal_path(self.out).name} beside it "
                "says; move it away, or choose another --out"
            )

    @property
    def revision(self) -> int:
        """Grows with every entry: a page that knows an older one has missed something."""
        return len(self._journal.entries)

    @property
    def pairs(self) -> list[Preference]:
        """The pairs so far."""
        return [decision.pair for decision in self.decisions if decision.pair is not None]

    @property
    def counts(self) -> Counter[str]:
        """Decisions that stand, by event."""
        return Counter(decision.event for decision in self.decisions)

    def next_task(self) -> Task | None:
        """What to ask: the task whose decision was undone last, or else the first not decided."""
        done = {decision.task for decision in self.decisions}
        left = {task.id: task for task in self.tasks if task.id not in done}
        undone = (left[name] for name in reversed(self._undone) if name in left)
        return next(undone, next(iter(left.values()), None))

    def num_done(self) -> int:
        """Tasks that are decided; one that is skipped is not, for it will be asked again."""
        done = {decision.task for decision in self.decisions if decision.event != SKIP}
        return sum(task.id in done for task in self.tasks)

    def shares(self) -> dict[str, int]:
        """How many decisions of which origin stand.

        ``pairs`` and ``ties`` are those of the tasks at hand and add up to the tasks done; pairs
        beside them were written ``by_hand``, or decided ``elsewhere``: in files not given now.
        """
        known = {task.id for task in self.tasks}
        here = Counter(one.event for one in self.decisions if one.task in known)
        pairs = [one for one in self.decisions if one.event == PAIR]
        by_hand = sum(not one.task for one in pairs)
        return {
            "pairs": here[PAIR],
            "ties": here[TIE],
            "by_hand": by_hand,
            "elsewhere": len(pairs) - here[PAIR] - by_hand,
        }

    def add_pair(self, pair: dict[str, Any], *, task: str = "", shown: str = "") -> None:
        """Take down a pair.

        Args:
            pair: ``prompt``, ``chosen``, ``rejected`` and ``kind`` as in a preference file.
            task: Id of the task it decides.
            shown: How the answers stood on the page, for whoever studies the habits of judges.

        Raises:
            DataError: If the pair can't stand in a preference file; nothing is written then.
            DiskError: If it could not be written.
        """
        entry = {"event": PAIR, "task": task, "shown": shown, **pair}
        self._check(entry)
        self._add(entry)

    def add(self, event: str, task: str) -> None:
        """Take down that a task was tied or skipped."""
        assert event in (TIE, SKIP)
        self._add({"event": event, "task": task})

    def undo(self) -> str | None:
        """Take back the last decision; returns its event, None where there is none."""
        if not self.decisions:
            return None
        last = self.decisions[-1]
        self._add({"event": UNDO})
        self._undone.append(last.task)
        return last.event

    def close(self) -> None:
        """Let another session have it."""
        self._journal.close()

    def _add(self, entry: dict[str, Any]) -> None:
        self._journal.append(entry)
        _apply(entry, self.revision, self.decisions)
        self._export()

    def _export(self) -> None:
        write_file(self.out, _text(self.decisions))

    def _check(self, entry: dict[str, Any]) -> None:
        pair = _pair(entry, self.revision + 1)
        if any(not "".join(turn.content for turn in turns).strip() for turns in pair[:3]):
            raise DataError("a pair needs a prompt and two answers")
        preference = Preference(*pair)
        if preference.chosen == preference.rejected:
            raise DataError("the two answers are the same: say tie, or edit one")
        repeats, found = Repeats(), list[Finding]()
        for number, known in enumerate((*self.pairs, preference), 1):
            found, _ = repeats.look(known, number)
        if found:
            raise DataError(f"{found[0].reason} (counted in {self.out.name})")


def journal_path(out: Path) -> Path:
    """Where the decisions lie that a preference file is made from."""
    return out.with_name(f"{out.name}.labels.jsonl")


def _text(decisions: list[Decision]) -> str:
    return "".join(preference_line(one.pair) for one in decisions if one.pair is not None)


def _replay(entries: list[dict[str, Any]]) -> list[Decision]:
    decisions: list[Decision] = []
    for number, entry in enumerate(entries[1:], 2):
        _apply(entry, number, decisions)
    return [decision for decision in decisions if decision.event != SKIP]


def _apply(entry: dict[str, Any], number: int, decisions: list[Decision]) -> None:
    event = entry["event"]
    if event == UNDO:
        decisions.pop()
    elif event == PAIR:
        pair = Preference(*_pair(entry, number))
        decisions.append(Decision(PAIR, str(entry["task"]), pair))
    elif event in (TIE, SKIP):
        decisions.append(Decision(event, str(entry["task"])))
    elif event != BEGIN:
        raise ValueError(f"line {number}: no such event: {event!r:.40}")


def _pair(
    entry: dict[str, Any], number: int
) -> tuple[tuple[Message, ...], tuple[Message, ...], tuple[Message, ...], str, str]:
    """The fields of the pair of an entry.

    Raises:
        DataError: If they are not what the checked reader accepts.
    """
    found: list[Finding] = []
    prompt = read_messages(entry, "prompt", "user", found)
    chosen = read_messages(entry, "chosen", "assistant", found)
    rejected = read_messages(entry, "rejected", "assistant", found)
    kind = read_text(entry.get("kind", ""), "kind", found)
    errors = [finding.reason for finding in found if LEVELS[finding.code] == ERROR]
    if prompt is None or chosen is None or rejected is None or kind is None:
        raise DataError(errors[0] if errors else "a pair needs a prompt and two answers")
    return prompt, chosen, rejected, kind, f"label-{number}"


def as_pair(task: Task, chosen: str, rejected: str) -> dict[str, Any]:
    """A decided task as the fields of a pair."""
    return {
        "prompt": plain(task.prompt, "user"),
        "chosen": chosen,
        "rejected": rejected,
        "kind": task.kind,
    }

"""A person's decisions: the tasks to decide, a journal on the disk, and the pairs that follow.

A task is to choose between two answers, or to write them. The journal (``OUT.labels.jsonl``) is
authoritative; the preference file OUT is written anew from it after each decision. Of a decision
that two answers are both bad, the journal keeps the prompt: better answers are to be found for it.
"""

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
from mlx_dpo.workshop.candidates import Candidates, contests_of
from mlx_dpo.workshop.journal import Journal

# Events of the journal.
PAIR, TIE, BAD, SKIP, UNDO, BEGIN = "pair", "tie", "bad", "skip", "undo", "begin"


class Task(NamedTuple):
    """One thing to decide. The id follows from the texts: a changed file keeps its decisions."""

    id: str
    prompt: tuple[Message, ...]
    kind: str
    texts: tuple[str, str]  # the two answers; an empty one is still to be written

    @property
    def is_choice(self) -> bool:
        """Whether both answers are there."""
        return all(self.texts)

    def is_shown_swapped(self, salt: str) -> bool:
        """Whether the second answer stands first on the page: random, but fixed for a salt."""
        return bool(blake2b((salt + self.id).encode(), digest_size=1).digest()[0] & 1)

    def as_pair(self, chosen: str, rejected: str) -> dict[str, Any]:
        """The fields of the pair that a decision makes, as in a preference file."""
        prompt = plain(self.prompt, "user")
        return {"prompt": prompt, "chosen": chosen, "rejected": rejected, "kind": self.kind}


def tasks_of(rows: Iterable[Candidates]) -> list[Task]:
    """All tasks of some rows, each once, whatever files they come from.

    Every two different answers of a row are a task. A row with fewer has one task, in which the
    missing answers are to be written. A row that is a pair already has none.
    """
    tasks: dict[str, Task] = {}
    for row in rows:
        if row.is_pair:
            continue
        pairs = [(contest.first.text, contest.second.text) for contest in contests_of(row)]
        if not pairs:
            pairs = [("".join(answer.text for answer in row.different()), "")]
        for pair in pairs:
            answers = tuple(Message("assistant", text) for text in sorted(pair))
            task = Task(text_digest(row.prompt, answers).hex(), row.prompt, row.kind, pair)
            tasks.setdefault(task.id, task)
    return list(tasks.values())


@dataclass(frozen=True, slots=True)
class LabelDecision:
    """An entry of the journal that is not undone: a pair, tie or skip, or that both are bad."""

    number: int  # of the entry, from 1
    event: str
    task: str  # its id; "" for a pair that was written from scratch
    pair: Preference | None = None


class Book:
    """Decisions of a person, durable one by one.

    Args:
        out: The preference file.
        tasks: The tasks to decide.

    Attributes:
        salt: Decides the order in which answers are shown.
        decisions: Decisions that stand. Skips of earlier sessions don't: those tasks come again.

    Raises:
        DataError: If `out` holds anything that is not of this journal, or the journal is damaged.
        LockedError: If another process has it open.
    """

    def __init__(self, out: Path, tasks: Sequence[Task]) -> None:
        self.out = out
        self.tasks = tasks
        self._undone: list[str] = []
        if not journal_path(out).exists():  # nor is it made beside a file of somebody else
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
            self.salt.encode()  # half of a surrogate pair could not be
            self.decisions = _replay(entries)
            before = _replay(entries[:-1])
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise DataError(f"{self._journal.path}: not a journal of labels: {error}") from None
        # A kill may have come between the last entry and the preference file that follows from it.
        self._refuse_foreign([_pair_lines(self.decisions), _pair_lines(before)])
        self._export()

    def _refuse_foreign(self, known: list[str]) -> None:
        """Refuse to replace a preference file with a content that the journal does not explain."""
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
        """Number of entries: a page that shows an older revision has missed a change."""
        return len(self._journal.entries)

    @property
    def pairs(self) -> list[Preference]:
        """The pairs so far."""
        return [decision.pair for decision in self.decisions if decision.pair is not None]

    @property
    def counts(self) -> Counter[str]:
        """Decisions that stand, by event."""
        return Counter(decision.event for decision in self.decisions)

    def left(self) -> list[Task]:
        """The tasks without a decision; one that was skipped in this session has one."""
        done = {decision.task for decision in self.decisions}
        return [task for task in self.tasks if task.id not in done]

    def next_task(self) -> Task | None:
        """The task whose decision was undone last, or else the first that is not decided."""
        left = {task.id: task for task in self.left()}
        undone = (left[name] for name in reversed(self._undone) if name in left)
        return next(undone, next(iter(left.values()), None))

    def num_done(self) -> int:
        """Number of tasks decided; a skipped task is not, for it comes again."""
        done = {decision.task for decision in self.decisions if decision.event != SKIP}
        return sum(task.id in done for task in self.tasks)

    def shares(self) -> dict[str, int]:
        """Counts of the decisions that stand, by origin.

        ``pairs``, ``ties`` and ``bad`` are those of the tasks at hand and add up to the tasks done;
        other pairs were written ``by_hand``, or decided ``elsewhere``: in files not given now.
        """
        known = {task.id for task in self.tasks}
        here = Counter(entry.event for entry in self.decisions if entry.task in known)
        pairs = [entry for entry in self.decisions if entry.event == PAIR]
        by_hand = sum(not entry.task for entry in pairs)
        return {
            "pairs": here[PAIR],
            "ties": here[TIE],
            "bad": here[BAD],
            "by_hand": by_hand,
            "elsewhere": len(pairs) - here[PAIR] - by_hand,
        }

    def add_pair(self, pair: dict[str, Any], *, task: str = "", shown: str = "") -> None:
        """Record a pair: ``prompt``, ``chosen``, ``rejected`` and ``kind`` of a preference file.

        `task` is the id of the task it decides; `shown` is the place of the chosen answer on the
        page, recorded to study habits of position.

        Raises:
            DataError: If the pair can't stand in the preference file; nothing is written then.
            DiskError: If it could not be written.
        """
        entry = {"event": PAIR, "task": task, "shown": shown, **pair}
        self._check(_read_pair(entry, self.revision + 1))
        self._add(entry)

    def add(self, event: str, task: Task) -> None:
        """Record that a task was tied or skipped, or that both answers are bad."""
        assert event in (TIE, BAD, SKIP)
        entry: dict[str, Any] = {"event": event, "task": task.id}
        if event == BAD:
            entry |= {"prompt": plain(task.prompt, "user"), "kind": task.kind}
        self._add(entry)

    def undo(self, number: int | None = None) -> str | None:
        """Take back a decision, the last if no `number` of an entry is given.

        Returns:
            Its event; None if there is no decision.

        Raises:
            DataError: If that entry is no decision that stands.
        """
        if number is None:
            if not self.decisions:
                return None
            number = self.decisions[-1].number
        taken = next((entry for entry in self.decisions if entry.number == number), None)
        if taken is None:
            raise DataError("that decision has been taken back already")
        # Named, for a later session knows of skips that this one has forgotten.
        self._add({"event": UNDO, "of": number})
        self._undone.append(taken.task)
        return taken.event

    def close(self) -> None:
        """Let another session open the journal."""
        self._journal.close()

    def _add(self, entry: dict[str, Any]) -> None:
        self._journal.append(entry)
        _apply(entry, self.revision, self.decisions)
        self._export()

    def _export(self) -> None:
        write_file(self.out, _pair_lines(self.decisions))

    def _check(self, pair: Preference) -> None:
        for turns in (pair.prompt, pair.chosen, pair.rejected):
            if not "".join(turn.content for turn in turns).strip():
                raise DataError("a pair needs a prompt and two answers")
        if pair.chosen == pair.rejected:
            raise DataError("the two answers are the same: say tie, or edit one")
        repeats, findings = Repeats(), list[Finding]()
        for number, known in enumerate((*self.pairs, pair), 1):
            findings, _ = repeats.look(known, number)
        if findings:
            raise DataError(f"{findings[0].reason} (counted in {self.out.name})")


def journal_path(out: Path) -> Path:
    """The journal beside a preference file."""
    return out.with_name(f"{out.name}.labels.jsonl")


def _pair_lines(decisions: list[LabelDecision]) -> str:
    return "".join(preference_line(entry.pair) for entry in decisions if entry.pair is not None)


def _replay(entries: list[dict[str, Any]]) -> list[LabelDecision]:
    decisions: list[LabelDecision] = []
    for number, entry in enumerate(entries[1:], 2):
        _apply(entry, number, decisions)
    return [decision for decision in decisions if decision.event != SKIP]


def _apply(entry: dict[str, Any], number: int, decisions: list[LabelDecision]) -> None:
    """Change the decisions as the entry of this number (counted from 1) says."""
    event = entry["event"]
    if event == UNDO:
        # Journals of earlier versions don't name the decision: it is the last.
        of = entry["of"] if "of" in entry else decisions[-1].number
        del decisions[[decision.number for decision in decisions].index(of)]
    elif event == PAIR:
        pair = _read_pair(entry, number)
        decisions.append(LabelDecision(number, PAIR, str(entry["task"]), pair))
    elif event in (TIE, BAD, SKIP):
        decisions.append(LabelDecision(number, event, str(entry["task"])))
    elif event != BEGIN:
        raise ValueError(f"line {number}: no such event: {event!r:.40}")


def _read_pair(entry: dict[str, Any], number: int) -> Preference:
    """The pair of an entry.

    Raises:
        DataError: If the preference reader would not accept it.
    """
    findings: list[Finding] = []
    prompt = read_messages(entry, "prompt", "user", findings)
    chosen = read_messages(entry, "chosen", "assistant", findings)
    rejected = read_messages(entry, "rejected", "assistant", findings)
    kind = read_text(entry.get("kind", ""), "kind", findings)
    errors = [finding.reason for finding in findings if LEVELS[finding.code] == ERROR]
    if prompt is None or chosen is None or rejected is None or kind is None:
        raise DataError(errors[0] if errors else "a pair needs a prompt and two answers")
    return Preference(prompt, chosen, rejected, kind, f"label-{number}")

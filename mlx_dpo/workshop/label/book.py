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

from mlx_dpo.errors import DataError, DiskError
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
    missing answers are to be written; these come last. A row that is a pair already has none.
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
    # Keys that choose would end up in the form of a task to write, if one came in between.
    return sorted(tasks.values(), key=lambda task: not task.is_choice)


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
        revision: Number of entries: a page that shows an older revision has missed a change.
        decisions: Decisions that stand. Skips of earlier sessions don't: those tasks come again.

    Raises:
        DataError: If `out` holds anything that is not of this journal, or the journal is damaged.
        LockedError: If another process has it open.
    """

    def __init__(self, out: Path, tasks: Sequence[Task]) -> None:
        self.out = out
        self.tasks = tasks
        self._undone: list[str] = []
        self._exported = [""]  # what `out` may hold: the last export, and those that failed since
        if not journal_path(out).exists():  # nor is it made beside a file of somebody else
            self._refuse_foreign()
        self._journal = Journal(journal_path(out))
        try:
            self._open()
        except BaseException:
            self._journal.close()
            raise

    def _open(self) -> None:
        entries = _acknowledged(self._journal.entries)
        if not entries:
            self._refuse_foreign()
            entries = [{"event": BEGIN, "salt": secrets.token_hex(8)}]
            self._journal.append(entries[0])
        try:
            self.salt = str(entries[0]["salt"])
            self.salt.encode()  # half of a surrogate pair could not be
            self.decisions = self._replay(entries)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise DataError(f"{self._journal.path}: not a journal of labels: {error}") from None
        self.revision = len(entries)
        self._refuse_foreign()
        self._export()

    def _replay(self, entries: list[dict[str, Any]]) -> list[LabelDecision]:
        """The decisions that stand; `_exported` gets what `out` holds if any entry led to that."""
        held = self._held() or ""
        pairs, wanted = 0, held.count("\n")
        decisions = list[LabelDecision]()
        for number, entry in enumerate(entries[1:], 2):
            more = _apply(entry, number, decisions)
            pairs += more
            # A kill, or a disk without room, may have come before the exports of later entries.
            if more and pairs == wanted and _pair_lines(decisions) == held:
                self._exported.append(held)
        return [decision for decision in decisions if decision.event != SKIP]

    def _held(self) -> str | None:
        """The text of the preference file; None if there is none."""
        try:
            return self.out.read_bytes().decode()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, UnicodeDecodeError):
            raise self._foreign() from None

    def _refuse_foreign(self) -> None:
        """Refuse to replace a preference file with a content that the journal does not explain."""
        if self._held() not in (None, *self._exported):
            raise self._foreign()

    def _foreign(self) -> DataError:
        return DataError(
            f"{self.out}: already holds pairs that were not labelled there (those of "
            f"{journal_path(self.out).name} are); move it away, or choose another --out"
        )

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
        self._refuse_foreign()
        self._journal.append(entry)
        self.revision += 1
        _apply(entry, self.revision, self.decisions)
        try:
            self._export()
        except DiskError as error:
            kept = f"the decision is kept in {self._journal.path.name}"
            raise DiskError(f"{error}; {kept}, and the pairs are written with the next") from None

    def _export(self) -> None:
        self._exported.append(_pair_lines(self.decisions))
        write_file(self.out, self._exported[-1])
        self._exported = self._exported[-1:]

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


def _acknowledged(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The entries but for those that the person was told had failed, and then decided again.

    Earlier versions left an entry in the journal whose flush had failed.
    """
    kept: list[dict[str, Any]] = []
    for entry in entries:
        if kept and _is_repeated(kept[-1], entry):
            kept.pop()
        kept.append(entry)
    return kept


def _is_repeated(entry: dict[str, Any], following: dict[str, Any]) -> bool:
    if entry.get("event") == SKIP or entry == {"event": UNDO}:
        return False  # a skipped task comes again, and an undo without a number is of the last
    task = entry.get("task")
    decided = entry.get("event") in (PAIR, TIE, BAD) and following.get("event") != UNDO
    return entry == following or (decided and bool(task) and following.get("task") == task)


def _apply(entry: dict[str, Any], number: int, decisions: list[LabelDecision]) -> int:
    """Change the decisions as the entry of this number (counted from 1) says.

    Returns:
        By how many pairs there are more.
    """
    event = entry["event"]
    if event == UNDO:
        # Journals of earlier versions don't name the decision: it is the last.
        of = entry["of"] if "of" in entry else decisions[-1].number
        taken = decisions.pop([decision.number for decision in decisions].index(of))
        return -(taken.pair is not None)
    elif event == PAIR:
        pair = _read_pair(entry, number)
        decisions.append(LabelDecision(number, PAIR, str(entry["task"]), pair))
        return 1
    elif event in (TIE, BAD, SKIP):
        decisions.append(LabelDecision(number, event, str(entry["task"])))
    elif event != BEGIN:
        raise ValueError(f"line {number}: no such event: {event!r:.40}")
    return 0


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

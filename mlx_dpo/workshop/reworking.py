"""Files of pairs made into others: read by the project's reader, judged, collected."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from mlx_dpo.errors import DataError
from mlx_dpo.preferences.chat import ChatFormat
from mlx_dpo.preferences.reader import read_rows, text_digest
from mlx_dpo.records import Preference
from mlx_dpo.workshop.collection import Collection

# Why a pair is not wanted, in a word or two; None where it is.
Sieve = Callable[[Preference], str | None]


def rework(
    files: Sequence[Path],
    collection: Collection,
    *,
    sieves: Sequence[Sieve] = (),
    progress: Callable[[float], None] = lambda share: None,
) -> None:
    """Take the pairs of some files into a collection.

    Rows that can't be used are left out as everywhere, and then those that a sieve does not want.
    The ids of several files are set apart by the files' names.

    Raises:
        UsageError: If a file is not there.
        DataError: If one holds no row at all.
    """
    for file, name in zip(files, _names(files), strict=True):
        for row in read_rows(file, collection.problems, compare=False):
            pair = row.preference
            if pair is None or row.code is not None:
                collection.leave_out(row.code or "wrong-type")
                continue
            why = next((why for sieve in sieves if (why := sieve(pair)) is not None), None)
            if why is not None:
                collection.leave_out(why)
                continue
            named = pair if name is None else replace(pair, id=f"{name}:{pair.id}")
            collection.take(file, row.raw, [named])
            if row.raw.number % 256 == 0:
                progress(row.raw.share)
    progress(1.0)


def of_kinds(kinds: Sequence[str]) -> Sieve:
    """Only pairs of some kinds are wanted."""
    return lambda pair: None if pair.kind in kinds else "other-kind"


def length_ratio(limit: float, chat: ChatFormat | None = None) -> Sieve:
    """The longer answer may be at most `limit` times as long as the shorter.

    Args:
        limit: At least 1.
        chat: Whose tokens are counted; characters where it is None.
    """

    def sieve(pair: Preference) -> str | None:
        sizes = _sizes(pair, chat)
        if sizes is None:
            return "template"
        return "length-ratio" if max(sizes) > limit * min(sizes) else None

    return sieve


def not_again() -> Sieve:
    """A pair that has come before is not wanted; of the same sieve's pairs, that is."""
    seen: set[bytes] = set()

    def sieve(pair: Preference) -> str | None:
        digest = text_digest(pair.prompt, pair.chosen, pair.rejected)
        if digest in seen:
            return "again"
        seen.add(digest)
        return None

    return sieve


def _sizes(pair: Preference, chat: ChatFormat | None) -> tuple[int, int] | None:
    """Lengths of both answers; None where the chat template refuses the pair."""
    if chat is None:
        chosen, rejected = (
            sum(len(turn.content) for turn in turns) for turns in (pair.chosen, pair.rejected)
        )
        return chosen, rejected
    (encoded,) = chat.encode_pairs([pair])
    if isinstance(encoded, DataError):
        return None
    example, _ = encoded
    return len(example.chosen_ids), len(example.rejected_ids)


def _names(files: Sequence[Path]) -> list[str | None]:
    """What sets the ids of each file apart: nothing where there is one file."""
    if len(files) == 1:
        return [None]
    often = Counter(file.stem for file in files)
    return [
        file.stem if often[file.stem] == 1 else f"{number}-{file.stem}"
        for number, file in enumerate(files, 1)
    ]

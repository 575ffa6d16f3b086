"""What differs: between the runs of a page, which names them, and between two answers."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from difflib import SequenceMatcher
from itertools import groupby
from pathlib import Path
from typing import Any

from mlx_dpo.insight.report.record import RunRecord
from mlx_dpo.runs.config import NOT_IN_IDENTITY, RunConfig

_PLACES = ("model", "data", "eval_data", "adapter")  # named by their last part, if that differs
_COUNTS = NOT_IN_IDENTITY - set(_PLACES)  # settings that change no result, but for these
_MOST_NAMED = 3  # settings of a name
_MOST_WORDS = 1000  # of an answer; the comparison takes time with the square of it


@dataclass(frozen=True, slots=True)
class Piece:
    """Some words of an answer, and whether the other answer has others there."""

    text: str
    is_changed: bool


def word_changes(before: str, after: str) -> tuple[list[Piece], list[Piece]]:
    """Both answers in pieces, those words marked that the other one lacks.

    White space alone is no difference. Nothing is marked where the answers have no word in common,
    nor in very long ones.
    """
    old, new = (re.findall(r"\s*\S+\s*", text) for text in (before, after))
    if max(len(old), len(new)) > _MOST_WORDS:
        return [Piece(before, False)], [Piece(after, False)]
    matcher = SequenceMatcher(
        None, [word.strip() for word in old], [word.strip() for word in new], autojunk=False
    )
    kept_old, kept_new = set[int](), set[int]()
    for start_old, start_new, size in matcher.get_matching_blocks():
        kept_old |= set(range(start_old, start_old + size))
        kept_new |= set(range(start_new, start_new + size))
    if not kept_old:
        return [Piece(before, False)], [Piece(after, False)]
    return list(_pieces(old, kept_old)), list(_pieces(new, kept_new))


def _pieces(words: Sequence[str], kept: set[int]) -> Iterator[Piece]:
    for is_kept, numbers in groupby(range(len(words)), key=kept.__contains__):
        text = "".join(words[number] for number in numbers)
        marked = text if is_kept else text.rstrip()
        yield Piece(marked, not is_kept)
        if marked != text:  # the space before a word that is not marked
            yield Piece(text[len(marked) :], False)


def run_names(runs: Sequence[RunRecord]) -> list[str]:
    """A name for each run: the settings in which it differs from the others, else its folder."""
    folders = _folder_names([run.folder for run in runs])
    differing = [
        setting.name
        for setting in fields(RunConfig)
        if setting.name not in _COUNTS
        and len({str(getattr(run.config, setting.name)) for run in runs}) > 1
    ]
    shown = differing[:_MOST_NAMED]
    values = {name: _shown_values(name, runs) for name in shown}
    names = [", ".join(values[name][number] for name in shown) for number in range(len(runs))]
    times = Counter(names)
    return [
        folder if not name else name if times[name] == 1 else f"{name} ({folder})"
        for name, folder in zip(names, folders, strict=True)
    ]


def _shown_values(name: str, runs: Sequence[RunRecord]) -> list[str]:
    """A setting of each run in words: `beta 0.1`, `no plain`, `data pairs.json`."""
    values: list[Any] = [getattr(run.config, name) for run in runs]
    if name in _PLACES:
        short = [value and Path(value).name for value in values]
        values = short if len(set(short)) == len(set(values)) else values
    words = name.replace("_", " ")
    shown = []
    for value in values:
        if value is None or value is False:
            shown.append(f"no {words}")
        elif value is True:
            shown.append(words)
        else:
            shown.append(f"{words} {value:g}" if isinstance(value, float) else f"{words} {value}")
    return shown


def _folder_names(folders: Sequence[Path]) -> list[str]:
    """Names of the runs' folders, with the parent where two are called alike."""
    names = [folder.name for folder in folders]
    is_clear = len(set(names)) == len(set(folders))
    return names if is_clear else [f"{folder.parent.name}/{folder.name}" for folder in folders]

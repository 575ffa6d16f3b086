"""Reading the word lists and phrases in `phrases/`, from which all text is made.

A file holds lists of one entry a line, each under its name in brackets:

    # A comment.
    [drink]
    tea
    orange juice

An entry of several columns has ` | ` between them. `{drink}` in an entry is a slot, to be filled by
a word of that list (`slots.fill`) or by what the code hands over. The text follows from the seed
and from the order of the entries: an entry added, removed or moved makes another text.
"""

from pathlib import Path

FOLDER = Path(__file__).parent / "phrases"

Rows = tuple[tuple[str, ...], ...]


def read(name: str) -> dict[str, tuple[str, ...]]:
    """The lists of a file by name, in the order of the file.

    Raises:
        ValueError: If an entry stands before the first name, or a name occurs twice.
    """
    lists: dict[str, list[str]] = {}
    title = None
    for number, line in enumerate((FOLDER / f"{name}.txt").read_text("utf-8").splitlines(), 1):
        entry = line.strip()
        if entry.startswith("["):
            title = entry.strip("[]")
            if title in lists:
                raise ValueError(f"{name}.txt:{number}: a second list {title!r}")
            lists[title] = []
        elif entry and not entry.startswith("#"):
            if title is None:
                raise ValueError(f"{name}.txt:{number}: an entry before the first [name]")
            lists[title].append(entry)
    return {title: tuple(entries) for title, entries in lists.items()}


def rows(entries: tuple[str, ...]) -> Rows:
    """The columns of each entry."""
    return tuple(tuple(entry.split(" | ")) for entry in entries)

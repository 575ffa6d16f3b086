"""How hard the prose of the documents is to read.

    python -m tools.reading_level             # a line for every page
    python -m tools.reading_level README.md   # and the sentences of a page that are too long

The grade is Flesch and Kincaid's, the school year (US) in which such a text is read with ease:

    0.39 * words / sentences + 11.8 * syllables / words - 15.59

Counted is running text: no code blocks, tables, headings or comments, and not what benchmarks write
between marks; of a link its text. A code span, a formula and a number are each one word of a
sentence, and do not count for syllables a word. A blank line, a list item and one of . ! ? end a
sentence. Syllables are groups of vowels, less those that are usually silent.
"""

import argparse
import os
import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LONGEST = 35  # words of a sentence
FOLDERS = ("benchmarks", "checkpoints", "data/dpo")

FENCE = re.compile(r"^( *)```.*?^\1```$", re.M | re.S)
NOT_PROSE = (
    FENCE,
    re.compile(r"<!-- begin .*?<!-- end [\w ]+-->", re.S),  # what benchmarks write
    re.compile(r"<!--.*?-->", re.S),
    re.compile(r"\$\$.*?\$\$", re.S),
    re.compile(r"^ *\|.*$", re.M),  # tables
    re.compile(r"^#.*$", re.M),
    re.compile(r"!\[[^\]]*\]\([^)]*\)"),  # pictures
)
LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)")
CODE = re.compile(r"`[^`\n]+(?:\n[^`\n]+)?`|\$[^$\n]+\$")
ITEM = re.compile(r"^ *(?:[-*]|\d+\.) ", re.M)
# Not after initials and "e.g.", and only where the next word begins like a sentence.
END = re.compile(r"(?<![ .][A-Za-z])[.!?][\"')*_]*\s+(?=[\"'(*_]*[A-Z0-9])|\n\s*\n")
WORD = re.compile(r"[A-Za-z]+(?:'[A-Za-z]+)*|\d[\d.,]*")


@dataclass(frozen=True)
class Level:
    """What was counted on a page."""

    sentences: tuple[str, ...]
    words: int
    syllables_a_word: float

    @property
    def words_a_sentence(self) -> float:
        """Mean length of a sentence, in words."""
        return self.words / len(self.sentences)

    @property
    def grade(self) -> float:
        """Flesch-Kincaid grade."""
        return 0.39 * self.words_a_sentence + 11.8 * self.syllables_a_word - 15.59

    @property
    def longest(self) -> int:
        """Words of the longest sentence."""
        return max(len(WORD.findall(sentence)) for sentence in self.sentences)


def prose(markdown: str) -> str:
    """Running text of a page; a code span or formula becomes a number."""
    for pattern in NOT_PROSE:
        markdown = pattern.sub("", markdown)
    text = CODE.sub("0", LINK.sub(r"\1", markdown))
    return ITEM.sub("\n\n", text)


def syllables(word: str) -> int:
    """Syllables of an English word, about."""
    word = re.sub(r"[^a-z]", "", word.lower())
    count = len(re.findall(r"[aeiouy]+", word))
    if re.search(r"[^aeiouyl]e$|[^aeioutdy]ed$|[^aeiouysxzcgh]es$|[aeiouy]le$|gues?$", word):
        count -= 1  # a silent e: "take", "used", "makes"; not "table", "added", "boxes"
    apart = r"[^aeiouycst]ia|[^r]ien|io(?![nu])|[iu]ou|[^qg]ua[lt]|eat[eio]|[aeiouy]ing$|[ao]yer"
    count += len(re.findall(apart, word))  # two vowels in two syllables: "dialogue", "being"
    return max(count, 1)


def level(markdown: str) -> Level:
    """Counts of a page in Markdown.

    Raises:
        ValueError: If it has no running text.
    """
    pieces = (" ".join(piece.split()) for piece in END.split(prose(markdown)))
    sentences = tuple(piece for piece in pieces if WORD.search(piece))
    if not sentences:
        raise ValueError("no running text")
    found = [word for sentence in sentences for word in WORD.findall(sentence)]
    spoken = [syllables(word) for word in found if word[0].isalpha()]
    return Level(sentences, len(found), sum(spoken) / len(spoken))


def words(markdown: str) -> int:
    """Words of a page, tables and headings too; code blocks are not counted."""
    return len(FENCE.sub("", markdown).split())


def pages() -> list[Path]:
    """The pages for users: all but those about the tests' own files."""
    others = ("README.md", "CONTRIBUTING.md", *(f"{p}/README.md" for p in FOLDERS))
    return [*(ROOT / name for name in others), *sorted(ROOT.glob("docs/*.md"))]


def main() -> None:
    """Print a line for each page, and the long sentences of pages that are named."""
    parser = argparse.ArgumentParser(description="Reading level of the documents")
    parser.add_argument("page", nargs="*", type=Path)
    named = parser.parse_args().page
    for page in named or pages():
        text = page.read_text("utf-8")
        found = level(text)
        print(
            f"{found.grade:5.1f}  {found.words_a_sentence:5.1f} words a sentence, "
            f"longest {found.longest:3d}, {words(text):5d} words  {os.path.relpath(page)}"
        )
        for sentence in found.sentences if named else ():
            if len(WORD.findall(sentence)) > LONGEST:
                print(f"    {sentence}")


if __name__ == "__main__":
    main()

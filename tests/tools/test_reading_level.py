"""The pages stay as easy to read as they are, and the README as short."""

import re
from pathlib import Path

import pytest

from tools.reading_level import LONGEST, ROOT, level, pages, prose, syllables, words

GRADE = 7.0  # of Flesch and Kincaid; a page of today has 6.2 at most
MEAN = 16.0  # words of a sentence
README_WORDS = 1300
SHORT_ANSWER = 150  # words


@pytest.mark.parametrize(
    ("word", "count"),
    [
        *(("take", 1), ("used", 1), ("table", 2), ("added", 2), ("boxes", 2), ("model", 2)),
        *(("gradient", 3), ("memory", 3), ("dialogue", 3), ("evaluated", 5), ("rule", 1)),
        *(("equal", 2), ("being", 2), ("preference", 3), ("trained", 1), ("various", 3)),
    ],
)
def test_syllables_are_counted(word: str, count: int) -> None:
    assert syllables(word) == count


def test_the_grade_is_that_of_the_formula() -> None:
    found = level("The cat sat. It ate a `long(code)` span.")  # 3 and 5 words, of 1 syllable each
    assert (found.words, found.words_a_sentence, found.longest) == (8, 4.0, 5)
    assert found.grade == pytest.approx(0.39 * 4 + 11.8 - 15.59)


def test_only_running_text_is_counted() -> None:
    page = "# Head\n\nText [of a link](x.md).\n\n| a | b |\n\n```\ncode\n```\n<!-- not run: x -->\n"
    assert prose(page).split() == ["Text", "of", "a", "link."]
    assert words("one two\n\n```\nthree\n```\n| four |\n") == 5


def test_items_of_a_list_are_sentences_of_their_own() -> None:
    found = level("- one two\n- three\n\nfour e.g. five")
    assert found.sentences == ("one two", "three", "four e.g. five")


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_is_easy_to_read(page: Path) -> None:
    found = level(page.read_text("utf-8"))
    assert found.grade <= GRADE
    assert found.words_a_sentence <= MEAN
    assert found.longest <= LONGEST, "python -m tools.reading_level PAGE shows the sentence"


def test_the_readme_is_short_and_leads_with_ones_own_model() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    assert words(text) <= README_WORDS
    assert "## Your own model" in text.splitlines()[:40]


def test_the_four_explanations_are_short() -> None:
    text = (ROOT / "docs" / "explanation.md").read_text("utf-8")
    short = text.partition("## Four short answers")[2].partition("\n## ")[0]
    answers = re.split(r"^### .*$", short, flags=re.M)[1:]
    assert len(answers) == 4
    assert max(len(prose(answer).split()) for answer in answers) < SHORT_ANSWER

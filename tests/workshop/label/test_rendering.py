"""What a text can become on the page: marks of Markdown and nothing else."""

from html import escape, unescape
from html.parser import HTMLParser

import pytest

from mlx_dpo.workshop.label.rendering import (
    LONGEST,
    LONGEST_ADDRESS,
    MOST_WORDS,
    TAGS,
    Piece,
    differences,
    render,
)
from tests.workshop.label.xss import ATTACKS


class Found(HTMLParser):
    """Everything in some HTML that is not text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags = list[str]()
        self.attributes = list[tuple[str, str | None]]()
        self.other = list[str]()
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_comment(self, data: str) -> None:
        self.other.append(data)

    def handle_pi(self, data: str) -> None:
        self.other.append(data)

    def handle_decl(self, decl: str) -> None:
        self.other.append(decl)


CONTEXTS = (
    "{}",
    "# {}",
    "- a\n  - {}",
    "> {}",
    "```html\n{}",
    "```{}\nx\n```",
    "    {}",
    "`{}`",
    "| a | {} |\n| - | - |\n| {} | b |",
    "[{}](http://a.b)",
    "[a]({})",
    "[a](<{}>)",
    '![{}](http://a.b "{}")',
    "![a](<{}>)",
    "<{}>",
    "[a]: {}\n\n[a]",
    "**{}**\n~~{}~~",
)


@pytest.mark.parametrize("context", CONTEXTS)
def test_no_attack_becomes_more_than_marks_of_markdown(context: str) -> None:
    for attack in (*ATTACKS, "javascript:alert(1)", "data:text/html,<script>alert(1)</script>"):
        found = Found(render(context.replace("{}", attack)))
        assert set(found.tags) <= TAGS
        assert [name for name, _ in found.attributes if name != "start"] == []
        assert found.other == []


def test_a_text_is_shown_in_full_whatever_it_holds() -> None:
    for attack in ATTACKS:
        shown = "".join(Found(render(attack)).text.split())
        assert shown == "".join(unescape(attack).split())


def test_markdown_and_code_are_shown() -> None:
    text = "A **b**\nc\n\n3. `d`\n   - e\n\n```py\nif x < 1:\n    pass\n"
    assert render(text) == (
        "<p>A <strong>b</strong><br>\nc</p>\n"
        '<ol start="3">\n<li><code>d</code>\n<ul>\n<li>e</li>\n</ul>\n</li>\n</ol>\n'
        "<pre><code>if x &lt; 1:\n    pass\n</code></pre>\n"
    )


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("[a](http://b.c)", "<u>a</u> (http://b.c)"),
        ("<http://b.c>", "<u>http://b.c</u>"),
        ("![a](http://b.c)", "[image: a (http://b.c)]"),
        ("[![a](b)](c)", "<u>[image: a (b)]</u> (c)"),
        ("[a](javascript:alert)", "[a](javascript:alert)"),
        ("![a](data:image/png;base64,AAAA)", "[image: a (data:image/png;base64,AAAA)]"),
        (f"[a](/{'b' * 999})", f"<u>a</u> (/{'b' * (LONGEST_ADDRESS - 1)}…)"),
        ("[a]: /b\n[a]", "[a]: /b<br>\n[a]"),
    ],
)
def test_links_and_images_are_text_with_their_address(text: str, html: str) -> None:
    assert render(text) == f"<p>{html}</p>\n"


@pytest.mark.parametrize(
    "text",
    ["> " * 30 + "deep", "".join(f"{'  ' * i}- {i}\n" for i in range(30)), "**a** " * LONGEST],
)
def test_what_is_too_deep_or_too_long_is_shown_as_it_is(text: str) -> None:
    assert render(text) == f"<pre>{escape(text)}</pre>"


@pytest.mark.parametrize(
    "unit", ["[", "![", "*a **b ", "`a ``", "<a:", "[a](<b", "a|", "- a\n", "&#"]
)
def test_hostile_repetition_ends(unit: str) -> None:
    found = Found(render((unit * LONGEST)[: LONGEST // 10]))
    assert set(found.tags) <= TAGS
    assert found.text.strip()


def test_words_that_differ_are_marked_and_nothing_is_lost() -> None:
    first, second = differences("The cat sat,  there.\n", "The dog sat, there. Then\n")
    assert first == [Piece("The ", False), Piece("cat ", True), Piece("sat,  there.\n", False)]
    assert second == [
        Piece("The ", False),
        Piece("dog ", True),
        Piece("sat, there. ", False),
        Piece("Then\n", True),
    ]
    assert differences("你好世界", "你好朋友")[1] == [Piece("你好", False), Piece("朋友", True)]
    assert differences("", "") == ([], [])
    assert differences("same", "same") == ([Piece("same", False)], [Piece("same", False)])


@pytest.mark.parametrize(("a", "b"), [("x " * MOST_WORDS, "x " * MOST_WORDS + "y"), ("a b", "")])
def test_of_very_long_texts_the_common_begin_and_end_are_found(a: str, b: str) -> None:
    first, second = differences(a, b)
    assert "".join(piece.text for piece in first) == a
    assert "".join(piece.text for piece in second) == b
    long = "w " * MOST_WORDS
    assert differences(long + "a z", long + "b z") == (
        [Piece(long, False), Piece("a ", True), Piece("z", False)],
        [Piece(long, False), Piece("b ", True), Piece("z", False)],
    )

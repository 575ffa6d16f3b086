"""How texts are shown on the page: Markdown as HTML that can do nothing, or words with marks.

Texts come from models and from strangers. The parser passes no HTML through: it is shown as it is
written. The sanitiser then lets the tags of `TAGS` pass, without attributes; no link, image, form
or style is among them. And the page's policy (``server.HEADERS``) runs no script but its own.
"""

import re
from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import Any, NamedTuple

import nh3
from markdown_it import MarkdownIt
from markdown_it.common.utils import escapeHtml
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token

TAGS = frozenset(
    (
        *("p", "br", "hr", "em", "strong", "s", "u", "code", "pre", "blockquote", "ul", "ol", "li"),
        *("h1", "h2", "h3", "h4", "h5", "h6", "table", "thead", "tbody", "tr", "th", "td"),
    )
)
LONGEST = 50_000  # characters that are read as Markdown: the worst of them take about a second
LONGEST_ADDRESS = 200  # characters shown of a link's address
MOST_WORDS = 20_000  # of the two texts together, that are compared
_NESTING = 20  # levels of lists and quotes; the parser leaves out what is deeper

# A word with the space behind it. Chinese and Japanese have no spaces: there, a character.
_WORD = re.compile(
    r"[\u3040-\u30ff\u3400-\u9fff]\s*|[^\W\u3040-\u30ff\u3400-\u9fff]+\s*|[^\w\s]\s*|\s+"
)


class Piece(NamedTuple):
    """A part of a text, and whether the other text has something else there."""

    text: str
    is_different: bool


def render(text: str) -> str:
    """Markdown as HTML of `TAGS`, without any attribute but the first number of a list.

    A line break stays one. A link is its text, underlined, with the address behind it; an image
    is its description and address. What is too long or too deeply nested is shown as it is.
    """
    tokens = _MARKDOWN.parse(text) if len(text) <= LONGEST else []
    if tokens and max(token.level for token in tokens) < _NESTING - 1:
        html = _MARKDOWN.renderer.render(tokens, _MARKDOWN.options, {})
    else:
        html = f"<pre>{escapeHtml(text)}</pre>"
    return nh3.clean(
        html, tags=set(TAGS), attributes={"ol": {"start"}}, url_schemes=set(), link_rel=None
    )


def differences(first: str, second: str) -> tuple[list[Piece], list[Piece]]:
    """Each text in pieces that, put together, are the text; compared word by word.

    Of texts with more than `MOST_WORDS` words, only the common begin and end count as equal.
    """
    words = [_WORD.findall(text) for text in (first, second)]
    bare = [[word.strip() for word in of_text] for of_text in words]
    marked: tuple[list[Piece], list[Piece]] = ([], [])
    for a, b, is_different in _stretches(*bare):
        for pieces, of_text, (begin, end) in zip(marked, words, (a, b), strict=True):
            if begin < end:
                pieces.append(Piece("".join(of_text[begin:end]), is_different))
    return marked


_Stretch = tuple[tuple[int, int], tuple[int, int], bool]  # words of a, of b; whether they differ


def _stretches(a: Sequence[str], b: Sequence[str]) -> list[_Stretch]:
    if len(a) + len(b) <= MOST_WORDS:
        codes = SequenceMatcher(None, a, b).get_opcodes()
        return [((i, j), (k, m), tag != "equal") for tag, i, j, k, m in codes]
    shorter = min(len(a), len(b))
    head = next((n for n in range(shorter) if a[n] != b[n]), shorter)
    left = shorter - head
    tail = next((n for n in range(left) if a[-1 - n] != b[-1 - n]), left)
    x, y = len(a) - tail, len(b) - tail
    return [
        ((0, head), (0, head), False),
        ((head, x), (head, y), True),
        ((x, len(a)), (y, len(b)), False),
    ]


def _address(address: object) -> str:
    text = str(address)
    return escapeHtml(text if len(text) <= LONGEST_ADDRESS else text[:LONGEST_ADDRESS] + "…")


def _link_end(
    self: RendererHTML, tokens: Sequence[Token], index: int, options: Any, env: Any
) -> str:
    """The address behind a link's text, unless the text is the address."""
    begin = next(i for i in range(index, -1, -1) if tokens[i].type == "link_open")
    address = str(tokens[begin].attrs.get("href", ""))
    shown = "".join(token.content for token in tokens[begin + 1 : index])
    is_known = tokens[begin].info == "auto" or shown == address or not address
    return "</u>" if is_known else f"</u> ({_address(address)})"


def _image(self: RendererHTML, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    image = tokens[index]
    return f"[image: {escapeHtml(image.content)} ({_address(image.attrs.get('src', ''))})]"


def _parser() -> MarkdownIt:
    options = {"html": False, "breaks": True, "maxNesting": _NESTING}
    parser = MarkdownIt("commonmark", options).enable(["table", "strikethrough"])
    # The definition of a link's address would be invisible.
    parser.disable("reference")
    parser.add_render_rule("link_open", lambda *_: "<u>")
    parser.add_render_rule("link_close", _link_end)
    parser.add_render_rule("image", _image)
    return parser


_MARKDOWN = _parser()

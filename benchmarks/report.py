"""Markdown tables, and the page with the measured sections."""

from collections.abc import Sequence
from pathlib import Path

PAGE = Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; every column but the first is a number, aligned right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def with_section(page: str, name: str, body: str) -> str:
    """The page with what stands between a section's two marks replaced; added where it has none.

    Raises:
        ValueError: If a mark is there without the other, more than once, or in the wrong order.
    """
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    section = f"{begin}\n{body.strip()}\n{end}"
    if begin not in page and end not in page:
        return f"{page.rstrip()}\n\n{section}\n".lstrip()
    if page.count(begin) != 1 or page.count(end) != 1 or page.index(begin) > page.index(end):
        raise ValueError(f"the page must hold {begin!r} and {end!r}, once each and in this order")
    before, rest = page.split(begin)
    return before + section + rest.split(end)[1]


def publish(name: str, body: str, page: Path = PAGE) -> None:
    """Write a section of the page; the others stay as they are."""
    old = page.read_text("utf-8") if page.exists() else "# Benchmarks\n"
    page.write_text(with_section(old, name, body), encoding="utf-8")

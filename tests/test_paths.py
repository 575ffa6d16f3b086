"""Text of others is read in UTF-8, or refused with its line."""

from pathlib import Path

import pytest

from mlx_dpo.errors import DataError
from mlx_dpo.paths import text_of


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_text_is_read_without_a_byte_order_mark(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.txt").write_text("café", encoding=encoding)
    assert text_of(tmp_path / "a.txt") == "café"


@pytest.mark.parametrize(
    ("encoding", "reason"),
    [
        ("latin-1", "a.txt:2: byte 0xe9 is not UTF-8"),
        ("utf-16", "a.txt:1: the file is UTF-16"),
        ("utf-16-le", "a.txt:1: the file is UTF-16"),
        ("utf-16-be", "a.txt:1: the file is UTF-16"),
        ("utf-32", "a.txt:1: the file is UTF-32"),
        ("utf-32-be", "a.txt:1: the file is UTF-32"),
    ],
)
def test_text_in_another_encoding_is_named_with_its_line(
    tmp_path: Path, encoding: str, reason: str
) -> None:
    (tmp_path / "a.txt").write_text("One.\nA café.\n", encoding=encoding)
    with pytest.raises(DataError, match=reason):
        text_of(tmp_path / "a.txt", DataError)

"""Files that are whole or not there."""

from pathlib import Path

import pytest

from mlx_dpo.errors import DiskError
from mlx_dpo.files import append, cut_torn_line, new_file


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with pytest.raises(ZeroDivisionError), new_file(path) as file:
        file.write(b"half" * (1 // 0))
    assert list(tmp_path.iterdir()) == []
    with new_file(path) as file:
        file.write(b"one")
        assert not path.exists()
    assert path.read_bytes() == b"one"


def test_a_file_that_is_there_is_replaced_only_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"old")
    with pytest.raises(DiskError, match="left as it is"), new_file(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"old"
    with new_file(path, replace=True) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"", b""),
        (b"a\n", b"a\n"),
        (b"a\nb\nhalf", b"a\nb\n"),
        (b"half", b""),
        (b"a\n" + b"x" * 200_000, b"a\n"),  # longer than what is read at once
        (b"x" * 200_000 + b"\nhalf", b"x" * 200_000 + b"\n"),
    ],
)
def test_a_torn_last_line_is_cut_away(tmp_path: Path, before: bytes, after: bytes) -> None:
    path = tmp_path / "lines"
    path.write_bytes(before)
    cut_torn_line(path)
    assert path.read_bytes() == after
    append(path, "more\n")
    assert path.read_bytes() == after + b"more\n"


def test_what_cannot_be_written_is_said_in_one_line(tmp_path: Path) -> None:
    for write in (lambda path: append(path, "x"), cut_torn_line):
        with pytest.raises(DiskError, match="not written"):
            write(tmp_path / "no folder" / "file")

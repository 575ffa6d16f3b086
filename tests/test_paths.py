"""Text of others is read in UTF-8, or refused with its line; no source is written over."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from mlx.nn import Linear

from mlx_dpo.convert.conversion import check_destination
from mlx_dpo.errors import DataError, UsageError
from mlx_dpo.paths import is_inside, overlap, text_of
from mlx_dpo.runs.config import RunConfig
from mlx_dpo.runs.finished import save
from mlx_dpo.runs.folder import check_folders

TINY = Path(__file__).parent.parent / "checkpoints" / "tiny-base"


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


@pytest.fixture
def ignores_case(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands for a volume of most Macs: `A` is there under the name `a` too."""
    real_exists, real_stat, real_lexists = Path.exists, Path.stat, os.path.lexists

    def folded(path: Path) -> Path:
        return path if real_lexists(path) else Path(str(path).replace("/a", "/A"))

    monkeypatch.setattr(Path, "exists", lambda path: real_exists(folded(path)))
    monkeypatch.setattr(Path, "stat", lambda path, **options: real_stat(folded(path), **options))
    monkeypatch.setattr(os.path, "lexists", lambda path: real_lexists(folded(Path(path))))


@pytest.mark.usefixtures("ignores_case")
def test_what_exists_is_compared_as_files(tmp_path: Path) -> None:
    (tmp_path / "A").mkdir()
    assert is_inside(tmp_path / "a" / "out", tmp_path / "A")
    assert is_inside(tmp_path / "A", tmp_path / "a")
    assert not is_inside(tmp_path / "A", tmp_path / "a" / "out")
    assert not is_inside(tmp_path / "b", tmp_path / "a")


def test_names_that_differ_by_case_or_composition_alone_may_be_one_folder(tmp_path: Path) -> None:
    composed, apart = "caf\u00e9", "cafe\u0301"
    assert overlap(tmp_path / composed / "out", tmp_path / apart.upper())
    assert not overlap(tmp_path / composed, tmp_path / "cafe")


Check = Callable[[Path, Path], None]


def _convert(source: Path, out: Path) -> None:
    check_destination(source, out, True, lambda folder: True)


def _save(source: Path, out: Path) -> None:
    save(Linear(1, 1), source, out, overwrite=True)


def _train(source: Path, out: Path) -> None:
    check_folders(RunConfig(model=str(source), out=str(out), overwrite=True))


@pytest.mark.usefixtures("ignores_case")
@pytest.mark.parametrize("check", [_convert, _save, _train])
def test_a_source_is_not_written_over_by_whatever_name(tmp_path: Path, check: Check) -> None:
    source = tmp_path / "A"
    shutil.copytree(TINY, source)
    (tmp_path / "link").symlink_to(source)
    (source / "dpo.json").write_text('{"settings": {}}')
    names = ["A", "A/", "link", "a", "a/new", "A/../a", "link/new"]
    for name in names:
        with pytest.raises(UsageError, match="overlap"):
            check(source, tmp_path / name)
    with pytest.raises(UsageError, match="overlap"):
        check(tmp_path / "link", tmp_path / "a")

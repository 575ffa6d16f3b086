"""Data files as rows: JSON, CSV and Parquet, gzipped or not, in folders or on the hub.

Rows are `RawRow`s, so that every problem has a place in its file. A few are in memory at a time (a
JSON array excepted, which is one document).
"""

import csv
import gzip
import re
import shutil
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from tempfile import TemporaryDirectory

from mlx_dpo.errors import DataError, UsageError
from mlx_dpo.extras import to_install
from mlx_dpo.paths import check_encoding, check_is_text, check_ordinary, is_system_file
from mlx_dpo.preferences.json_text import MAX_ROW, Finding, RawRow, not_readable, raw_rows

DATA_FILES = (".json", ".jsonl", ".csv", ".tsv", ".parquet")
_ARROW = (".arrow", ".feather")  # what `datasets` saves; the format changes with its version
_NO_DATA = ("dataset_info.json", "dataset_dict.json", "dataset_infos.json", "state.json")
_QUOTED = re.compile('"[^"]*"')
_NOT_UTF8 = re.compile("[\udc80-\udcff]")  # how "surrogateescape" writes such bytes


def find_files(source: str, pattern: str | None = None) -> list[Path]:
    """The data files of a source, in the order of their names.

    Args:
        source: A file, a folder, or the hub id of a dataset.
        pattern: Which files of a folder or dataset, as a shell would match them.

    Raises:
        UsageError: If there is no such source, or it holds several files and no pattern says
            which.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return [path]
    if not path.is_dir():
        from mlx_dpo.models.hub import download, is_hub_id  # it imports MLX; local files need none

        if not is_hub_id(source):
            raise UsageError(f"{source}: no such file or folder, and not a hub id owner/name")
        patterns = [f"*{kind}{packed}" for kind in DATA_FILES for packed in ("", ".gz")]
        if pattern is not None:
            patterns = [pattern, f"*/{pattern}"]
        path = download(source, patterns, "dataset")
    found = sorted(path.rglob(pattern or "*"))
    files = [file for file in found if _is_data(file)]
    if not files:
        for file in found:
            _refuse_arrow(file)
            if file.is_file() and not is_system_file(file.name):
                check_is_text(file, file, UsageError)
        kinds = ", ".join(DATA_FILES)
        raise UsageError(f"{source}: holds no data file ({kinds}, also .gz) of that name")
    if len(files) > 1 and pattern is None:
        names = ", ".join(str(file.relative_to(path)) for file in files[:8])
        raise UsageError(f"{source}: holds several files; name some with --files: {names}")
    return files


def source_rows(file: Path) -> Iterator[RawRow]:
    """The rows of one file, each with its place.

    Raises:
        UsageError: If it can't be read, or is Parquet and pyarrow is not installed.
        DataError: If it is not what its name says, is Arrow, or two of its columns have the same
            name.
    """
    _refuse_arrow(file)
    suffix = _kind(file)
    try:
        with _unpacked(file) as plain:
            if suffix != ".parquet":
                check_encoding(plain, file, DataError)
            if suffix == ".parquet":
                yield from _parquet_rows(plain, file)
            elif suffix in (".csv", ".tsv"):
                yield from _csv_rows(plain, file, "\t" if suffix == ".tsv" else ",")
            else:
                yield from raw_rows(plain)
    except OSError as error:
        raise not_readable(file, error) from None


def _is_data(file: Path) -> bool:
    if is_system_file(file.name) or file.name in _NO_DATA:
        return False
    if _kind(file) not in DATA_FILES:
        return False
    check_ordinary(file)
    return file.is_file()


def _kind(file: Path) -> str:
    """The end of a file's name, without that of gzip."""
    return Path(file.name.lower().removesuffix(".gz")).suffix


def _refuse_arrow(file: Path) -> None:
    if file.suffix in _ARROW:
        raise DataError(
            f"{file}: Arrow files are not read; with the library that wrote it: "
            "datasets.load_from_disk(FOLDER).to_parquet(FILE), and import that"
        )


@contextmanager
def _unpacked(file: Path) -> Iterator[Path]:
    """The file itself, or the content of a .gz in a temporary file."""
    if file.suffix.lower() != ".gz":
        yield file
        return
    with TemporaryDirectory() as folder:
        plain = Path(folder) / "unpacked"
        try:
            with gzip.open(file) as packed, plain.open("wb") as out:
                shutil.copyfileobj(packed, out, 1 << 20)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataError(f"{file}: not a whole gzip file: {error}") from None
        yield plain


def _delimiter(text: TextIOWrapper, usual: str) -> str:
    """What stands between the names of columns: outside the US, Excel writes semicolons."""
    header = next((line for line in text if line.strip()), "")
    text.seek(0)
    bare = _QUOTED.sub("", header)
    return next((sign for sign in (usual, ";", "\t", ",") if sign in bare), usual)


def _csv_rows(path: Path, source: Path, usual: str) -> Iterator[RawRow]:
    csv.field_size_limit(MAX_ROW)
    size = max(1, path.stat().st_size)
    header: list[str] = []
    number, line = 0, 1
    with path.open("rb") as file, TextIOWrapper(file, "utf-8-sig", "surrogateescape", "") as text:
        reader = csv.reader(text, delimiter=_delimiter(text, usual))
        try:
            for cells in reader:  # a blank line has none
                if cells and not header:
                    header = _checked_names(cells, f"{source}:{line}")
                elif cells:
                    number += 1
                    row = RawRow(number, line, 1, min(1.0, file.tell() / size))
                    row.value = dict(zip(header, cells, strict=False))
                    if len(cells) != len(header):
                        reason = f"the header has {len(header)} columns, the row {len(cells)}"
                        row.findings.append(Finding("wrong-type", 0, reason))
                    elif _NOT_UTF8.search("".join(cells)):
                        reason, hint = "a byte is not UTF-8", "save the file as UTF-8"
                        row.findings.append(Finding("bad-utf8", 0, reason, hint))
                    yield row
                line = reader.line_num + 1
        except csv.Error as error:
            findings = [Finding("bad-json", 0, f"not CSV: {error}")]
            yield RawRow(number + 1, line, 1, 1.0, findings=findings, ends=True)


def _checked_names(names: list[str], place: str) -> list[str]:
    """The names of columns. Blank ones may repeat: no format uses them."""
    if _NOT_UTF8.search("".join(names)):
        raise DataError(f"{place}: the header is not UTF-8; save the file as UTF-8")
    twice = [name for name, count in Counter(names).items() if name and count > 1]
    if twice:
        raise DataError(f"{place}: two columns have the name {twice[0]!r:.60}; rename one")
    return names


def _parquet_rows(path: Path, source: Path) -> Iterator[RawRow]:
    try:
        from pyarrow import ArrowException, types
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise UsageError(
            f"{source}: reading Parquet needs pyarrow: {to_install('parquet')}"
        ) from None
    number = 0
    try:
        # Not mapped, and a few rows at a time: memory stays at the size of one row group.
        with ParquetFile(path, pre_buffer=False) as file:
            _checked_names(file.schema_arrow.names, str(source))
            # Dates and durations hold no text, and many of them no value that Python has.
            used = [
                at for at, kind in enumerate(file.schema_arrow.types) if not types.is_temporal(kind)
            ]
            total = max(1, file.metadata.num_rows)
            for batch in file.iter_batches(batch_size=256):
                for value in batch.select(used).to_pylist():
                    number += 1
                    yield RawRow(number, number, 1, number / total, value=value)
    except (ArrowException, ValueError, OverflowError) as error:
        after = f" after row {number}" if number else ""
        reason = " ".join(str(error).split())
        raise DataError(f"{source}: not readable as Parquet{after}: {reason}") from None

"""Rows from wherever they lie: JSON, CSV and Parquet files, packed or not, folders, the hub.

Each becomes `RawRow`s, so that every problem has a place. Nothing is held in memory but a few rows
(a JSON array excepted, which is one document).
"""

import csv
import gzip
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from tempfile import TemporaryDirectory

from mlx_dpo.errors import DataError, UsageError
from mlx_dpo.preferences.json_text import MAX_ROW, Finding, RawRow, not_readable, raw_rows

DATA_FILES = (".json", ".jsonl", ".csv", ".parquet")


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
    files = [file for file in sorted(path.rglob(pattern or "*")) if _is_data(file)]
    if not files:
        kinds = ", ".join(DATA_FILES)
        raise UsageError(f"{source}: holds no data file ({kinds}, also .gz) of that name")
    if len(files) > 1 and pattern is None:
        names = ", ".join(str(file.relative_to(path)) for file in files[:8])
        raise UsageError(f"{source}: holds several files; name some with --files: {names}")
    return files


def source_rows(file: Path) -> Iterator[RawRow]:
    """The rows of one file.

    Raises:
        UsageError: If it can't be read, or is Parquet and pyarrow is not installed.
        DataError: If it is not what its name says.
    """
    with _unpacked(file) as plain:
        kind = Path(file.name.removesuffix(".gz")).suffix
        try:
            if kind == ".parquet":
                yield from _parquet_rows(plain, file)
            elif kind == ".csv":
                yield from _csv_rows(plain)
            else:
                yield from raw_rows(plain)
        except OSError as error:
            raise not_readable(file, error) from None


def _is_data(file: Path) -> bool:
    return file.is_file() and Path(file.name.removesuffix(".gz")).suffix in DATA_FILES


@contextmanager
def _unpacked(file: Path) -> Iterator[Path]:
    """The file itself, or what a .gz holds, on disk and not in memory."""
    if file.suffix != ".gz":
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


def _csv_rows(path: Path) -> Iterator[RawRow]:
    csv.field_size_limit(MAX_ROW)
    with path.open("rb") as file, TextIOWrapper(file, "utf-8-sig", "surrogateescape", "") as text:
        reader = csv.DictReader(text)
        size, number = max(1, path.stat().st_size), 0
        while True:
            line = reader.line_num + 1
            try:
                row = next(reader, None)
            except csv.Error as error:
                number += 1
                reason = f"not CSV: {error}"
                yield RawRow(
                    number, line, 1, 1.0, findings=[Finding("bad-json", 0, reason)], ends=True
                )
                return
            if row is None:
                return
            number += 1
            share = min(1.0, file.tell() / size)
            found = []
            if None in row or None in row.values():
                reason = f"the row has not the {len(reader.fieldnames or ())} columns of the header"
                found.append(Finding("wrong-type", 0, reason))
            yield RawRow(number, line, 1, share, value=row, findings=found)


def _parquet_rows(path: Path, named: Path) -> Iterator[RawRow]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise UsageError(
            f"{named}: reading Parquet needs pyarrow: pip install 'mlx-dpo[parquet]'"
        ) from None
    number = 0
    try:
        # Not mapped, and a few rows at a time: memory stays what one row group needs.
        with ParquetFile(path, pre_buffer=False) as file:
            total = max(1, file.metadata.num_rows)
            for batch in file.iter_batches(batch_size=256):
                for value in batch.to_pylist():
                    number += 1
                    yield RawRow(number, number, 1, number / total, value=value)
    except ArrowException as error:
        raise DataError(f"{named}: not readable as Parquet: {error}") from None

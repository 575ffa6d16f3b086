"""Token ids on disk, so that a second run on the same data and tokenizer finds them.

A store is named by a hash of all its ids depend on. It is checked to the byte before it is used;
one that is damaged is made again.
"""

import hashlib
import json
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mlx_dpo.errors import DataError, DiskError
from mlx_dpo.files import make_folder, new_folder
from mlx_dpo.preferences.documents import not_readable, open_file
from mlx_dpo.preferences.ingest import Tokenising, ingest
from mlx_dpo.preferences.problems import Problems
from mlx_dpo.preferences.store import TokenStore, open_store, seal
from mlx_dpo.preferences.tokens import ChatFormat

FOLDER = Path("runs/.tokens")  # one for all runs, so that they share it
ENCODING_VERSION = "2"  # changes whenever the same row would give other ids, flags or codes

Progress = Callable[[int, int], None]


def token_store(
    path: Path,
    chat: ChatFormat,
    *,
    max_length: int,
    keep: bool = True,
    progress: Progress | None = None,
) -> TokenStore:
    """The rows of a preference file as token ids: from disk, or read and tokenised now.

    Args:
        path: The preference file.
        chat: The model's conversation format.
        max_length: Tokens kept of prompt + response.
        keep: Whether a later run may find them.
        progress: Told how many of the file's bytes have been dealt with; not called where the
            store was found.

    Raises:
        UsageError: If there is no such file.
        DataError: If it holds no row at all, or changed while it was read.
        DiskError: If the store can't be written.
    """
    digest, tokenizer = file_digest(path), tokenizer_digest(chat)
    parts = (ENCODING_VERSION, digest, str(tokenizer), str(max_length))
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    make = partial(_make, key, path, digest, Tokenising(chat, max_length), progress)
    if not keep or tokenizer is None:
        with TemporaryDirectory() as temporary:
            return make(Path(temporary))  # what is mapped stays readable without its name
    place = FOLDER / key[:32]
    found = open_store(place, key)
    if found is None:
        make_folder(FOLDER)
        with new_folder(place, replace=True) as folder:
            found = make(folder)
    return found


def file_digest(path: Path) -> str:
    """sha256 of a preference file.

    Raises:
        UsageError: If it can't be read.
    """
    try:
        with open_file(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise not_readable(path, error) from None


def tokenizer_digest(chat: ChatFormat) -> str | None:
    """sha256 of all that decides how a conversation becomes ids.

    None where that can't be known: the template writes the date, or the tokenizer is a program.
    """
    tokenizer = chat.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    template = json.dumps(tokenizer.chat_template, sort_keys=True, default=str)
    if backend is None or "strftime" in template:
        return None
    parts: list[Any] = [backend.to_str(), template, type(tokenizer).__name__]
    parts += [chat.has_template, chat.closing_id, chat.closing_text, chat.adds_bos]
    parts += [tokenizer.special_tokens_map]
    parts += [version(name) for name in ("transformers", "tokenizers", "mlx-lm", "jinja2")]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _make(
    key: str,
    path: Path,
    digest: str,
    tokenising: Tokenising,
    progress: Progress | None,
    folder: Path,
) -> TokenStore:
    """Fill a folder with the store of a file, and open it."""
    size = path.stat().st_size

    def told(share: float) -> None:
        if progress is not None:
            progress(round(share * size), size)

    with (
        (folder / "tokens.bin").open("wb") as tokens,
        (folder / "problems.jsonl").open("w", encoding="utf-8") as log,
    ):
        problems = Problems(log)
        found = ingest(path, problems, tokenising._replace(tokens=tokens), told)
    if file_digest(path) != digest:
        raise DataError(f"{path}: changed while it was read; start again")
    seal(
        folder,
        key,
        found.table,
        read=found.read,
        unusable=found.unusable,
        cut_short=problems.cut_short,
    )
    store = open_store(folder, key)
    if store is None:
        raise DiskError(f"{folder}: can't be read back as it was written; check the disk")
    return store

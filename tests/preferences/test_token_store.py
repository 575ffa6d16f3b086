"""Token ids on disk: found again where all they depend on is the same, made again otherwise."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlx_dpo.convert.sources import load_tokenizer
from mlx_dpo.errors import DataError, UsageError
from mlx_dpo.preferences import store as store_module
from mlx_dpo.preferences.chat import ChatFormat, chat_format
from mlx_dpo.preferences.encoding import Ingested, ingest
from mlx_dpo.preferences.store import (
    FOLDER,
    TokenStore,
    token_store,
    tokenizer_digest,
)
from mlx_dpo.records import PreferenceExample
from tests.runs.conftest import ORACLE, ROWS, workplace

__all__ = ["workplace"]  # a fixture, used by its name

DATA = Path("pairs.json")


def new_chat() -> ChatFormat:
    return chat_format(load_tokenizer(ORACLE))


@pytest.fixture(scope="module")
def chat() -> ChatFormat:
    return new_chat()


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that are read and tokenised while a test runs."""
    seen: list[Path] = []

    def noted(path: Path, *args: Any) -> Ingested:
        seen.append(path)
        return ingest(path, *args)

    monkeypatch.setattr(store_module, "ingest", noted)
    return seen


def pairs(store: TokenStore) -> list[PreferenceExample]:
    return list(store.examples(np.flatnonzero(store.is_kept)))


def test_a_second_run_finds_what_the_first_one_made(
    workplace: Path, chat: ChatFormat, passes: list[Path]
) -> None:
    first = token_store(DATA, chat, max_length=256)
    told: list[int] = []
    second = token_store(
        DATA, new_chat(), max_length=256, progress=lambda done, _: told.append(done)
    )
    assert len(passes) == 1
    assert told == []
    assert pairs(second) == pairs(first)
    assert len(pairs(second)) == len(ROWS)
    assert second.ids_of(np.arange(len(ROWS))) == first.ids_of(np.arange(len(ROWS)))


def test_a_file_is_known_by_its_content_and_not_by_its_name(
    workplace: Path, chat: ChatFormat, passes: list[Path]
) -> None:
    token_store(DATA, chat, max_length=256)
    DATA.rename("other.json")
    token_store(Path("other.json"), chat, max_length=256)
    assert len(passes) == 1


@pytest.mark.parametrize("changed", ["content", "length", "tokenizer", "template", "version"])
def test_what_the_ids_depend_on_makes_another_store(
    workplace: Path,
    chat: ChatFormat,
    passes: list[Path],
    changed: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    token_store(DATA, chat, max_length=256)
    length, other = 256, new_chat()
    if changed == "content":
        DATA.write_text(json.dumps(ROWS[::-1]))
    elif changed == "length":
        length = 255
    elif changed == "tokenizer":
        other.tokenizer.add_tokens(["otter"])
    elif changed == "template":
        other.tokenizer.chat_template += " "
    else:
        monkeypatch.setattr(store_module, "ENCODING_VERSION", "next")
    token_store(DATA, other, max_length=length)
    assert len(passes) == 2
    assert len(list(FOLDER.iterdir())) == 2


@pytest.mark.parametrize("name", ["tokens.bin", "rows.safetensors", "store.json"])
def test_a_damaged_store_is_made_again(
    workplace: Path, chat: ChatFormat, passes: list[Path], name: str
) -> None:
    expected = pairs(token_store(DATA, chat, max_length=256))
    (folder,) = FOLDER.iterdir()
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    assert pairs(token_store(DATA, chat, max_length=256)) == expected
    assert len(passes) == 2
    assert pairs(token_store(DATA, chat, max_length=256)) == expected
    assert len(passes) == 2
    assert list(FOLDER.iterdir()) == [folder]


def test_nothing_is_kept_where_that_is_not_wanted(workplace: Path, chat: ChatFormat) -> None:
    store = token_store(DATA, chat, max_length=256, keep=False)
    assert not FOLDER.exists()
    assert len(pairs(store)) == len(ROWS)  # read after its folder is gone


def test_a_template_that_writes_the_date_is_kept_for_that_date(
    workplace: Path, passes: list[Path]
) -> None:
    tokenizer = new_chat().tokenizer
    tokenizer.chat_template += "{% if false %}{{ strftime_now('%Y') }}{% endif %}"
    for date in ("2024-07-26", "2024-07-27", "2024-07-26"):
        token_store(DATA, chat_format(tokenizer, date), max_length=256)
    assert len(passes) == len(list(FOLDER.iterdir())) == 2
    assert tokenizer_digest(replace(chat_format(tokenizer), date=None)) is None  # the clock's


def test_the_closing_token_is_part_of_the_tokenizer(chat: ChatFormat) -> None:
    assert tokenizer_digest(chat) == tokenizer_digest(new_chat())
    assert tokenizer_digest(replace(chat, closing_id=5)) != tokenizer_digest(chat)


def test_a_file_that_changes_while_it_is_read_leaves_no_store(
    workplace: Path, chat: ChatFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(*args: Any) -> Ingested:
        found = ingest(*args)
        DATA.write_text(json.dumps(ROWS[:3]))
        return found

    monkeypatch.setattr(store_module, "ingest", slow)
    with pytest.raises(DataError, match=r"pairs\.json: changed while it was read"):
        token_store(DATA, chat, max_length=256)
    assert list(FOLDER.iterdir()) == []


def test_a_file_that_is_not_there_is_named(chat: ChatFormat, workplace: Path) -> None:
    with pytest.raises(UsageError, match=r"nothing\.json"):
        token_store(Path("nothing.json"), chat, max_length=256)

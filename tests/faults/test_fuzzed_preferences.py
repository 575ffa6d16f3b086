"""Preference files with mistakes nobody thought of: no traceback, and the sum always right."""

from pathlib import Path

import pytest

from mlx_dpo.preferences.encoding import Tokenizing
from tests.faults import fuzz

pytestmark = pytest.mark.survival

SIZE = 150


@pytest.fixture(scope="module")
def tokenizing() -> Tokenizing:
    return fuzz.tokenizing()


@pytest.mark.parametrize("kind", sorted(fuzz.KINDS))
def test_every_row_of_a_fuzzed_file_is_kept_or_counted(
    tmp_path: Path, tokenizing: Tokenizing, kind: str
) -> None:
    for number in range(SIZE):
        fuzz.attempt(tmp_path / "pairs.json", kind, number, tokenizing)

"""A course artifact written by PyTorch, and the numbers it gives there (see README.md)."""

import json
from functools import cache
from pathlib import Path
from typing import Any

from mlx_dpo.records import PreferenceExample

FOLDER = Path(__file__).parent
ARTIFACT = FOLDER / "artifacts" / "models" / "StoryLM-1M-SFT"
TOKENIZER = FOLDER / "artifacts" / "tokenizers" / "oracle-bpe-600" / "tokenizer.json"


@cache
def read(path: Path) -> Any:
    """A JSON file; not to be changed by the caller."""
    return json.loads(path.read_text(encoding="utf-8"))


def expected() -> Any:
    """What PyTorch made of the artifact."""
    return read(FOLDER / "expected.json")


def pairs() -> list[PreferenceExample]:
    """The five pairs as the course encodes them."""
    return [
        PreferenceExample(row["prompt_ids"], row["chosen_ids"], row["rejected_ids"])
        for row in expected()["encoded"]
    ]

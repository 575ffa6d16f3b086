"""Print the length table of a preference file: does length alone tell chosen from rejected?

    python data/dpo/lengths.py TOKENIZER_FOLDER [FILE]

Counts the tokens of each answer as written: no template, no closing token. FILE is a JSON array
of objects with `kind`, `chosen` and `rejected`, by default the `preferences.json` beside this
script. A word count stands in for any tokenizer where TOKENIZER_FOLDER is the word `words`.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path

from tokenizers import Tokenizer

DEFAULT_FILE = Path(__file__).with_name("preferences.json")
HEADER = "| kind | pairs | chosen longer | equal | rejected longer | mean gap | max ratio |"
RULE = "|---|---|---|---|---|---|---|"

Lengths = tuple[int, int]  # of the chosen and of the rejected answer, in tokens


def main(arguments: list[str]) -> int:
    """Print one table row a kind and one for the whole file; 2 for wrong usage."""
    if len(arguments) not in (1, 2):
        print(__doc__, file=sys.stderr)
        return 2
    count = token_counter(arguments[0])
    file = Path(arguments[1]) if len(arguments) == 2 else DEFAULT_FILE
    by_kind: dict[str, list[Lengths]] = {}
    for pair in json.loads(file.read_text(encoding="utf-8")):
        lengths = count(pair["chosen"]), count(pair["rejected"])
        by_kind.setdefault(pair["kind"], []).append(lengths)

    print(HEADER)
    print(RULE)
    for kind, pairs in by_kind.items():
        print(table_row(kind, pairs))
    print(table_row("**all**", [lengths for pairs in by_kind.values() for lengths in pairs]))
    return 0


def token_counter(folder: str) -> Callable[[str], int]:
    """The function that counts the tokens of a text by the tokenizer in this folder."""
    if folder == "words":
        return lambda text: len(text.split())
    tokenizer = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)


def table_row(name: str, pairs: list[Lengths]) -> str:
    """One Markdown row; the gap is chosen minus rejected, the ratio longer over shorter."""
    longer = sum(chosen > rejected for chosen, rejected in pairs) / len(pairs)
    shorter = sum(chosen < rejected for chosen, rejected in pairs) / len(pairs)
    gap = sum(chosen - rejected for chosen, rejected in pairs) / len(pairs)
    ratio = max(max(lengths) / max(1, min(lengths)) for lengths in pairs)
    shares = f"{longer:.2f} | {1 - longer - shorter:.2f} | {shorter:.2f}"
    return f"| {name} | {len(pairs)} | {shares} | {gap:+.2f} | {ratio:.2f} |"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

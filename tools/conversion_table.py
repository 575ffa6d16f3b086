"""Convert tiny random models both ways beside transformers, and print the table of the docs.

    python -m tools.conversion_table           # print it
    python -m tools.conversion_table --write   # and put it into docs/conversion.md

Needs torch. A line stands for models made and saved by transformers, converted to MLX and back
with every proof on.
"""

import re
import sys
import tempfile
from pathlib import Path

from mlx_dpo.convert.conversion import Options, convert
from tests.convert.tiny import CASES, model_type, save_with_transformers

DOCS = Path(__file__).parent.parent / "docs" / "conversion.md"
MARKS = ("<!-- table: python -m tools.conversion_table --write -->", "<!-- end of table -->")
_DIFFERENCE = re.compile(r"largest difference (\S+) of (\S+),")


def measure(case: str, folder: Path) -> tuple[float, float]:
    """Largest logit difference of a case, both ways, and the largest logit."""
    save_with_transformers(case, folder / "source")
    lines: list[str] = []
    convert(folder / "source", folder / "mlx", Options(), lines.append)
    convert(folder / "mlx", folder / "back", Options(), lines.append)
    differences = [(float(d), float(m)) for d, m in _DIFFERENCE.findall("\n".join(lines))]
    if len(differences) != 2:
        raise SystemExit(f"{case}: torch was not asked:\n" + "\n".join(lines))
    return max(differences)


def table() -> str:
    """The table in Markdown: a line an architecture, the largest difference of its cases."""
    rows: dict[str, list[tuple[str, float, float]]] = {}
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            difference, largest = measure(case, Path(folder))
        rows.setdefault(model_type(case), []).append((case.partition(":")[2], difference, largest))
    lines = [
        "| architecture | models | largest difference | largest logit |",
        "|---|---|---|---|",
    ]
    for architecture, cases in rows.items():
        _, difference, largest = max(cases, key=lambda case: case[1] / case[2])
        names = ", ".join(name or "plain" for name, _, _ in cases)
        lines.append(f"| {architecture} | {names} | {difference:.1e} | {largest:.2f} |")
    return "\n".join(lines)


def main() -> None:
    """Print the table, and write it with --write."""
    rows = table()
    print(rows)
    if "--write" in sys.argv[1:]:
        text = DOCS.read_text(encoding="utf-8")
        before, rest = text.split(MARKS[0])
        after = rest.split(MARKS[1])[1]
        DOCS.write_text(f"{before}{MARKS[0]}\n{rows}\n{MARKS[1]}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()

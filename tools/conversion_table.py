"""Compare mlx-lm with transformers: conversions both ways, and what every setting means to them.

    python -m tools.conversion_table                  # print the tables of docs/conversion.md
    python -m tools.conversion_table --write          # and write them, and models/verified.json
    python -m tools.conversion_table --write phi3 glm # only these architectures, the others stay

Needs torch, and half an hour for all. Models are made and saved by transformers, random and tiny;
each is converted to MLX and back with every proof on, and its settings are tried by
`tools.forward_pass`.
"""

import json
import re
import sys
import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mlx_dpo.convert.conversion import Options, closed_way_back, convert
from mlx_dpo.models import verified
from tests.convert.tiny import CASES, model_type, save_with_transformers
from tools.config_values import ROPES
from tools.forward_pass import examine
from tools.tiny_models import EXTRA, SIZES, tiny_config, tiny_model

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs" / "conversion.md"
FOUND = ROOT / "mlx_dpo" / "models" / "verified.json"
_NAMES = ("idle", "null")  # of a row, without those that are idle everywhere
_GROUPS = (  # of a row, each a line
    ("wrong",),
    ("any",),
    ("idle",),
    ("only", "but", "up_to", "null", "not_null", "absent", "required", "inside"),
    ("rope",),
)
_DIFFERENCE = re.compile(r"largest difference (\S+) of (\S+),")


def measure(save: Callable[[Path], Any], folder: Path) -> tuple[float, float, bool]:
    """Largest logit difference of a model both ways, the largest logit, and whether both are open.

    Args:
        save: Writes the model as transformers does.
        folder: An empty folder.
    """
    save(folder / "source")
    lines: list[str] = []
    convert(folder / "source", folder / "mlx", Options(), lines.append)
    is_open = closed_way_back(folder / "mlx") is None
    if is_open:
        convert(folder / "mlx", folder / "back", Options(), lines.append)
    found = [(float(d), float(m)) for d, m in _DIFFERENCE.findall("\n".join(lines))]
    if len(found) != 1 + is_open:
        raise SystemExit("torch was not asked:\n" + "\n".join(lines))
    return *max(found), is_open


def save_tiny(kind: str) -> Callable[[Path], Any]:
    """Writes the tiny model of an architecture."""
    return lambda folder: tiny_model(tiny_config(kind)).save_pretrained(folder)


def conversions(kinds: Iterable[str], rows: dict[str, Any]) -> str:
    """The table of conversions: a line an architecture, the largest difference of its models."""
    lines = [
        "| architecture | models | largest difference | largest logit | way back |",
        "|---|---|---|---|---|",
    ]
    for kind in sorted(kinds):
        if rows[kind].get("wrong"):
            continue
        savers: dict[str, Callable[[Path], Any]] = {"defaults": save_tiny(kind)}
        for case in CASES:
            if model_type(case) == kind:
                name = case.partition(":")[2] or "plain"
                savers[name] = partial(save_with_transformers, case)
        found = []
        for save in savers.values():
            with tempfile.TemporaryDirectory() as folder:
                found.append(measure(save, Path(folder)))
        difference, largest, _ = max(found, key=lambda each: each[0] / each[1])
        back = "yes" if all(is_open for _, _, is_open in found) else "closed"
        names = ", ".join(savers)
        lines.append(f"| {kind} | {names} | {difference:.1e} | {largest:.2f} | {back} |")
    return "\n".join(lines)


def settings(rows: dict[str, Any]) -> str:
    """The table of settings: a line an architecture."""
    harmless = harmless_in(rows)
    lines = [
        "| architecture | verified | no effect | only with these values | positions | up to |",
        "|---|---|---|---|---|---|",
    ]
    for kind, row in sorted(rows.items()):
        if row.get("wrong"):
            lines.append(f"| {kind} | | | refused: other logits whatever its config says | | |")
            continue
        only = "; ".join(f"`{name}`: {_values(each)}" for name, each in row["only"].items())
        but = "; ".join(f"`{n}`: all but {_values(v)}" for n, v in row.get("but", {}).items())
        never_null = ", ".join(f"`{name}`" for name in row.get("not_null", ()))
        null = f"not null: {never_null}" if never_null else ""
        required = ", ".join(f"`{name}`" for name in row.get("required", ()))
        only = "; ".join(filter(None, (only, but, null, required and f"not left out: {required}")))
        ropes = ", ".join(row.get("rope", {})) or "none"
        up_to = ", ".join(f"`{name}`" for name in row.get("up_to", ()))
        counts = f"{len(row.get('any', ()))} | {len(set(row.get('idle', ())) - harmless)}"
        lines.append(f"| {kind} | {counts} | {only} | {ropes} | {up_to} |")
    return "\n".join(lines)


def _values(accepted: Any) -> str:
    if isinstance(accepted, str):
        return accepted
    if isinstance(accepted, dict):
        return "lists of " + ", ".join(accepted["of"])
    return ", ".join(each if isinstance(each, str) else json.dumps(each) for each in accepted)


def harmless_in(rows: dict[str, Any]) -> set[str]:
    """Settings that have no effect anywhere."""
    idle = {name for row in rows.values() for name in row.get("idle", ())}
    used = {
        name
        for row in rows.values()
        for key in ("any", "only", "but", "up_to", "not_null", "absent")
        for name in row.get(key, ())
    }
    return (idle | set(verified.table()["harmless"])) - used


def write_rows(rows: dict[str, Any]) -> None:
    """Write verified.json; what has no effect anywhere is listed once."""
    harmless = sorted(harmless_in(rows))
    lines = []
    for kind, row in sorted(rows.items()):
        row = {k: [n for n in v if n not in harmless] if k in _NAMES else v for k, v in row.items()}
        groups = [{key: row[key] for key in keys if key in row} for keys in _GROUPS]
        parts = [json.dumps(group)[1:-1] for group in groups if group]
        lines.append(f"{json.dumps(kind)}: {{\n  " + ",\n  ".join(parts) + "\n}")
    versions = {name: version(name) for name in ("transformers", "mlx-lm")}
    sizes = sorted(SIZES)
    head = f'"versions": {json.dumps(versions)},\n"sizes": {json.dumps(sizes)}'
    ropes = {kind: list(names) for kind, names in ROPES.items()}
    head += f',\n"rope": {json.dumps(ropes)}'
    head += f',\n"harmless": {json.dumps(harmless)}'
    body = ",\n".join(lines)
    FOUND.write_text(f'{{\n{head},\n"architectures": {{\n{body}\n}}\n}}\n', encoding="utf-8")


def put(name: str, table: str) -> None:
    """Write a table between its marks in docs/conversion.md."""
    text = DOCS.read_text(encoding="utf-8")
    begin, end = (
        f"<!-- {name}: python -m tools.conversion_table --write -->",
        f"<!-- end of {name} -->",
    )
    before, rest = text.split(begin)
    after = rest.split(end)[1]
    DOCS.write_text(f"{before}{begin}\n{table}\n{end}{after}", encoding="utf-8")


def main() -> None:
    """Print the tables, and write them with --write."""
    names = [word for word in sys.argv[1:] if not word.startswith("--")]
    rows = dict(verified.table()["architectures"])
    harmless = verified.table()["harmless"]
    for kind, row in rows.items():
        if not row.get("wrong"):
            rows[kind] = row | {"idle": sorted({*row.get("idle", ()), *harmless})}
    for kind in names or EXTRA:
        print(kind, file=sys.stderr)
        rows[kind] = examine(kind)
    tables = {"conversions": conversions(rows, rows), "settings": settings(rows)}
    for name, table in tables.items():
        print(f"{table}\n")
        if "--write" in sys.argv[1:]:
            put(name, table)
    if "--write" in sys.argv[1:]:
        write_rows(rows)


if __name__ == "__main__":
    main()

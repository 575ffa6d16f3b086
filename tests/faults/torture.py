"""`make torture`: the promises of docs/reliability.md, tried until somebody believes them.

Each row runs alone too, in as many processes as asked for, and prints the seed that repeats it:

    python -m tests.faults.torture
    python -m tests.faults.torture --full
    python -m tests.faults.torture kills=20 starts --seed 7 --jobs 1

Without --full, rows that would take an hour are tried less often. The outcome of a row becomes a
line of runs/torture.jsonl. With --resume, rows that are there in full are left out; the table of
--write is made from the last line of each row.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.faults.rows import ROWS, Outcome

PAGE, LOG = Path("docs/reliability.md"), Path("runs/torture.jsonl")
BEGIN, END = "<!-- table by make torture -->", "<!-- end of table -->"

Record = dict[str, Any]


def measure(name: str, count: int, seed: int, jobs: int) -> Record:
    """Run a row in `jobs` processes, each with a seed of its own, and add up."""
    began = time.perf_counter()
    jobs = min(jobs, count) if ROWS[name].sharded else 1
    shards = []
    for job in range(jobs):
        share = count // jobs + (job < count % jobs)
        command = [sys.executable, "-m", "tests.faults.torture", f"{name}={share}", "--here"]
        command += ["--seed", str(seed + job)]
        shards.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
    outcomes = []
    for shard in shards:
        text, _ = shard.communicate()
        outcomes.append(
            Outcome(*json.loads(text)) if shard.returncode == 0 else Outcome(1, 0, {"died": 1})
        )
    return {
        "row": name,
        "full": count == ROWS[name].full
        and not any("died" in outcome.among for outcome in outcomes),
        "tries": sum(outcome.tries for outcome in outcomes),
        "good": sum(outcome.good for outcome in outcomes),
        "among": dict(sum((Counter(outcome.among) for outcome in outcomes), Counter())),
        "seeds": [seed + job for job in range(jobs)],
        "seconds": round(time.perf_counter() - began, 1),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors, "
        f"MLX {version('mlx')}",
    }


def known() -> dict[str, Record]:
    """The last line of the log for each row."""
    lines = LOG.read_text().splitlines() if LOG.exists() else []
    return {record["row"]: record for record in map(json.loads, lines)}


def table(records: dict[str, Record]) -> str:
    """The rows as Markdown, in the order of `ROWS`."""
    rows = [(ROWS[name].says, records[name]) for name in ROWS if name in records]
    lines = ["| accident | tried | as promised | | seconds |", "| --- | ---: | ---: | --- | ---: |"]
    for says, record in rows:
        notes = ", ".join(f"{count} {what}" for what, count in record["among"].items())
        tries = f"{record['tries']}"
        if not record["full"]:
            tries += f" of {ROWS[record['row']].full}"
        lines.append(
            f"| {says} (`{record['row']}`) | {tries} | {record['good']} | {notes} | "
            f"{record['seconds']:.0f} |"
        )
    minutes = sum(record["seconds"] for _, record in rows) / 60
    machines = "; ".join(dict.fromkeys(record["machine"] for _, record in rows))
    seeds = " and ".join(map(str, sorted({seed for _, record in rows for seed in record["seeds"]})))
    return "\n".join([*lines, "", f"{minutes:.0f} minutes on {machines}; seeds: {seeds}."])


def main() -> int:
    """Run rows, keep what they found, print the table, and put it into the page if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="*", metavar="row[=tries]", help=", ".join(ROWS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--full", action="store_true", help="the largest size of each row")
    parser.add_argument("--resume", action="store_true", help=f"leave out what {LOG} has in full")
    parser.add_argument("--write", action="store_true", help=f"put the table into {PAGE}")
    parser.add_argument("--here", action="store_true", help="one row in this process, as JSON")
    arguments = parser.parse_args()
    sizes = {name: count for name, _, count in (row.partition("=") for row in arguments.rows)}
    names = list(sizes or ROWS)
    if unknown := set(names) - set(ROWS):
        parser.error(f"no row {', '.join(sorted(unknown))}; rows: {', '.join(ROWS)}")
    if arguments.here:
        _run_here(names[0], int(sizes[names[0]]), arguments.seed)
        return 0
    for name in names:
        if arguments.resume and known().get(name, {}).get("full"):
            continue
        row = ROWS[name]
        count = int(sizes.get(name) or (not arguments.full and row.usual) or row.full)
        record = measure(name, count, arguments.seed, arguments.jobs)
        LOG.parent.mkdir(exist_ok=True)
        with LOG.open("a") as log:
            log.write(json.dumps(record) + "\n")
        print(json.dumps(record), flush=True)
    records = known()
    print(table(records))
    if arguments.write:
        page = PAGE.read_text(encoding="utf-8")
        head, rest = page.split(BEGIN)
        PAGE.write_text(f"{head}{BEGIN}\n{table(records)}\n{END}{rest.split(END)[1]}")
    return 0 if all(records[name]["good"] == records[name]["tries"] for name in names) else 1


def _run_here(name: str, count: int, seed: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(ROWS[name].run(Path(folder) / "w", count, seed)))


if __name__ == "__main__":
    sys.exit(main())

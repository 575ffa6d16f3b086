"""Reading and tokenising 1,000 to 100,000 pairs: CPU seconds, memory, size of the cache.

    python -m benchmarks.data [--model FOLDER] [--pairs N ...]

Prints a table and writes it to docs/benchmarks.md. Each row is measured in processes of its own:
the first reads, checks and tokenises the file, the second finds the token ids, a third visits every
pair once.
"""

import argparse
import json
import math
import os
import random
import re
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.report import publish, table
from benchmarks.workload import machine

ROOT = Path(__file__).parent.parent
PAIRS = (1_000, 10_000, 100_000)
# Median words; lengths are log-normal, so that some texts are several times as long.
PROMPT, RESPONSE, SPREAD = 40, 55, 0.6
NEW_WORDS = 0.03  # share of words that no other text holds
KINDS = ("advice", "code", "facts", "style", "summary")


def words() -> list[str]:
    """The words of the hand-written pairs, as often as they stand there."""
    pairs = json.loads((ROOT / "data/dpo/preferences.json").read_text(encoding="utf-8"))
    text = " ".join(f"{row['user']} {row['chosen']} {row['rejected']}" for row in pairs)
    return re.findall(r"[A-Za-z][a-z']*[.,?]?", text)


def rows(count: int, seed: int = 0) -> Iterator[dict[str, str]]:
    """Pairs of natural lengths, the same every time."""
    rng = random.Random(seed)
    known = words()

    def text(median: int) -> str:
        length = max(3, round(rng.lognormvariate(math.log(median), SPREAD)))
        chosen = rng.choices(known, k=length)
        for place in range(length):
            if rng.random() < NEW_WORDS:
                chosen[place] = "".join(rng.choices("aeioubcdlmnrst", k=rng.randint(4, 10)))
        return " ".join(chosen)

    for number in range(count):
        yield {
            "id": f"row-{number}",
            "kind": KINDS[number % len(KINDS)],
            "prompt": text(PROMPT),
            "chosen": text(RESPONSE),
            "rejected": text(RESPONSE),
        }


def measure(file: str, model: str, visit: bool) -> dict[str, float]:
    """Load the pairs of a run in this process, whose memory is looked at."""
    from mlx_dpo.convert.sources import load_tokenizer
    from mlx_dpo.preferences import worker
    from mlx_dpo.preferences.chat import chat_format
    from mlx_dpo.runs.config import RunConfig
    from mlx_dpo.runs.data import load_data

    chat = chat_format(load_tokenizer(model))
    worker.end()  # so that the processor time of another one counts
    before = sum(os.times()[2:4])
    idle = forget_peak()
    begin = time.process_time()
    data = load_data(RunConfig(model=model, data=file), chat)
    seconds = time.process_time() - begin
    worker.end()
    worker_seconds = sum(os.times()[2:4]) - before
    sides = (data.train.examples, data.held_out.examples)
    tokens = sum(sum(map(len, pair)) for side in sides for pair in side) if visit else 0
    return {
        "seconds": seconds + worker_seconds,
        "worker": worker_seconds,
        "growth": peak() - idle,
        "rows": data.account.read,
        "tokens": tokens,
    }


def forget_peak() -> int:
    """Bytes resident now; the peak counts from here where the system can do that (Linux)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return peak()


def peak() -> int:
    """Most bytes that have been resident."""
    try:
        status = Path("/proc/self/status").read_text()
        return 1024 * int(re.findall(r"VmHWM:\s+(\d+)", status)[0])
    except OSError:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else 1024 * most


def in_process(folder: str, file: str, model: str, *more: str) -> dict[str, float]:
    """`measure` in a new process, whose working folder holds the cache."""
    command = [sys.executable, "-m", "benchmarks.data", "--measure", file, "--model", model]
    ran = subprocess.run(
        [*command, *more], cwd=folder, env=environment(), check=True, stdout=subprocess.PIPE
    )
    found: dict[str, float] = json.loads(ran.stdout)
    return found


def environment() -> dict[str, str]:
    """This process's, with the repository importable from anywhere."""
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def table_row(count: int, model: str) -> list[str]:
    """Write a file of `count` pairs, load it three times, and say what that cost."""
    with TemporaryDirectory() as folder:
        file = Path(folder, "pairs.jsonl")
        with file.open("w", encoding="utf-8") as out:
            out.writelines(json.dumps(row) + "\n" for row in rows(count))
        first, second, third = (
            in_process(folder, str(file), model, *more) for more in ((), (), ("--visit",))
        )
        stored = sum(f.stat().st_size for f in Path(folder, "runs").rglob("*") if f.is_file())
        assert first["rows"] == second["rows"] == third["rows"] == count
        return [
            f"{count:,}",
            f"{file.stat().st_size / 1e6:.0f}",
            f"{third['tokens'] / 1e6:.1f}",
            f"{first['seconds']:.1f}",
            f"{first['worker'] / first['seconds']:.0%}",
            f"{second['seconds']:.2f}",
            *(f"{part['growth'] / 1e6:.0f}" for part in (first, second, third)),
            f"{stored / 1e6:.0f}",
        ]


HEADER = (
    *("pairs", "file MB", "M tokens", "first run CPU s", "of it worker", "second CPU s"),
    *("memory: first MB", "second MB", "visiting all MB", "cache MB"),
)


def section(rows: list[list[str]]) -> str:
    """Markdown of the page's section."""
    return "\n\n".join(
        [
            "### Reading and tokenising",
            f"`python -m benchmarks.data`; {machine()}. Pairs of natural lengths in JSON lines, "
            "checked row by row. The first run tokenises and keeps the ids; a second finds them. "
            "Memory is how far the process grows beyond what it takes with nothing read. "
            "The worker, which renders chat templates and tokenizes, is a process of its own.",
            table(HEADER, rows),
        ]
    )


def main() -> None:
    """Print the table, or one measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=str(ROOT / "checkpoints/tiny-sft"))
    parser.add_argument("--pairs", type=int, nargs="+", default=PAIRS)
    parser.add_argument("--measure", metavar="FILE", help=argparse.SUPPRESS)
    parser.add_argument("--visit", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options.model, options.visit)))
        return
    rows = []
    for count in options.pairs:
        rows.append(table_row(count, str(Path(options.model).resolve())))
        print(" | ".join(rows[-1]), flush=True)
    publish("data", section(rows))


if __name__ == "__main__":
    main()

"""`make torture`: the promises of docs/reliability.md, tried until somebody believes them.

Each row runs alone too, in as many processes as asked for, and prints the seed that repeats it:

    python -m tests.faults.torture
    python -m tests.faults.torture kills=20 starts --seed 7 --jobs 1
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.faults import lives, saves
from tests.faults.damage import damages
from tests.faults.small_disks import filled_and_freed

PAGE = Path("docs/reliability.md")
BEGIN, END = "<!-- table by make torture -->", "<!-- end of table -->"


class Outcome(NamedTuple):
    """What a row found: tries, and those that were as promised."""

    tries: int
    good: int
    note: str = ""


class Row(NamedTuple):
    """One kind of accident.

    Attributes:
        says: What is done, for the table.
        full: How often, in full.
        run: Given an empty folder, how often, and a seed.
    """

    says: str
    full: int
    run: Callable[[Path, int, int], Outcome]


def boundaries(mode: str) -> Callable[[Path, int, int], Outcome]:
    """A row that needs no seed: every boundary there is, once."""

    def run(folder: Path, count: int, seed: int) -> Outcome:
        tried = saves.every_boundary(folder, mode, _tell) if count else 0
        return Outcome(abs(tried), max(tried, 0))

    return run


def damaged(folder: Path, count: int, seed: int) -> Outcome:
    """Bits, truncations, missing and added files."""
    return Outcome(count, damages(folder, count, seed, _tell))


def kills(folder: Path, count: int, seed: int) -> Outcome:
    """SIGKILL at random moments of real runs, 20 lives a run."""
    choose, (expected, longest) = random.Random(seed), _straight(folder)
    done = good = runs = 0
    while done < count:
        runs += 1
        most = min(20, count - done)
        hit, wrong = lives.killed_lives(folder / str(runs), expected, most, longest, choose)
        done, good = done + hit, good + (0 if wrong else hit)
        _tell(wrong)
    return Outcome(done, good, f"{runs} runs")


def stops(folder: Path, count: int, seed: int) -> Outcome:
    """SIGTERM and SIGINT at random moments of real runs, before, while and after they train."""
    choose, (expected, longest) = random.Random(seed), _straight(folder)
    good = late = 0
    for number in range(count):
        which = (signal.SIGTERM, signal.SIGINT)[number % 2]
        before = lives.signal_after(choose.uniform(0.05, longest), which)
        code, wrong = lives.stopped_once(folder / str(number), expected, before)
        good, late = good + (not wrong), late + (code == 0)
        _tell(wrong)
    return Outcome(count, good, f"{late} came after the end" if late else "")


def starts(folder: Path, count: int, seed: int) -> Outcome:
    """Processes that begin one run together."""
    codes = lives.start_together(folder / "run", count)
    right = codes.count(0) == 1 and all(code in (0, 2, 6) for code in codes)
    if not right:
        _tell(f"exit codes {codes}")
    return Outcome(count, count if right else 0, f"{codes.count(0)} ran")


def small_disks(folder: Path, count: int, seed: int) -> Outcome:
    """A tmpfs of sizes from too small for one checkpoint to enough for three."""
    good = full = 0
    for number in range(count):
        kib = 4 * (1 + number % 25)  # a tmpfs hands out pages of 4 KiB
        try:
            code, right = filled_and_freed(folder / str(number), kib)
        except PermissionError as error:
            return Outcome(0, 0, str(error))
        good, full = good + right, full + (code == 7)
        if not right:
            _tell(f"{kib} KiB: not as promised")
    return Outcome(count, good, f"{full} full")


ROWS = {
    "save-kill": Row("kill -9 at each write, flush, rename of a save", 1, boundaries("kill")),
    "save-power": Row("the same, and all that was not flushed is lost", 1, boundaries("power")),
    "save-full": Row("no space left (ENOSPC) at each write of a save", 1, boundaries("full")),
    "small-disks": Row("a small tmpfs that fills up", 100, small_disks),
    "damage": Row("a bit flipped, bytes cut, a file missing or added", 10_000, damaged),
    "kills": Row("kill -9 at random moments of real runs", 400, kills),
    "stops": Row("SIGTERM and SIGINT at random moments of real runs", 200, stops),
    "starts": Row("simultaneous starts in one folder", 30, starts),
}
SHARDED = ("damage", "kills", "stops")


def _straight(folder: Path) -> tuple[dict[str, str], float]:
    """Results of an undisturbed run, and the seconds one takes when its imports are done."""
    lives.preload()
    expected = lives.straight(folder / "first")
    began = time.perf_counter()
    assert lives.straight(folder / "second") == expected
    return expected, time.perf_counter() - began


def _tell(wrong: str) -> None:
    if wrong:
        print(wrong, file=sys.stderr, flush=True)


def measure(name: str, count: int, seed: int, jobs: int) -> tuple[Outcome, float]:
    """Run a row in `jobs` processes, each with a seed of its own, and add up."""
    began = time.perf_counter()
    jobs = min(jobs, count) if name in SHARDED else 1
    shards = []
    for job in range(jobs):
        share = count // jobs + (job < count % jobs)
        command = [sys.executable, "-m", "tests.faults.torture", f"{name}={share}", "--here"]
        command += ["--seed", str(seed + job)]
        shards.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
    found = []
    for shard in shards:
        text, _ = shard.communicate()
        found.append(Outcome(*json.loads(text)) if shard.returncode == 0 else Outcome(1, 0, "died"))
    notes = "; ".join(dict.fromkeys(outcome.note for outcome in found if outcome.note))
    total = Outcome(sum(o.tries for o in found), sum(o.good for o in found), notes)
    return total, time.perf_counter() - began


def table(rows: list[tuple[str, Outcome, float]]) -> str:
    """The rows as Markdown."""
    lines = ["| accident | tried | as promised | | seconds |", "| --- | ---: | ---: | --- | ---: |"]
    for name, outcome, seconds in rows:
        says = f"{ROWS[name].says} (`{name}`)"
        lines.append(
            f"| {says} | {outcome.tries} | {outcome.good} | {outcome.note} | {seconds:.0f} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Run rows, print the table, and put it into the page if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="*", metavar="row[=tries]", help=", ".join(ROWS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--write", action="store_true", help=f"put the table into {PAGE}")
    parser.add_argument("--here", action="store_true", help="one row in this process, as JSON")
    given = parser.parse_args()
    sizes = {name: count for name, _, count in (row.partition("=") for row in given.rows)}
    names = list(sizes or ROWS)
    if unknown := set(names) - set(ROWS):
        parser.error(f"no row {', '.join(sorted(unknown))}; rows: {', '.join(ROWS)}")
    if given.here:
        with tempfile.TemporaryDirectory() as folder:
            print(
                json.dumps(ROWS[names[0]].run(Path(folder) / "w", int(sizes[names[0]]), given.seed))
            )
        return 0
    measured = []
    for name in names:
        count = int(sizes.get(name) or ROWS[name].full)
        outcome, seconds = measure(name, count, given.seed, given.jobs)
        measured.append((name, outcome, seconds))
        print(f"{name}: {outcome.good} of {outcome.tries}, seed {given.seed}, {seconds:.0f} s")
        sys.stdout.flush()
    print(table(measured))
    if given.write:
        page = PAGE.read_text(encoding="utf-8")
        head, rest = page.split(BEGIN)
        PAGE.write_text(f"{head}{BEGIN}\n{table(measured)}\n{END}{rest.split(END)[1]}")
    return 0 if all(o.good == o.tries for _, o, _ in measured) else 1


if __name__ == "__main__":
    sys.exit(main())

"""The rows of `make torture`: each kind of accident, how often in full, and what counts as good."""

import contextlib
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tests.faults import fuzz, lives, mutations, ranks, saves, system_calls
from tests.faults.caches import first_runs
from tests.faults.damage import damages
from tests.faults.forks import tell
from tests.faults.left_files import damages as left_damages
from tests.faults.small_disks import filled_and_freed
from tests.faults.writers import preload


class Outcome(NamedTuple):
    """What a row found.

    Attributes:
        tries: Accidents.
        good: Those after which all was as promised.
        among: Other things worth counting, by name.
    """

    tries: int
    good: int
    among: dict[str, int]


class Row(NamedTuple):
    """One kind of accident.

    Attributes:
        says: What is done, for the table.
        full: How often, in full; 1 where there are only so many, and all are tried.
        run: Given an empty folder, how often, and a seed.
        sharded: Whether several processes can share it.
        usual: How often without ``--full``; 0 for `full`.
    """

    says: str
    full: int
    run: Callable[[Path, int, int], Outcome]
    sharded: bool = False
    usual: int = 0


def boundaries(mode: str) -> Callable[[Path, int, int], Outcome]:
    """A row that needs no seed: every boundary there is, once."""

    def run(folder: Path, count: int, seed: int) -> Outcome:
        tried = saves.every_boundary(folder, mode, tell) if count else 0
        return Outcome(abs(tried), max(tried, 0), {})

    return run


def calls(kind: str) -> Callable[[Path, int, int], Outcome]:
    """A row of system calls that fail; they need a library preloaded, so another process."""

    def run(folder: Path, count: int, seed: int) -> Outcome:
        if why := system_calls.missing():
            return Outcome(0, 0, {why: 1})
        ran = system_calls.started(kind, count, seed)
        return Outcome(*json.loads(ran.stdout)) if ran.returncode == 0 else Outcome(1, 0, {})

    return run


def left_files(folder: Path, count: int, seed: int) -> Outcome:
    """Files that commands leave and use, changed in six ways."""
    preload()
    return Outcome(*left_damages(folder, count, seed))


def caches(folder: Path, count: int, seed: int) -> Outcome:
    """Two runs that fill all caches at once."""
    preload()
    return Outcome(count, first_runs(folder, count, seed), {})


def small_disks(folder: Path, count: int, seed: int) -> Outcome:
    """A tmpfs, each 8 KiB larger: from too small for one checkpoint to enough for three."""
    good = full = 0
    for number in range(count):
        kib = 8 * (1 + number % 100)
        try:
            code, right = filled_and_freed(folder / str(number), kib)
        except PermissionError as error:
            return Outcome(0, 0, {str(error): 1})
        good, full = good + right, full + (code == 7)
        if not right:
            tell(f"{kib} KiB: not as promised")
    return Outcome(count, good, {"full": full})


def damaged(folder: Path, count: int, seed: int) -> Outcome:
    """Bits, truncations, missing and added files."""
    return Outcome(count, damages(folder, count, seed, tell), {})


def kills(folder: Path, count: int, seed: int) -> Outcome:
    """SIGKILL at random moments of real runs, until enough of them were killed 20 times."""
    lives.STEPS = 48  # long enough to be killed so often
    choose, (expected, longest) = random.Random(seed), _straight(folder)
    often = min(20, count)
    done = good = runs = whole = 0
    while whole * often < count:
        runs += 1
        hit, wrong = lives.killed_lives(folder / str(runs), expected, often, longest, choose)
        done, good, whole = done + hit, good + (0 if wrong else hit), whole + (hit == often)
        tell(wrong)
    return Outcome(done, good, {"runs": runs, f"of them killed {often} times": whole})


def stops(folder: Path, count: int, seed: int) -> Outcome:
    """SIGTERM and SIGINT: half of them at any moment, half soon after a phase began."""
    lives.STEPS = 12  # all phases are in it
    choose, (expected, longest) = random.Random(seed), _straight(folder)
    phases = list(lives.phases().values())
    good = late = 0
    for number in range(count):
        which = choose.choice((signal.SIGTERM, signal.SIGINT))
        if number % 2:
            target, name = phases[number // 2 % len(phases)]
            before = lives.signal_when(target, name, which, seconds=choose.uniform(1e-4, 0.05))
        else:
            before = lives.signal_after(choose.uniform(0.05, longest), which)
        code, wrong = lives.stopped_once(folder / str(number), expected, before)
        good, late = good + (not wrong), late + (code == 0)
        tell(wrong)
    return Outcome(count, good, {"after the end": late})


def rank_kills(folder: Path, count: int, seed: int) -> Outcome:
    """SIGKILL to a rank of a run on two or three, at a random moment of a real run."""
    return _ranked(folder, count, seed, ranks.killed)


def rank_stops(folder: Path, count: int, seed: int) -> Outcome:
    """SIGTERM to one rank, which stops all."""
    return _ranked(folder, count, seed, ranks.stopped)


def _ranked(folder: Path, count: int, seed: int, accident: ranks.Accident) -> Outcome:
    lives.STEPS = 12
    lives.preload()
    choose, good, late = random.Random(seed), 0, 0
    straight = {n: ranks.straight(folder / f"straight-{n}", n) for n in range(2, 2 + min(2, count))}
    for number in range(count):
        size = 2 + number % len(straight)
        hit, wrong = accident(folder / str(number), size, *straight[size], choose)
        good, late = good + (not wrong), late + (not hit)
        tell(wrong)
    return Outcome(count, good, {"after the end": late})


def rank_silences(folder: Path, count: int, seed: int) -> Outcome:
    """SIGSTOP to one rank: to the others a pulled cable."""
    lives.STEPS = 24
    lives.preload()
    choose, good = random.Random(seed), 0
    _, longest = ranks.straight(folder / "straight", 2)
    for number in range(count):
        wrong = ranks.silent(folder / str(number), 2, longest, choose)
        good += not wrong
        tell(wrong)
    return Outcome(count, good, {})


def ranks_equal(folder: Path, count: int, seed: int) -> Outcome:
    """Two, three and four ranks against one process, sixteen steps in each way of training."""
    ran = [_in_python("tests.training.ranked", str(n)) for n in range(2, 2 + count)]
    for each in ran:
        tell(each.stdout + each.stderr)
    return Outcome(count, sum(each.returncode == 0 for each in ran), {})


def starts(folder: Path, count: int, seed: int) -> Outcome:
    """Processes that begin one run together."""
    codes = lives.start_together(folder / "run", count)
    right = codes.count(0) == 1 and codes.count(6) == count - 1
    if not right:
        tell(f"exit codes {codes}")
    return Outcome(count, count if right else 0, {"ran": codes.count(0)})


def mutated_models(folder: Path, count: int, seed: int) -> Outcome:
    """Model folders with bytes, numbers and names changed; used, or refused in one line."""
    kinds, good, refused = sorted(mutations.KINDS), 0, 0
    for place, kind in enumerate(kinds):
        share = count // len(kinds) + (place < count % len(kinds))
        number, end = seed * 10_000, seed * 10_000 + share
        while number < end:
            ran = _in_python("tests.faults.mutations", kind, str(number), str(end))
            *tried, last = ran.stdout.splitlines() or [""]
            found: dict[str, int] = json.loads(last) if ran.returncode == 0 else {}
            if found and found["peak_bytes"] < mutations.MOST_MEMORY:
                good += end - number
                refused += found["refused"]
                break
            tell(f"{last}: exit {ran.returncode}, peak {found.get('peak_bytes')}: {ran.stderr}")
            good += max(0, len(tried))
            number += len(tried) + 1  # those before the last ended well
    return Outcome(count, good, {"refused": refused})


def fuzzed_files(folder: Path, count: int, seed: int) -> Outcome:
    """Preference files with mistakes nobody thought of."""
    tokenizing, good = fuzz.tokenizing(), 0
    folder.mkdir()
    for number in range(seed * 10_000, seed * 10_000 + count):
        kind = sorted(fuzz.KINDS)[number % len(fuzz.KINDS)]
        try:
            fuzz.attempt(folder / "pairs.json", kind, number, tokenizing)
            good += 1
        except BaseException as error:
            tell(f"python -m tests.faults.fuzz {kind} {number}: {type(error).__name__}: {error}")
    return Outcome(count, good, {})


def arguments(folder: Path, count: int, seed: int) -> Outcome:
    """Every path that every command takes, given as what it is not."""
    import pytest

    class Count:
        tries = good = 0

        def pytest_runtest_logreport(self, report: Any) -> None:
            self.tries += report.when == "call"
            self.good += report.when == "call" and report.passed
            if report.failed:
                tell(f"{report.nodeid}: {report.longreprtext}")

    counted = Count()
    file = str(Path(__file__).parent / "test_arguments.py")
    with contextlib.redirect_stdout(sys.stderr):
        pytest.main(["-q", file], plugins=[counted])
    return Outcome(counted.tries, counted.good, {})


ROWS = {
    "save-kill": Row("kill -9 at each write, flush, rename of a save", 1, boundaries("kill")),
    "save-power": Row("the same, and all that was not flushed is lost", 1, boundaries("power")),
    "save-full": Row("no space left (ENOSPC) at each write of a save", 1, boundaries("full")),
    "small-disks": Row("a small tmpfs that fills up, of so many sizes", 100, small_disks),
    "damage": Row("a bit flipped, bytes cut, a file missing or added", 10_000, damaged, True),
    "calls-kill": Row(
        "kill -9 at a system call that changes a file, of every command", 600, calls("kill"), True
    ),
    "calls-error": Row(
        "ENOSPC, EIO, EROFS or EDQUOT at such a call, or from it on", 600, calls("error"), True
    ),
    "left-files": Row(
        "a file that a command left changed, then used", 5_000, left_files, True, 600
    ),
    "caches": Row("two simultaneous first runs, with nothing cached", 40, caches),
    "kills": Row("kill -9 at random moments of real runs", 400, kills, True),
    "stops": Row("SIGTERM or SIGINT in every phase of real runs", 200, stops, True),
    "rank-kills": Row("kill -9 of one of 2 or 3 ranks, at a random moment", 20, rank_kills),
    "rank-stops": Row("SIGTERM to one of 2 or 3 ranks", 12, rank_stops),
    "rank-silences": Row("SIGSTOP of one of 2 ranks, as a pulled cable", 6, rank_silences),
    "ranks-equal": Row("2, 3 and 4 ranks against one process", 3, ranks_equal),
    "starts": Row("simultaneous starts in one folder", 30, starts),
    "models": Row(
        "safetensors, indexes, configs, zips, pickles malformed", 5_000, mutated_models, True
    ),
    "preferences": Row("fuzzed preference files", 5_000, fuzzed_files, True),
    "arguments": Row("each path of each command given as what it is not", 1, arguments),
}


def _straight(folder: Path) -> tuple[dict[str, str], float]:
    """Results of an undisturbed run, and the seconds one takes when its imports are done."""
    lives.preload()
    expected = lives.straight(folder / "first")
    began = time.perf_counter()
    assert lives.straight(folder / "second") == expected
    return expected, time.perf_counter() - began


def _in_python(module: str, *words: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", module, *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)

"""Commands that are killed, or told of an error, at the n-th system call that changes a file.

The calls go through system_calls.c, which is compiled when it is needed and preloaded into a
process that forks a child for each try. So every library is hit, not our own code alone:

    python -m tests.faults.system_calls kill 100 --seed 7 --only train,sweep
"""

import argparse
import ctypes
import errno
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from functools import partial
from pathlib import Path
from typing import NamedTuple

from tests.faults.forks import FORKS, run_child, tell
from tests.faults.leftovers import different, half_written, leftovers, tree
from tests.faults.writers import Place, Writer, new_place, preload, template, writers

SOURCE = Path(__file__).with_suffix(".c")
KILL = 0
ERRORS = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT)
EVER = 2**31 - 1
# Documented, but for 75, which no error has; a crash has 1.
ENDS = {1, 2, 3, 4, 5, 6, 7}


Found = tuple[int, int, dict[str, int]]  # tries, those that went well, other counts


class Fault(NamedTuple):
    """Calls that fail: from number `first` to `last`, counted from 1, with an errno or `KILL`."""

    first: int
    last: int
    error: int


NONE = Fault(EVER, EVER, KILL)


def missing() -> str:
    """Why calls can't be caught here; empty where they can."""
    if not FORKS or sys.platform != "linux":
        return "no preloading here"
    return "" if shutil.which("cc") else "no cc"


def started(kind: str, count: int, seed: int, only: str = "") -> "subprocess.CompletedProcess[str]":
    """This module as a program, with the library preloaded."""
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "system_calls.so"
        build = ["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(SOURCE), "-ldl"]
        subprocess.run(build, check=True, capture_output=True)
        before = os.environ.get("LD_PRELOAD", "")
        words = [kind, str(count), "--seed", str(seed), "--only", only, "--here"]
        return subprocess.run(
            [sys.executable, "-m", "tests.faults.system_calls", *words],
            env={**os.environ, "LD_PRELOAD": f"{library} {before}".strip()},
            text=True,
            stdout=subprocess.PIPE,
            check=False,
        )


def arm(place: Place, fault: Fault) -> None:
    """Let calls of this process fail that change a file of the place."""
    told = os.open(place.told, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    folder = os.fsencode(place.disk.resolve())
    ctypes.CDLL(None).faults_arm(
        folder, *map(ctypes.c_long, fault[:2]), ctypes.c_int(fault.error), ctypes.c_int(told)
    )


class Ended(NamedTuple):
    """How a life of a command ended."""

    code: int
    said: str  # on stderr
    hit: str  # the call that failed; empty if none did


def live(writer: Writer, place: Place, fault: Fault) -> Ended:
    """Give the command in a child of its own."""
    place.told.write_bytes(b"")
    code = run_child(partial(_live, writer, place, fault))
    said = place.err.read_text(errors="replace")
    return Ended(code, said, place.told.read_text(errors="replace"))


def _live(writer: Writer, place: Place, fault: Fault) -> None:
    place.enter()
    arm(place, fault)
    try:
        writer.run(place)
    finally:
        place.calls.write_text(str(ctypes.CDLL(None).faults_calls()))


class Trial:
    """One command: what it makes when nothing happens, and in how many calls."""

    def __init__(self, writer: Writer, folder: Path, of: Path) -> None:
        self.writer, self.folder, self.of = writer, folder, of
        place = self._place()
        self.before = tree(place.work)
        ended = live(writer, place, NONE)
        if ended.code != 0:
            raise AssertionError(f"{writer.name}: exit {ended.code}: {ended.said}")
        self.calls = int(place.calls.read_text())
        self.expected = tree(place.work)
        again = live(writer, place, NONE)
        if wrong := self._wrong_at_the_end(place, again):
            raise AssertionError(f"{writer.name}: given twice: {wrong}")

    def killed(self, at: int) -> tuple[bool, str]:
        """Kill at a call, give the command again; whether it was hit, and what is wrong."""
        place = self._place()
        ended = live(self.writer, place, Fault(at, at, KILL))
        if not ended.hit:
            return False, ""
        wrong = half_written(place.work, self.before, self.expected, self.writer.grows)
        wrong = wrong or self._wrong_at_the_end(place, live(self.writer, place, NONE))
        return True, self._told(f"killed at {ended.hit}", wrong)

    def refused(self, fault: Fault) -> tuple[bool, str, str]:
        """Let a call fail, give the command again; the same, and how the first life ended."""
        place = self._place()
        ended = live(self.writer, place, fault)
        if not ended.hit:
            return False, "", ""
        wrong = self._wrong_refusal(place, ended)
        wrong = wrong or half_written(place.work, self.before, self.expected, self.writer.grows)
        wrong = wrong or self._wrong_at_the_end(place, live(self.writer, place, NONE))
        ever = "" if fault.last == fault.first else " and later ones"
        what = f"{errno.errorcode[fault.error]} at {ended.hit}{ever}, exit {ended.code}"
        return True, self._told(what, wrong), f"exit {ended.code}"

    def _place(self) -> Place:
        # The same for all lives: what a run leaves names the folder of its model.
        folder = self.folder / self.writer.name
        shutil.rmtree(folder, ignore_errors=True)
        return new_place(folder, self.of, self.writer.inputs)

    def _wrong_refusal(self, place: Place, ended: Ended) -> str:
        if "Traceback" in ended.said:
            return f"a traceback: {ended.said}"
        if ended.code == 0:  # what failed was not needed; `label` has told the page
            made = {name: d for name, d in tree(place.work).items() if name in self.expected}
            wrong = different(made, self.expected, self.writer.ignored)
            is_told = "warning" in ended.said or self.writer.tells_elsewhere
            return f"ended well, and {wrong}" if wrong and not is_told else ""
        if ended.code not in ENDS:
            return f"exit {ended.code}: {ended.said}"
        lines = [line for line in ended.said.splitlines() if line.startswith("mlx_dpo: ")]
        if len(lines) != 1:
            return f"exit {ended.code} with {len(lines)} lines: {ended.said}"
        if ended.code != 7:
            return f"exit {ended.code}, not 7: {lines[0]}"
        return ""

    def _wrong_at_the_end(self, place: Place, ended: Ended) -> str:
        if ended.code != 0:
            return f"given again: exit {ended.code}: {ended.said}"
        if left := leftovers(place.disk):
            return f"given again: left {', '.join(left)}"
        lost = self.writer.lost(place)
        return lost or different(tree(place.work), self.expected, self.writer.ignored)

    def _told(self, what: str, wrong: str) -> str:
        return f"{self.writer.name}, {what}: {wrong}" if wrong else ""


def tries(count: int, seed: int, folder: Path, only: str) -> "list[tuple[Trial, int]]":
    """Commands and call numbers: spread evenly over each command's calls, each by the seed."""
    choose = random.Random(seed)
    chosen = [writer for writer in writers() if not only or writer.name in only.split(",")]
    chosen = chosen if count >= len(chosen) else choose.sample(chosen, count)
    of = template(folder / "template", {name for writer in chosen for name in writer.inputs})
    trials = [Trial(writer, folder, of) for writer in chosen]
    # Cheap commands as often as those that make many calls, but no call twice.
    shares = _shares([trial.calls for trial in trials], count)
    return [
        (trial, 1 + int((number + choose.random()) * trial.calls / share))
        for trial, share in zip(trials, shares, strict=True)
        for number in range(share)
    ]


def _shares(calls: list[int], count: int) -> list[int]:
    shares = [0] * len(calls)
    while sum(shares) < min(count, sum(calls)):
        free = [n for n, share in enumerate(shares) if share < calls[n]]
        shares[min(free, key=lambda n: shares[n])] += 1
    return shares


def kills(folder: Path, count: int, seed: int, only: str = "") -> Found:
    """SIGKILL at calls of every command."""
    done, good, by = 0, 0, Counter[str]()
    for trial, at in tries(count, seed, folder, only):
        hit, wrong = trial.killed(at)
        done, good = done + hit, good + (hit and not wrong)
        by[trial.writer.name] += hit
        tell(wrong)
    return done, good, dict(by)


def errors(folder: Path, count: int, seed: int, only: str = "") -> Found:
    """An errno at calls of every command: of one call, or of all from then on."""
    done, good, by = 0, 0, Counter[str]()
    for number, (trial, at) in enumerate(tries(count, seed, folder, only)):
        error = ERRORS[number % len(ERRORS)]
        fault = Fault(at, at if number // len(ERRORS) % 2 else EVER, error)
        hit, wrong, ended = trial.refused(fault)
        done, good = done + hit, good + (hit and not wrong)
        by[ended] += hit
        tell(wrong)
    return done, good, dict(by)


KINDS = {"kill": kills, "error": errors}


def main() -> None:
    """Try a kind, and print what was found as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("count", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="commands, with commas between")
    parser.add_argument("--here", action="store_true", help="the library is preloaded")
    arguments = parser.parse_args()
    if not arguments.here:
        print(started(arguments.kind, arguments.count, arguments.seed, arguments.only).stdout)
        return
    preload()
    with tempfile.TemporaryDirectory() as folder:
        kind = KINDS[arguments.kind]
        found = kind(Path(folder), arguments.count, arguments.seed, arguments.only)
    print(json.dumps(found))


if __name__ == "__main__":
    main()

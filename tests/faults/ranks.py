"""Real runs on several ranks, one of which is killed, stopped or silent; then continued.

Rank 0 lives in one folder and the others in another, as on machines of their own: they have the
pairs and nothing of the run.
"""

import json
import os
import random
import signal
import socket
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.faults import lives
from tests.faults.forks import start_child
from tests.runs.conftest import ROWS

# Given a folder, ranks, results and seconds of a straight run: whether it hit, what was wrong.
Accident = Callable[[Path, int, dict[str, str], float, random.Random], tuple[bool, str]]
NOTHING = lives.nothing
PATIENCE = 10.0  # seconds within which all are to end


def workplace(folder: Path) -> Path:
    """A new folder with pairs for rank 0, and one for the others."""
    lives.workplace(folder)
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere" / "pairs.json").write_text(json.dumps(ROWS[:8]))
    return folder


def _live(
    folder: Path,
    rank: int,
    hosts: str,
    before: Callable[[], object],
    words: list[str],
) -> None:
    from mlx_dpo.cli import main

    os.environ.update({"MLX_RANK": str(rank), "MLX_HOSTFILE": hosts})
    lives.preload()
    os.chdir(folder if rank == 0 else folder / "elsewhere")
    before()
    main([*lives.arguments(lives.STEPS), *words])


def live(
    folder: Path,
    ranks: int,
    before: dict[int, Callable[[], object]] | None = None,
    timeout: float = 60.0,
    meanwhile: Callable[[list[int]], None] = lambda children: None,
    words: dict[int, list[str]] | None = None,
) -> tuple[list[int], float]:
    """A life of the run on so many ranks; exit codes, and seconds from the first end to the last.

    Args:
        folder: A `workplace`.
        ranks: How many.
        before: What happens to each rank as it begins.
        timeout: Of the watchdogs.
        meanwhile: Called with the children's numbers.
        words: More words of a rank's command line.
    """
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(ranks)]
    hosts = folder / "hosts.json"
    hosts.write_text(json.dumps([[f"127.0.0.1:{each.getsockname()[1]}"] for each in sockets]))
    for each in sockets:
        each.close()
    children = []
    for rank in range(ranks):
        more = ["--peer-timeout", str(timeout), *(words or {}).get(rank, [])]
        accident = (before or {}).get(rank, NOTHING)
        life = partial(_live, folder, rank, str(hosts), accident, more)
        children.append(start_child(life, quiet=True))
    meanwhile(children)
    codes: dict[int, int] = {}
    first = 0.0
    while len(codes) < ranks:
        child, status = os.wait()
        first = first or time.monotonic()
        codes[child] = os.waitstatus_to_exitcode(status)
    hosts.unlink()
    return [codes[child] for child in children], time.monotonic() - first


def straight(folder: Path, ranks: int) -> tuple[dict[str, str], float]:
    """The results of a run that nobody disturbs, and the seconds that it takes."""
    begin = time.monotonic()
    codes, _ = live(workplace(folder), ranks)
    assert codes == [0] * ranks, codes
    return lives.results(folder), time.monotonic() - begin


def finish(folder: Path, ranks: int, expected: dict[str, str]) -> str:
    """Continue to the end; what is not as promised, empty if nothing."""
    if not (folder / "run" / "result.json").exists():
        codes, _ = live(folder, ranks)
        if any(codes):
            return f"{folder}: the last life ended with {codes}"
    actual = lives.results(folder)
    if different := [name for name in expected if actual[name] != expected[name]]:
        return f"{folder}: {different} differ from the straight run"
    left = sorted(path.name for path in (folder / "elsewhere").iterdir())
    return "" if set(left) <= {"pairs.json", "runs"} else f"{folder}: a follower left {left}"


def killed(
    folder: Path, ranks: int, expected: dict[str, str], longest: float, choose: random.Random
) -> tuple[bool, str]:
    """Kill one rank at a random moment, and continue.

    Returns:
        Whether the kill hit, and what is not as promised.
    """
    victim = choose.randrange(ranks)
    before = lives.signal_after(choose.uniform(0.02, longest), signal.SIGKILL)
    codes, seconds = live(workplace(folder), ranks, {victim: before})
    if codes[0] == 0:  # all was written: the others only wait to hear of it
        return False, finish(folder, ranks, expected)
    if 0 in codes or seconds > PATIENCE:
        return True, f"{folder}: rank {victim} killed: exit {codes} within {seconds:.1f} s"
    return True, finish(folder, ranks, expected)


def stopped(
    folder: Path, ranks: int, expected: dict[str, str], longest: float, choose: random.Random
) -> tuple[bool, str]:
    """Send one rank SIGTERM at a random moment, and continue.

    Returns:
        Whether it came before the end, and what is not as promised.
    """
    victim = choose.randrange(ranks)
    before = lives.signal_after(choose.uniform(0.02, longest), signal.SIGTERM)
    codes, seconds = live(workplace(folder), ranks, {victim: before})
    if codes[0] == 0:
        return False, finish(folder, ranks, expected)
    # One that leaves before it has connected can't tell the others, which don't find it; while
    # MLX connects, the kernel ends it.
    unmet = codes[victim] in (75, -signal.SIGTERM) and not (folder / "run").exists()
    together = {*codes} == {75} or (unmet and 0 not in codes)
    if not together or seconds > PATIENCE:
        return True, f"{folder}: rank {victim} stopped: exit {codes} within {seconds:.1f} s"
    return True, finish(folder, ranks, expected)


def silent(folder: Path, ranks: int, longest: float, choose: random.Random) -> str:
    """Suspend one rank, as a pulled cable does; what is not as promised."""
    victim = choose.randrange(ranks)
    before = lives.signal_after(choose.uniform(0.3 * longest, 0.7 * longest), signal.SIGSTOP)
    codes = silenced(workplace(folder), ranks, {victim: before})
    return f"{folder}: rank {victim} silent: exit {codes}" if 0 in codes else ""


def silenced(folder: Path, ranks: int, before: dict[int, Callable[[], object]]) -> list[int]:
    """A life in which a rank suspends itself; exit codes of the others, which end by themselves.

    The suspended one is killed when they have.
    """

    def wait(children: list[int]) -> None:
        rest = [child for rank, child in enumerate(children) if rank not in before]
        until = time.monotonic() + 60
        while any(_is_running(child) for child in rest) and time.monotonic() < until:
            time.sleep(0.05)
        for child in children:
            os.kill(child, signal.SIGKILL)

    codes, _ = live(folder, ranks, before, timeout=1.0, meanwhile=wait)
    return [code for rank, code in enumerate(codes) if rank not in before]


def _is_running(child: int) -> bool:
    state = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0]
    return state not in "ZX"

"""Checkpoints damaged at random: each damage must be noticed, and the one before used."""

import os
import random
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

from mlx_dpo.runs.checkpoint import LATEST, Checkpoints
from tests.faults.forks import run_child
from tests.faults.saves import BEFORE, begin

KINDS = ("flip", "cut", "missing", "added")


def damage_and_look(run: Path, kind: str, choose: random.Random) -> str:
    """Damage the newest checkpoint or LATEST, look, and mend it.

    Returns:
        What is not as promised; empty if nothing is.
    """
    newest, older = (run / f"step-{step:06d}" for step in reversed(BEFORE))
    if kind == "added":
        file = newest / f"extra-{choose.randrange(1000)}"
        file.write_bytes(b"x")
        mend: Callable[[], object] = file.unlink
    else:
        files = [*sorted(newest.iterdir()), run / LATEST]
        file = choose.choice(files)
        content = file.read_bytes()
        mend = lambda: file.write_bytes(content)  # noqa: E731
        _hurt(file, content, kind, choose)
    newest_whole = Checkpoints(run).newest_whole()
    mend()
    # LATEST that can't be read costs nothing; one that names another manifest costs a checkpoint.
    expected = {newest, older} if file.name == LATEST else {older}
    if newest_whole.path not in expected or not (
        newest_whole.problems or (file.name == LATEST and kind == "missing")
    ):
        return f"{kind} of {file.name}: {newest_whole}"
    return ""


def _hurt(file: Path, content: bytes, kind: str, choose: random.Random) -> None:
    if kind == "missing":
        file.unlink()
    elif kind == "cut":
        os.truncate(file, choose.randrange(len(content)))
    else:
        bit = choose.randrange(8 * len(content))
        hurt = bytearray(content)
        hurt[bit // 8] ^= 1 << bit % 8
        file.write_bytes(hurt)


def damages(folder: Path, count: int, seed: int, report: Callable[[str], None] = print) -> int:
    """Damage a checkpoint `count` times.

    Returns:
        How many were as promised.
    """
    run, choose = folder / "run", random.Random(seed)
    shutil.rmtree(run, ignore_errors=True)
    assert run_child(partial(begin, run)) == 0
    good = 0
    for number in range(count):
        wrong = damage_and_look(run, KINDS[number % len(KINDS)], choose)
        if wrong:
            report(wrong)
        good += not wrong
    return good

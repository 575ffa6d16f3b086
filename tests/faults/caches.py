"""Two first runs at once, which find no cache and make all of them: `CACHES` of `runs.folder`."""

import os
import random
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

from tests.faults.forks import start_child, tell, wait
from tests.faults.leftovers import different, leftovers, matches, tree
from tests.faults.writers import Place, Writer, new_place, template, writers

CACHED = (".converted", ".tokens", ".reference", ".plans")


def first_runs(folder: Path, count: int, seed: int) -> int:
    """Begin two runs of the same settings in a folder without caches.

    Returns:
        How often both ended well, with the same results and one entry in each cache.
    """
    of, choose, good = template(folder / "template"), random.Random(seed), 0
    train = next(writer for writer in writers() if writer.name == "train")
    for number in range(count):
        place = new_place(folder / str(number), of, train.inputs)
        wrong = _wrong(train, place, choose.choice((0.0, choose.uniform(0, 0.3))))
        tell(f"{place.folder.name}: {wrong}" if wrong else "")
        good += not wrong
    return good


def _wrong(train: Writer, place: Place, later: float) -> str:
    """What is not as promised of two runs, the second of which begins some seconds later."""
    wait_here, go = os.pipe()
    os.set_inheritable(wait_here, True)
    children = []
    for name in "ab":
        here = {"run": f"run-{name}", "out": f"out-{name}"}
        words = [here.get(word, word) for word in train.words]
        run = replace(train, words=words)
        delay = later * (name == "b")
        children.append(start_child(partial(_given, run, place, name, wait_here, delay)))
    os.write(go, bytes(len(children)))
    codes = [wait(child) for child in children]
    os.close(wait_here)
    os.close(go)
    if any(codes):
        said = [(place.folder / f"err-{name}").read_text() for name in "ab"]
        return f"exit codes {codes}: {said}"
    if left := leftovers(place.disk):
        return f"left {', '.join(left)}"
    if missing := [name for name in CACHED if len(_entries(place, name)) != 1]:
        return f"not one entry in {', '.join(missing)}"
    results = ("weights.safetensors", "model.safetensors", "metrics.jsonl", "held_out.json")
    a, b = (
        {
            name.replace(f"-{of}/", "/"): digest
            for name, digest in tree(place.work).items()
            if f"-{of}/" in name and matches(name, results)
        }
        for of in "ab"
    )
    return different(a, b) or ("" if a else "no results")


def _entries(place: Place, cache: str) -> list[Path]:
    return list((place.work / "runs" / cache).iterdir())


def _given(writer: Writer, place: Place, name: str, wait_here: int, delay: float) -> None:
    place.enter(f"-{name}")
    os.read(wait_here, 1)  # each reads one of the bytes that are sent at once
    time.sleep(delay)
    writer.run(place)

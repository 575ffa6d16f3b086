"""Files that commands leave and use again, changed behind their back.

Each change must be refused, named, or undone by making the file again. It is silent, and a fault,
where the next command that uses the file ends well with another result and no word:

    python -m tests.faults.left_files 200 --seed 7 --only resume
"""

import argparse
import json
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from tests.faults.forks import run_child, tell
from tests.faults.leftovers import Tree, different, matches, tree
from tests.faults.writers import TRAIN, Place, Writer, new_place, preload, template, writers

ENDS = {1, 2, 3, 4, 5, 6, 7}  # exit codes of an error that is told


class Use(NamedTuple):
    """A command that uses what others have left.

    Attributes:
        name: For people.
        made_by: Commands that leave what it uses, by the names of their `Writer`.
        words: What is typed.
        gone: Removed before: what it is to make again.
        changed: Patterns of the files that are changed.
        results: Patterns of what must come out the same.
        weight: How often it is tried: a run takes as long as four others.
    """

    name: str
    made_by: tuple[str, ...]
    words: list[str]
    gone: tuple[str, ...]
    changed: tuple[str, ...]
    results: tuple[str, ...]
    weight: int = 4


_LAST = "run/step-000004"
_TRAINED = (
    *("run/metrics.jsonl", "run/samples.jsonl", "run/held_out.json", "run/config.toml", "out/*"),
    *(f"{_LAST}/weights.safetensors", f"{_LAST}/optimizer.safetensors"),
)
_ASK = ["generate", "--prompt", "Tell me about the otter.", "--max-tokens", "8", "--model"]

USES = [
    # A run that was killed after its last step: what it made must come out the same.
    Use(
        "resume",
        ("train",),
        ["train", "--resume", "--run-dir", "run"],
        ("out", "run/result.json", "run/held_out.json", "run/report.html"),
        ("run/*", "runs/*"),
        _TRAINED,
        weight=1,
    ),
    # A first run that finds what another has cached.
    Use("caches", ("train",), TRAIN, ("out", "run"), ("runs/*",), _TRAINED, weight=1),
    Use("report", ("train",), ["report", "run"], (), ("run/*",), ("run/report.html",)),
    Use("model", ("train",), [*_ASK, "out"], (), ("out/*",), ("../../out",)),
    Use("adapter", ("adapter",), [*_ASK, "out"], (), ("out/*",), ("../../out",)),
    Use(
        "export",
        ("adapter",),
        ["export", "out", "fused", "--fuse", "--overwrite", "--force"],
        (),
        ("out/*",),
        ("fused/*",),
    ),
    Use(
        "sample",
        ("sample",),
        next(writer.words for writer in writers() if writer.name == "sample"),
        (),
        ("candidates.jsonl",),
        ("candidates.jsonl",),
    ),
    Use(
        "label",
        ("sample", "label"),
        ["data", "label", "candidates.jsonl", "--no-open"],
        (),
        ("preferences.jsonl.labels.jsonl", "preferences.jsonl"),
        ("preferences.jsonl",),
    ),
]


def flipped(data: bytes, other: bytes, choose: random.Random) -> bytes:
    """One bit."""
    bit = choose.randrange(8 * len(data))
    hurt = bytearray(data)
    hurt[bit // 8] ^= 1 << bit % 8
    return bytes(hurt)


def cut(data: bytes, other: bytes, choose: random.Random) -> bytes:
    """The end is gone."""
    return data[: choose.randrange(len(data))]


def doubled(data: bytes, other: bytes, choose: random.Random) -> bytes:
    """A line stands twice."""
    lines = data.splitlines(keepends=True)
    at = choose.randrange(len(lines))
    return b"".join([*lines[: at + 1], *lines[at:]])


def swapped(data: bytes, other: bytes, choose: random.Random) -> bytes:
    """The bytes of another file of the same command."""
    return other


def garbage(data: bytes, other: bytes, choose: random.Random) -> bytes:
    """Random bytes, as many."""
    return choose.randbytes(len(data))


def missing(data: bytes, other: bytes, choose: random.Random) -> None:
    """The file is deleted."""


KINDS: list[Callable[[bytes, bytes, random.Random], bytes | None]] = [
    *(flipped, cut, doubled, swapped, garbage, missing)
]


class Ground:
    """Where a use is tried: what it finds, and what it makes of it undisturbed."""

    def __init__(self, use: Use, folder: Path, of: Path) -> None:
        self.use = use
        self.place = new_place(folder / use.name, of, ())
        shutil.rmtree(self.place.work)
        shutil.copytree(of, self.place.work)
        made_by = [writer for writer in writers() if writer.name in use.made_by]
        for writer in made_by:
            code = run_child(partial(_given, writer, self.place))
            assert code == 0, (use.name, writer.name, self.place.err.read_text())
        for name in use.gone:
            path = self.place.work / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        self.kept = folder / f"{use.name}-kept"
        self.place.work.rename(self.kept)
        self.files = sorted(
            path.relative_to(self.kept)
            for path in self.kept.rglob("*")
            if path.is_file()
            and path.stat().st_size
            and matches(path.relative_to(self.kept).as_posix(), use.changed)
            and path.name not in (".lock", "report.html")
        )
        assert self.used() == 0, (use.name, self.place.err.read_text())
        self.expected = self.results()
        assert self.expected, use.name

    def used(self, change: Callable[[], object] | None = None) -> int:
        """Exit code of the use, of files that are as they were or changed."""
        shutil.rmtree(self.place.work, ignore_errors=True)
        shutil.copytree(self.kept, self.place.work)
        if change is not None:
            change()
        writer = Writer(self.use.name, self.use.words, (), act=self._act())
        return run_child(partial(_given, writer, self.place))

    def results(self) -> Tree:
        """What came out."""
        made = {n: d for n, d in tree(self.place.work).items() if matches(n, self.use.results)}
        if "../../out" in self.use.results:  # what was said
            made |= {n: d for n, d in tree(self.place.folder).items() if n == "out"}
        return made

    def hurt(self, choose: random.Random) -> tuple[str, str]:
        """Change a file, use it; what became of it, and what is wrong."""
        parent = choose.choice(sorted({file.parent for file in self.files}))
        name = choose.choice([file for file in self.files if file.parent == parent])
        kind = choose.choice(KINDS)
        file, data = self.place.work / name, (self.kept / name).read_bytes()
        other = (self.kept / choose.choice(self.files)).read_bytes()
        changed = kind(data, other, choose)
        if changed == data:
            return "unchanged", ""
        change = file.unlink if changed is None else partial(file.write_bytes, changed)
        code = self.used(change)
        said = self.place.err.read_text(errors="replace")
        what = f"{self.use.name}: {name} {kind.__name__}"
        if "Traceback" in said or code not in {0, *ENDS}:
            return "crashed", f"{what}: exit {code}: {said}"
        if code:
            lines = [line for line in said.splitlines() if line.startswith("mlx_dpo: ")]
            told = len(lines) == 1 and not any(
                kind in lines[0] for kind in ("Error:", "Exception:")
            )
            return "refused", "" if told else f"{what}: exit {code}: {said}"
        wrong = different(self.results(), self.expected)
        if not wrong:
            return "same result", ""
        said += (self.place.folder / "out").read_text(errors="replace")
        if "warning" in said.lower() or name.name in said:
            return "named", ""
        return "silent", f"{what}: silent: {wrong}"

    def _act(self) -> Callable[[Writer, Place], None] | None:
        return next((w.act for w in writers() if w.name == self.use.name), None)


def _given(writer: Writer, place: Place) -> None:
    place.enter()
    writer.run(place)


def damages(folder: Path, count: int, seed: int, only: str = "") -> tuple[int, int, dict[str, int]]:
    """Change files of each use so often; tries, those that went well, and what became of them."""
    choose, ends, good = random.Random(seed), Counter[str](), 0
    of = template(folder / "template")
    uses = [use for use in USES if not only or use.name in only.split(",")]
    turns = [use for use in uses for _ in range(use.weight)]
    for use in uses:
        share = sum(turns[number % len(turns)] is use for number in range(count))
        if not share:
            continue
        ground = Ground(use, folder, of)
        for _ in range(share):
            end, wrong = ground.hurt(choose)
            ends[end] += 1
            good += not wrong
            tell(wrong)
    return count, good, dict(ends)


def main() -> None:
    """Change files, and print what was found as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("count", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help=", ".join(use.name for use in USES))
    arguments = parser.parse_args()
    preload()
    with tempfile.TemporaryDirectory() as folder:
        found = damages(Path(folder), arguments.count, arguments.seed, arguments.only)
    print(json.dumps(found), file=sys.stdout)


if __name__ == "__main__":
    main()

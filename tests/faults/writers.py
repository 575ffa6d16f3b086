"""The commands that write, each in small: what it is given, and what of its result may differ."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.faults import lives
from tests.faults.forks import FORKS, ForkedWorker, run_child
from tests.runs.conftest import ORACLE, ROWS

_TRAINING = [
    *("--learning-rate", "1e-3", "--warmup-steps", "1", "--batch-size", "2", "--steps", "4"),
    *("--eval-every", "2", "--save-every", "2", "--date", "2026-01-01"),
]
_RUN = ["train", "--resume", "--data", "pairs.json", "--out", "out", "--run-dir", "run"]
_RUN += _TRAINING
# Of a checkpoint that is converted first, within a budget: with all caches there are.
TRAIN = [*_RUN, "--model", "bin", "--sample-every", "2", "--memory-budget", "8GB"]
_TIMED = ("timings.jsonl", "report.html", "digests.json")  # hold times, or digests of such files
# Of a checkpoint, the state of MLX's global random numbers, which training uses none of.
_CHECKPOINT = ("step-*/state.json", "step-*/MANIFEST.json", "LATEST")


@dataclass(frozen=True)
class Place:
    """Folders of one life of a command. Calls fail below `disk`; what is watched lies beside it."""

    folder: Path

    @property
    def disk(self) -> Path:
        """Holds the working folder and that for temporary files."""
        return self.folder / "disk"

    @property
    def work(self) -> Path:
        """Where the command is given."""
        return self.disk / "work"

    @property
    def err(self) -> Path:
        """What it says on stderr."""
        return self.folder / "err"

    @property
    def told(self) -> Path:
        """The call that failed."""
        return self.folder / "told"

    @property
    def calls(self) -> Path:
        """How many calls there were."""
        return self.folder / "calls"

    @property
    def known(self) -> Path:
        """What a client has been told is saved."""
        return self.folder / "known"

    def enter(self, of: str = "") -> None:
        """Let this process work here and say nothing elsewhere; `of` tells two processes apart."""
        for number, name in ((1, f"out{of}"), (2, f"err{of}")):
            file = os.open(self.folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(file, number)
        os.chdir(self.work)
        tempfile.tempdir = str(self.disk / "tmp")


def new_place(folder: Path, template: Path, inputs: tuple[str, ...]) -> Place:
    """A place with some files of the template."""
    place = Place(folder)
    place.work.mkdir(parents=True)
    (place.disk / "tmp").mkdir()
    for name in inputs:
        source = template / name
        if source.is_dir():
            shutil.copytree(source, place.work / name)
        else:
            shutil.copyfile(source, place.work / name)
    return place


@dataclass(frozen=True)
class Writer:
    """A command.

    Attributes:
        name: For people.
        words: What is typed.
        inputs: Files and folders of the template that it needs.
        ignored: Patterns of files whose bytes differ from life to life.
        grows: Patterns of files that are written in pieces.
        act: Does the command, where it takes more than to give it.
        lost: What was said to be saved and is not; empty if nothing.
        tells_elsewhere: Whether it goes on when a file can't be written, and tells its page.
    """

    name: str
    words: list[str]
    inputs: tuple[str, ...]
    ignored: tuple[str, ...] = ()
    grows: tuple[str, ...] = ()
    act: Callable[["Writer", Place], None] | None = None
    lost: Callable[[Place], str] = lambda place: ""
    tells_elsewhere: bool = False

    def run(self, place: Place) -> None:
        """Give the command in this process."""
        from mlx_dpo.cli import main

        if self.act is not None:
            self.act(self, place)
        main(list(self.words))


def writers() -> list[Writer]:
    """All commands that write."""
    differs = (*_TIMED, *_CHECKPOINT)
    grows = (*differs, "metrics.jsonl", "samples.jsonl", ".lock.json")
    return [
        Writer(
            "train",
            TRAIN,
            ("pairs.json", "bin"),
            differs,
            grows,
        ),
        Writer(
            "adapter",
            [
                *(*_RUN, "--model", str(ORACLE), "--method", "lora", "--adapter-format", "both"),
                *("--keep", "best", "--lora-rank", "2"),
            ],
            ("pairs.json",),
            differs,
            grows,
        ),
        Writer(
            "sweep",
            [
                *("sweep", "--model", str(ORACLE), "--data", "pairs.json", "--run-dir", "s"),
                *(*_TRAINING, "--steps", "2", "--beta", "0.1,1", "--num-prompts", "2"),
            ],
            ("pairs.json",),
            differs,
            grows,
        ),
        Writer("convert", ["convert", "bin", "new", "--overwrite"], ("bin",)),
        Writer(
            "export",
            ["export", "out", "fused", "--fuse", "--overwrite", "--force"],
            ("out", "pairs.json"),
        ),
        Writer(
            "adapter convert",
            ["adapter", "convert", "out", "for-peft", "--to", "peft", "--overwrite"],
            ("out",),
        ),
        Writer("report", ["report", "run"], ("run", "pairs.json"), _TIMED),
        Writer(
            "sample",
            [
                *("data", "sample", "--model", str(ORACLE), "--prompts", "pairs.json", "-n", "2"),
                *("--max-tokens", "6", "--batch-size", "4"),
            ],
            ("pairs.json",),
            grows=("candidates.jsonl",),
        ),
        Writer(
            "label",
            ["data", "label", "candidates.jsonl", "--no-open"],
            ("candidates.jsonl",),
            (".labels.jsonl",),
            ("preferences.jsonl", ".labels.jsonl"),
            act=_label,
            lost=_lost_decisions,
            tells_elsewhere=True,
        ),
        *_of_data(),
    ]


def _of_data() -> list[Writer]:
    overwrite = "--overwrite"
    given: dict[str, tuple[list[str], str]] = {
        "import": (["import", "foreign.jsonl", overwrite], "foreign.jsonl"),
        "judge": (["judge", "candidates.jsonl", "--judge", "rule:shorter"], "candidates.jsonl"),
        "split": (["split", "pairs.json", "--test", "0.3"], "pairs.json"),
        "merge": (["merge", "pairs.json", "--out", "all.jsonl"], "pairs.json"),
        "check": (["check", "doubtful.json", "--log", "problems.jsonl"], "doubtful.json"),
        "filter": (["filter", "pairs.json", "--kind", "tone", "--out", "tone.jsonl"], "pairs.json"),
    }
    return [
        Writer(
            name,
            ["data", *words, *([] if overwrite in words or name == "check" else [overwrite])],
            (file,),
            grows=("problems.jsonl",),
        )
        for name, (words, file) in given.items()
    ]


def template(folder: Path, inputs: Collection[str] = ()) -> Path:
    """A folder with what commands are given: pairs, a model, and what others make of them."""
    made = {"adapter": {"run", "out"}, "sample": {"candidates.jsonl"}}
    made_by = tuple(name for name, results in made.items() if not results.isdisjoint(inputs))
    folder.mkdir(parents=True)
    assert run_child(partial(_fill, folder, made_by)) == 0
    return folder


def _fill(folder: Path, made_by: tuple[str, ...]) -> None:
    import mlx.core as mx

    from mlx_dpo.convert.torch_zip.archive import write_torch_zip
    from mlx_dpo.convert.torch_zip.tensors import from_mlx

    place = Place(folder.with_name("making"))
    place.disk.mkdir(parents=True)
    (place.disk / "tmp").mkdir()
    place.work.symlink_to(folder.resolve())
    place.enter()
    Path("pairs.json").write_text(json.dumps(ROWS[:8]))
    Path("doubtful.json").write_text(json.dumps([*ROWS[:4], *ROWS[:2]]))
    lines = [{"prompt": r["user"], "chosen": r["chosen"], "rejected": r["rejected"]} for r in ROWS]
    Path("foreign.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    shutil.copytree(ORACLE, "bin")
    arrays: Any = mx.load("bin/model.safetensors")
    tensors = {name: from_mlx(value) for name, value in arrays.items()}
    write_torch_zip(Path("bin/pytorch_model.bin"), tensors)
    Path("bin/model.safetensors").unlink()
    for writer in writers():
        if writer.name in made_by:
            with suppress(SystemExit):  # whoever needs what is missing says so
                writer.run(place)


def preload() -> None:
    """Import what the commands import, without computing, and let answers be short."""
    lives.preload()
    import mlx_dpo.cli.export
    import mlx_dpo.convert.conversion
    import mlx_dpo.insight.report.page
    import mlx_dpo.insight.sweep
    import mlx_dpo.preferences.worker
    import mlx_dpo.workshop.importers.reading
    import mlx_dpo.workshop.judge.judges
    import mlx_dpo.workshop.label.server
    import mlx_dpo.workshop.sampling

    vars(mlx_dpo.insight.sweep)["ANSWER_TOKENS"] = 4
    if FORKS:
        from transformers.utils import chat_template_utils

        assert chat_template_utils.is_jinja_available()
        forked = {**vars(subprocess), "Popen": ForkedWorker}
        vars(mlx_dpo.preferences.worker)["subprocess"] = SimpleNamespace(**forked)


def _label(writer: Writer, place: Place) -> None:
    """Let a client in this process decide for the shorter answer until nothing is left."""
    from mlx_dpo.workshop.label import server

    begin = server.serve

    def serve(book: Any, session: Any, *, port: int, announce: Callable[[str], None]) -> None:
        def announced(address: str) -> None:
            announce(address)
            threading.Thread(target=_decide, args=(address, place), daemon=True).start()

        begin(book, session, port=port, announce=announced)

    server.serve = serve


def _decide(address: str, place: Place) -> None:
    page, _, token = address.partition("#")

    def ask(name: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{page}api/{name}", data, headers)
        with urllib.request.urlopen(request) as reply:
            answer: dict[str, Any] = json.load(reply)
            return answer

    try:
        state = ask("state")
        while task := state["task"]:
            a, b = task["a"], task["b"]
            verdict = "a" if (len(a), a) < (len(b), b) else "b"
            body = {"verdict": verdict, "task": task["id"], "a": a, "b": b}
            state = ask("label", {**body, "revision": state["revision"]})
            with place.known.open("a") as known:
                known.write(task["id"] + "\n")
    except OSError as error:
        print(f"the page is told: {error}", file=sys.stderr)
    os.kill(os.getpid(), signal.SIGINT)


def _lost_decisions(place: Place) -> str:
    known = set(place.known.read_text().split())
    journal = (place.work / "preferences.jsonl.labels.jsonl").read_text()
    saved = {json.loads(line).get("task") for line in journal.splitlines()}
    return f"{len(known - saved)} decisions are lost" if known - saved else ""

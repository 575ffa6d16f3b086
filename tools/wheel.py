"""Build the wheel, install it where no clone is, and use it there as a person would.

    python -m tools.wheel

A folder of its own gets an environment with the wheel; what it depends on is lent by the
environment that runs this file. Where a wheel can't be built for want of the network, that is said
and nothing is tried (exit code 0).
"""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "mlx_dpo", "convert")
MODEL, PAIRS = ROOT / "checkpoints" / "tiny-sft", ROOT / "data" / "dpo" / "demo" / "train.json"
NO_NETWORK = re.compile(r"No matching distribution|Could not find a version|[Cc]onnection|resolve")

# What each command must say; an error is a wrong exit code.
COMMANDS = {
    "train --model model --data pairs.json --steps 4": "model is checkpoints/model-dpo",
    "train --model model --data pairs.json --steps 2 --method lora --out adapter": "is adapter",
    "generate --model checkpoints/model-dpo --prompt Hello --max-tokens 4": "",
    "eval --model adapter --data pairs.json --num-prompts 1 --max-tokens 4": "drift",
    "compare model checkpoints/model-dpo --max-tokens 4": "off-topic",
    "report runs/model-1": "written: runs/model-1/report.html",
    "data check pairs.json --model model": "212 rows read",
    "plan --model model --data pairs.json": "16 GB",
    "export adapter fused --fuse": "wrote   fused",
    "convert checkpoints/model-dpo torch": "wrote torch",
    "doctor": "packed: step",
}
REFUSED = {"train": "no model given: pass --model and --data"}

PROGRAM = """\
import mlx_dpo

model, tokenizer = mlx_dpo.load("model")
mlx_dpo.attach_adapters(model, rank=2)
pairs = mlx_dpo.encode(mlx_dpo.read_preferences("pairs.json"), tokenizer)
trainer = mlx_dpo.DPOTrainer(
    model,
    examples=pairs,
    max_seq_len=128,
    pad_id=0,
    beta=0.1,
    batch_size=2,
    max_steps=2,
    max_lr=1e-3,
)
trainer.train()
mlx_dpo.save(model, "model", "mine")
print(mlx_dpo.__file__)
"""


class Elsewhere:
    """A folder without a clone, with an environment that has the wheel.

    Args:
        folder: An empty folder.
    """

    def __init__(self, folder: Path) -> None:
        self.bin = folder / "venv" / "bin"
        self.site = Path(_said([self.bin / "python", "-c", _PURELIB], folder).strip())
        self.here = folder / "here"
        self.here.mkdir()
        shutil.copytree(MODEL, self.here / "model")
        (self.here / "model" / "train.toml").unlink()
        shutil.copyfile(PAIRS, self.here / "pairs.json")

    def run(self, program: str, *args: str) -> tuple[int, str]:
        """Exit code and output of a program of the environment."""
        command = [str(self.bin / program), *args]
        done = subprocess.run(
            command, cwd=self.here, env=_environment(), capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout + done.stderr


_PURELIB = "import sysconfig; print(sysconfig.get_path('purelib'))"


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def _said(command: Sequence[str | Path], folder: Path) -> str:
    return subprocess.run(
        list(map(str, command)), cwd=folder, env=_environment(), capture_output=True, text=True,
        check=True,
    ).stdout  # fmt: skip


def build(folder: Path) -> Path | None:
    """The wheel, built from a copy of the tree; None, after a line, without the build backend."""
    copy = folder / "source"
    copy.mkdir()
    for name in SOURCES:
        source, target = ROOT / name, copy / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, target, symlinks=True, ignore=ignored)
        else:
            shutil.copyfile(source, target)
    pip = [sys.executable, "-m", "pip", "wheel", "-q", ".", "--no-deps", "-w", str(folder)]
    done = subprocess.run(
        pip, cwd=copy, env=_environment(), capture_output=True, text=True, check=False
    )
    if done.returncode and NO_NETWORK.search(done.stderr):
        print(f"skipped: a wheel can't be built here: {done.stderr.strip().splitlines()[-1]}")
        return None
    if done.returncode:
        raise SystemExit(f"the wheel can't be built:\n{done.stderr}")
    (wheel,) = folder.glob("*.whl")
    return wheel


def install(wheel: Path, folder: Path) -> Elsewhere:
    """An environment with the wheel, which borrows all other packages."""
    _said([sys.executable, "-m", "venv", "--without-pip", "venv"], folder)
    elsewhere = Elsewhere(folder)
    # Packages of a folder that is added so come after the environment's own, and its .pth files,
    # among them that of an editable install of this project, are not read.
    (elsewhere.site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    target = ["--python", str(elsewhere.bin / "python")]
    options = ["-q", "--no-deps", "--no-index", "--force-reinstall"]
    _said([sys.executable, "-m", "pip", *target, "install", *options, str(wheel)], folder)
    return elsewhere


def problems_of(elsewhere: Elsewhere) -> list[str]:
    """What does not work without a clone."""
    found = []
    for expected, lines in ((0, COMMANDS), (2, REFUSED)):
        for line, words in lines.items():
            started = time.monotonic()
            code, said = elsewhere.run("mlx_dpo", *line.split())
            print(f"{time.monotonic() - started:4.0f} s  mlx_dpo {line}", flush=True)
            if code != expected or words not in said or str(ROOT) in said:
                found.append(f"mlx_dpo {line}: exit code {code}\n{said[-1000:]}")
    (elsewhere.here / "program.py").write_text(PROGRAM)
    code, said = elsewhere.run("python", "program.py")
    if code or not said.strip().endswith(str(elsewhere.site / "mlx_dpo" / "__init__.py")):
        found.append(f"the library: exit code {code}\n{said[-1000:]}")
    code, said = elsewhere.run("python", "-m", "mypy", "--strict", "program.py")
    if code and "No module named" not in said:
        found.append(f"mypy on a program that uses the library:\n{said[-1000:]}")
    try:
        label(elsewhere)
    except (OSError, ValueError, AssertionError) as error:
        found.append(f"mlx_dpo data label: {error!r}")
    return found


def label(elsewhere: Elsewhere) -> None:
    """Write a pair on the labelling page, all files of which must be there."""
    (elsewhere.here / "prompts.jsonl").write_text('{"prompt": "I am late."}\n')
    command = [str(elsewhere.bin / "mlx_dpo"), "data", "label", "prompts.jsonl"]
    with subprocess.Popen(
        [*command, "--no-open", "--out", "mine.jsonl"], cwd=elsewhere.here, env=_environment(),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as server:  # fmt: skip
        try:
            assert server.stdout is not None
            said = ""
            while "http://" not in said:
                line = server.stdout.readline()
                assert line, said
                said += line
            page = urlsplit(next(word for word in said.split() if word.startswith("http://")))
            head = {"Authorization": f"Bearer {page.fragment}", "Content-Type": "application/json"}
            base = f"http://{page.netloc}"

            def ask(path: str, body: dict[str, object] | None = None) -> str:
                data = None if body is None else json.dumps(body).encode()
                with urlopen(Request(base + path, data, head), timeout=20) as reply:
                    return str(reply.read().decode())

            for file in re.findall(r'(?:src|href)="(/?[\w.]+)"', ask("/")):
                assert ask("/" + file.lstrip("/")), file
            state = json.loads(ask("/api/state"))
            texts = {"prompt": "Hi.", "chosen": "Hello.", "rejected": "What?", "kind": ""}
            ask("/api/write", {**texts, "revision": state["revision"]})
        finally:
            server.terminate()
    rows = (elsewhere.here / "mine.jsonl").read_text().splitlines()
    assert json.loads(rows[0])["chosen"] == "Hello.", rows


def main() -> int:
    """Build, install, try; 1 where something does not work."""
    with TemporaryDirectory() as name:
        folder = Path(name).resolve()
        wheel = build(folder)
        if wheel is None:
            return 0
        found = problems_of(install(wheel, folder))
    for problem in found:
        print(f"WRONG  {problem}", file=sys.stderr)
    print(f"{wheel.name} without a clone: {len(found)} problems")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

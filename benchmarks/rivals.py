"""The same pairs and weights through other DPO trainers: `python -m benchmarks.rivals`.

Each contender runs in a process of its own, by turns; the reference pass is left out on all sides.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from statistics import median

from benchmarks.contenders.job import Job, Outcome
from benchmarks.environments import INSTALLS, python_of
from benchmarks.lineup import TABLES, Contender
from benchmarks.measure import one_thread_environment
from benchmarks.model_folder import as_row, closed, save, save_adapters
from benchmarks.report import publish, table
from benchmarks.workload import (
    MAX_SEQ_LEN,
    PAIRS_PER_STEP,
    SHAPES,
    Shape,
    machine,
    make_batches,
)
from mlx_dpo.records import PreferenceExample

REPOSITORY = Path(__file__).resolve().parent.parent
NUM_STEPS = 5
CHECK_STEPS = 3
TINY = Shape(hidden=32, layers=2, heads=2, kv_heads=1, mlp=64, vocabulary=128)
# Freed buffers stay with the process, as MLX keeps them on a GPU. glibc would hand large ones back
# at once, and the kernel clear each page anew: some 5 % of a step, which comes and goes.
KEEP_FREED = dict.fromkeys(("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"), str(2**34))
# How far losses may part through rounding alone in `CHECK_STEPS` steps.
LOSS_TOLERANCE = 1e-4
LEARNING_RATES = {"full": 1e-5, "lora": 1e-4}
SECTIONS = {"full": "rivals {}", "lora": "rivals LoRA {}"}


def main() -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tiny model; prints only")
    parser.add_argument("--model", choices=list(SHAPES), help="one model; by default both")
    parser.add_argument("--method", choices=list(TABLES), help="one method; by default both")
    parser.add_argument("--rounds", type=int, default=3, help="most rounds of a contender")
    options = parser.parse_args()
    names = [options.model] if options.model else list(SHAPES)
    shapes = {"tiny": TINY} if options.quick else {name: SHAPES[name] for name in names}
    for method in [options.method] if options.method else TABLES:
        about = _about(method)
        for name, shape in shapes.items():
            body = _compare(name, shape, method, options.rounds)
            print(body, flush=True)
            if not options.quick:
                publish(SECTIONS[method].format(name), f"{body}\n\n{about}")


def _about(method: str) -> str:
    """The command, the machine, and what the rivals' environments hold; they are made here."""
    contenders = [c for rows in TABLES[method].values() for c in rows]
    names = dict.fromkeys(c.name for c in contenders if c.name in INSTALLS)
    for name in names:
        python_of(name)
    versions = [" ".join(word for call in INSTALLS[name] for word in call) for name in names]
    command = f"`python -m benchmarks.rivals --method {method}`"
    return f"{command}; {machine()}, 1 BLAS thread. {'; '.join(versions)}."


def _compare(name: str, shape: Shape, method: str, rounds: int) -> str:
    """The tables of one model and method."""
    tables = TABLES[method]
    outcomes: dict[Contender, list[Outcome]] = {c: [] for rows in tables.values() for c in rows}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        job = _job(shape, method, folder)
        for turn in range(rounds):
            for contender, runs in outcomes.items():
                if turn < contender.rounds:
                    runs.append(_run(contender, job, folder))
                    _show_progress(name, turn, contender, runs[-1])
    return "\n\n".join(
        f"### {heading}, model {name}\n\n{_table({c: outcomes[c] for c in contenders})}"
        for heading, contenders in tables.items()
    )


def _job(shape: Shape, method: str, folder: Path) -> Job:
    batches = make_batches(shape, NUM_STEPS + 1)
    pairs = [closed(pair) for batch in batches for pair in batch]
    # Short ones to compare losses on: they cost little, and are of different lengths still.
    check = [PreferenceExample(*(ids[-len(ids) // 6 :] for ids in p)) for p in pairs[-4:]]
    job = Job(
        model=str(folder / "model"),
        check_pairs=[as_row(pair) for pair in check],
        pairs=[as_row(pair) for pair in pairs[: NUM_STEPS * PAIRS_PER_STEP]],
        check_steps=CHECK_STEPS,
        batch_size=PAIRS_PER_STEP,
        max_seq_len=MAX_SEQ_LEN,
        beta=0.1,
        learning_rate=LEARNING_RATES[method],
        method=method,
        adapters=str(folder / "adapters.safetensors"),
    )
    save(shape, folder / "model")
    save_adapters(shape, job.rank, Path(job.adapters))
    return job


def _run(contender: Contender, job: Job, folder: Path) -> Outcome:
    job_file, outcome_file = folder / "job.json", folder / "outcome.json"
    job.mode = contender.mode
    job_file.write_text(json.dumps(asdict(job)), encoding="utf-8")
    outcome_file.unlink(missing_ok=True)
    python = sys.executable if contender.name == "ours" else str(python_of(contender.name))
    environment = {**one_thread_environment(), **KEEP_FREED}
    if contender.name == "trl":
        environment.pop("LD_PRELOAD", None)  # PyTorch brings its own BLAS
    module = f"benchmarks.contenders.{contender.name}"
    done = subprocess.run(
        [python, "-m", module, str(job_file), str(outcome_file)],
        cwd=REPOSITORY,
        env={**environment, "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{contender.title} failed:{os.linesep}{done.stdout[-3000:]}")
    return Outcome(**json.loads(outcome_file.read_text("utf-8")))


def _show_progress(model: str, turn: int, contender: Contender, outcome: Outcome) -> None:
    each = outcome.seconds / outcome.pairs
    print(f"{model} {turn + 1} {contender.title}: {each:.3f} s a pair", file=sys.stderr)


def _table(outcomes: dict[Contender, list[Outcome]]) -> str:
    """Rows compared with the first, round by round."""
    ours = next(iter(outcomes.values()))
    our_peak = median(outcome.peak_bytes for outcome in ours)
    rows = []
    for contender, runs in outcomes.items():
        peak = median(outcome.peak_bytes for outcome in runs)
        ratios = [
            run.seconds / our.seconds * our.pairs / run.pairs
            for run, our in zip(runs, ours, strict=False)
        ]
        rows.append(
            [
                contender.title,
                f"{median(run.seconds / run.pairs for run in runs):.3f}",
                f"{median(ratios):.2f}",
                f"{peak / 2**20:.0f}",
                f"{our_peak / peak:.2f}",
                *(f"{loss:.6f}" for loss in runs[0].check_losses),
                "yes" if same_loss(runs[0], ours[0]) else "NO",
            ]
        )
    header = ["trainer", "seconds a pair", "÷ ours", "peak MiB", "ours ÷ it"]
    steps = [f"loss, step {step}" for step in range(CHECK_STEPS)]
    return table([*header, *steps, "same loss"], rows)


def same_loss(theirs: Outcome, ours: Outcome) -> bool:
    """Whether two contenders had the same loss at each step on the check pairs."""
    pairs = list(zip(theirs.check_losses, ours.check_losses, strict=False))
    return len(theirs.check_losses) == len(ours.check_losses) and all(
        abs(one - other) <= LOSS_TOLERANCE for one, other in pairs
    )


if __name__ == "__main__":
    main()

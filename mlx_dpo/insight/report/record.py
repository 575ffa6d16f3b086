"""What a run left in its folder, read back: its record, and what it cost."""

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np
import numpy.typing as npt

from mlx_dpo.errors import UsageError
from mlx_dpo.insight import words
from mlx_dpo.paths import check_links
from mlx_dpo.preferences.scores import Logprobs
from mlx_dpo.runs.config import RunConfig, read_settings
from mlx_dpo.runs.defaults import LORA
from mlx_dpo.runs.folder import changed_record

Rows = list[dict[str, Any]]

_PHASES = {
    "data_seconds": "data",
    "reference_seconds": "reference",
    "forward_backward_seconds": "forward and backward",
    "update_seconds": "update",
    "peers_seconds": "other machines",
}


@dataclass(frozen=True)
class RunCost:
    """Sums over the timed steps of a run.

    Attributes:
        steps, seconds, pairs: Their number, their time, and the pairs trained on.
        began, ended: Seconds since 1970 at which the first step began and the last one ended; None
            in runs that did not note it.
        phases: Name and seconds of each; what is in none of them is the last, "the rest".
        peak: Bytes, the most that MLX's arrays took; `peak_step`, from 1, first took it.
        padding: Tokens computed for each real one; None in runs that did not count.
    """

    steps: int
    seconds: float
    pairs: int
    began: float | None
    ended: float | None
    phases: list[tuple[str, float]]
    peak: int
    peak_step: int
    padding: float | None


@dataclass(frozen=True)
class RunRecord:
    """A run, finished or not.

    `steps` (loss, rewards, accuracy, lr, grad_norm) and `timings` (seconds by phase, tokens, peak
    memory) have a row a step, `held_out` a row an evaluation. `policy` and `reference` are float32
    (2, N), log-probs of the N held-out pairs after training and before; `kinds` are their kinds,
    `untaught` those of them that no training pair is of. `lengths` are int (3, M), tokens of
    prompt, chosen and rejected of the M pairs of the data; None for a run of an older version.
    `samples` are answers given during the run, `answers` those before and after it.
    `displaced` are held-out pairs whose chosen answer lost, as `Fallen` has them. `verdict` is
    empty for a run that did not finish, or was made before there were verdicts. `adapter` has
    ranks, scales, modules, parameters and bytes of the adapter that a finished run made; `kept` the
    `step` whose weights it kept, and what `by`, where these are not the last ones. `tuned_before`
    says by what the reference is seen to have had preference training, if by anything. `changed`
    names files that are not as the run left them.
    """

    folder: Path
    config: RunConfig
    environment: dict[str, Any]
    split: dict[str, list[str]]
    steps: Rows
    held_out: Rows
    timings: Rows
    samples: Rows
    kinds: list[str]
    untaught: list[str]
    lengths: npt.NDArray[np.int64] | None
    policy: Logprobs
    reference: Logprobs
    answers: Rows
    displaced: Rows
    verdict: dict[str, str]
    is_finished: bool
    adapter: dict[str, Any]
    kept: dict[str, Any]
    tuned_before: str
    changed: list[str]

    @property
    def planned_steps(self) -> int:
        """Optimizer steps of the whole run."""
        config = self.config
        pairs_per_step = config.batch_size * config.grad_accumulation
        return config.steps or (config.epochs or 1) * -(-len(self.split["train"]) // pairs_per_step)

    @property
    def method(self) -> str:
        """How the run trained, in words; runs from before there was a choice trained all."""
        config, known = self.config, self.adapter
        if config.method != LORA:
            return "all weights"
        ranks = known.get("ranks") or [config.lora_rank]
        scales = known.get("scales") or [config.lora_scale]
        text = f"LoRA on {words.adapted_layers(config)}"
        if None not in (*ranks, *scales):
            text += f", rank {words.numbers(ranks)}, scale {words.numbers(scales)}"
        if "parameters" in known:
            text += f": {words.parameters(known['parameters'])} parameters"
        if "bytes" in known:
            text += f", {known['bytes'] / 2**20:.1f} MiB"
        return text

    def cost(self) -> RunCost | None:
        """Time and memory; None where no step was timed."""
        if not self.timings:
            return None

        def total(key: str) -> float:
            return float(sum(row.get(key, 0) for row in self.timings))

        seconds = total("seconds")
        phases = [(name, total(key)) for key, name in _PHASES.items() if key in self.timings[-1]]
        phases.append(("the rest", max(0.0, seconds - sum(spent for _, spent in phases))))
        begun, ended = (self.timings[n].get("ended") for n in (0, -1))
        largest = max(self.timings, key=lambda row: row["peak_bytes"])  # the first of equals
        real, computed = total("real_tokens"), total("computed_tokens")
        return RunCost(
            steps=len(self.timings),
            seconds=seconds,
            pairs=int(total("pairs")),
            began=begun and begun - self.timings[0]["seconds"],
            ended=ended,
            phases=phases,
            peak=largest["peak_bytes"],
            peak_step=largest["step"] + 1,
            padding=computed / real if real else None,
        )


def read_run(folder: Path) -> RunRecord:
    """Read a run's folder, finished or not.

    Raises:
        UsageError: If no run made it, if the run ended before it began to train, or if a file of
            it can't be read.
    """
    if folder.is_dir():
        check_links(folder)
    if not (folder / "config.toml").is_file():
        raise UsageError(f"{folder}: no run there (no config.toml); give a folder below runs/")
    for name in ("environment.json", "split.json"):  # written before the first step
        if not (folder / name).is_file():
            raise UsageError(
                f"{folder}: ended before it began to train (no {name}); "
                f"mlx_dpo train --resume --run-dir {quote(str(folder))} goes on"
            )
    metrics = _lines(folder / "metrics.jsonl")
    held_out = _json(folder / "held_out.json")
    result = _json(folder / "result.json")
    try:
        return RunRecord(
            folder=folder,
            config=RunConfig(**read_settings(folder / "config.toml")),
            environment=_json(folder / "environment.json"),
            split=_json(folder / "split.json"),
            steps=[row for row in metrics if "loss" in row],
            held_out=[{"step": r["step"], **r["held_out"]} for r in metrics if "held_out" in r],
            timings=_lines(folder / "timings.jsonl"),
            samples=_lines(folder / "samples.jsonl"),
            kinds=[str(kind) for kind in held_out.get("kinds", [])],
            untaught=[str(kind) for kind in held_out.get("untaught", [])],
            lengths=_lengths(folder / "lengths.json"),
            policy=_logprobs(held_out.get("policy", [])),
            reference=_logprobs(held_out.get("reference", [])),
            answers=list(result.get("answers", [])),
            displaced=list((result.get("displacement") or {}).get("fallen", [])),
            verdict={key: str(text) for key, text in result.get("verdict", {}).items()},
            is_finished=bool(result),
            adapter=dict(result.get("adapter", {})),
            kept=dict(result.get("kept") or {}),
            tuned_before=str(result.get("tuned_before") or ""),
            changed=changed_record(folder),
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UsageError(f"{folder}: a file of the run is not as runs write it: {error}") from None


def _logprobs(rows: list[list[float]]) -> Logprobs:
    return np.array(rows, dtype=np.float32).reshape(2, -1)


def _lengths(path: Path) -> npt.NDArray[np.int64] | None:
    if not path.is_file():
        return None
    return np.array(json.loads(path.read_text(encoding="utf-8")), dtype=np.int64).reshape(3, -1)


def _json(path: Path) -> dict[str, Any]:
    """An object; empty where the run has not written it yet."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not readable: {error}") from None
    return value if isinstance(value, dict) else {}


def _lines(path: Path) -> Rows:
    """Whole lines; a line that a killed run left half written is skipped."""
    rows = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with suppress(ValueError, RecursionError):
                row = json.loads(line)
                if isinstance(row, dict) and "step" in row:
                    rows.append(row)
    return rows

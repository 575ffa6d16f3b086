"""What a contender is asked to do and what it answers, as JSON files. Standard library only."""

import gc
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Job:
    """One run.

    Attributes:
        model: Hugging Face folder with the weights to start from.
        check_pairs: Pairs of one batch, trained on for `check_steps` to compare losses; it also
            warms up what is slow the first time.
        pairs: Pairs of the run that is measured, one epoch from the weights of `model`. A pair
            holds ``prompt_ids chosen_ids rejected_ids`` and the same as text: ``prompt chosen
            rejected``.
        check_steps: Steps on `check_pairs`.
        batch_size: Pairs a step.
        max_seq_len: Longest prompt + response in tokens.
        beta: Of the DPO loss.
        learning_rate: Constant; AdamW with betas 0.9, 0.999, eps 1e-8, no decay, no clipping.
        method: "full" trains every weight; "lora" adapters on all linear layers of the blocks.
        mode: Variant of the contender; "" where it has one. For LoRA: "checkpointing" computes
            the layers' activations again, anything else keeps them.
        rank: Of the adapters.
        scale: What their product is multiplied by.
        adapters: Safetensors file with every A at the start, (in, rank) and float32, named
            ``<module path>.lora_a``; B starts at zero.
    """

    model: str
    check_pairs: list[dict[str, Any]]
    pairs: list[dict[str, Any]]
    check_steps: int
    batch_size: int
    max_seq_len: int
    beta: float
    learning_rate: float
    method: str = "full"
    mode: str = ""
    rank: int = 8
    scale: float = 2.0
    adapters: str = ""


@dataclass
class Outcome:
    """Result of a job's run.

    Attributes:
        check_losses: Loss of each step on the check pairs, before its update.
        pairs: Pairs trained on while measured.
        seconds: What they took, from the start of the first step to the end of the last.
        peak_bytes: Largest memory while they did.
    """

    check_losses: list[float] = field(default_factory=list)
    pairs: int = 0
    seconds: float = 0.0
    peak_bytes: int = 0


def forget() -> None:
    """Free the trainer of the check: in a reference cycle it would count in the measured peak."""
    gc.collect()


def answer(job_file: str, outcome_file: str, run: Callable[[Job], Outcome]) -> None:
    """Read a job, run it, write the outcome."""
    job = Job(**json.loads(Path(job_file).read_text("utf-8")))
    Path(outcome_file).write_text(json.dumps(asdict(run(job))), encoding="utf-8")

"""TRL's `DPOTrainer` on PyTorch's CPU backend, reference precomputed, nothing recomputed."""

import resource
import sys
import tempfile
import time
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer

from benchmarks.contenders.job import Job, Outcome, answer, forget


class _Meter(TrainerCallback):  # type: ignore[misc]
    """Time from the first step's start to the last one's end, and losses."""

    def __init__(self) -> None:
        self.start = self.end = 0.0
        self.losses: list[float] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.start = self.start or time.process_time()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.end = time.process_time()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if logs and "loss" in logs:
            self.losses.append(float(logs["loss"]))


def run(job: Job) -> Outcome:
    """Train with `DPOTrainer`. The peak is that of the process, the library itself included."""
    torch.set_num_threads(1)
    check = _train(job, job.check_pairs, job.check_steps)
    forget()
    meter = _train(job, job.pairs, -(-len(job.pairs) // job.batch_size))
    unit = 1 if sys.platform == "darwin" else 1024
    return Outcome(
        check_losses=check.losses,
        pairs=len(job.pairs),
        seconds=meter.end - meter.start,
        peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
    )


def _train(job: Job, pairs: list[dict[str, Any]], steps: int) -> _Meter:
    model = AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.float32)
    rows = [{key: pair[key] for key in ("prompt", "chosen", "rejected")} for pair in pairs]
    meter = _Meter()
    with tempfile.TemporaryDirectory() as folder:
        config = DPOConfig(
            output_dir=folder,
            beta=job.beta,
            learning_rate=job.learning_rate,
            lr_scheduler_type="constant",
            max_grad_norm=0.0,
            per_device_train_batch_size=job.batch_size,
            max_steps=steps,
            max_length=job.max_seq_len,
            precompute_ref_log_probs=True,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        DPOTrainer(
            model=model,
            args=config,
            train_dataset=Dataset.from_list(rows),
            processing_class=AutoTokenizer.from_pretrained(job.model),
            callbacks=[meter],
        ).train()
    return meter


if __name__ == "__main__":
    answer(sys.argv[1], sys.argv[2], run)

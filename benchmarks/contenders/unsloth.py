"""unsloth-zoo's `MLXDPOTrainer`, reference precomputed.

Modes: "eager" keeps activations, "checkpointing" computes them again (its default). Its package
asks for Apple silicon when it is imported; on another machine it is told so.
"""

import platform
import sys
import tempfile
from typing import Any
from unittest import mock

import mlx.core as mx
from mlx_lm import load

from benchmarks.contenders.job import Job, Outcome, answer, forget
from benchmarks.measure import now

with (
    mock.patch.object(platform, "system", return_value="Darwin"),
    mock.patch.object(platform, "machine", return_value="arm64"),
):
    from unsloth_zoo.mlx.loader import FastMLXModel
    from unsloth_zoo.mlx.trainer import MLXDPOConfig, MLXDPOTrainer


class _Meter:
    """Callback: time from the first step's start to the last one's end, and losses."""

    def __init__(self) -> None:
        self.start = self.end = 0.0
        self.losses: list[float] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if not self.start:
            mx.reset_peak_memory()
            self.start = now()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        mx.eval(kwargs["model"].parameters())
        self.end = now()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if logs and "loss" in logs:
            self.losses.append(float(logs["loss"]))


def run(job: Job) -> Outcome:
    """Train with `MLXDPOTrainer`."""
    check = _train(job, job.check_pairs, job.check_steps)
    forget()
    meter = _train(job, job.pairs, -(-len(job.pairs) // job.batch_size))
    return Outcome(
        check_losses=check.losses,
        pairs=len(job.pairs),
        seconds=meter.end - meter.start,
        peak_bytes=mx.get_peak_memory(),
    )


def _train(job: Job, pairs: list[dict[str, Any]], steps: int) -> _Meter:
    model, tokenizer = load(job.model)
    if job.method == "lora":
        alpha = job.scale * job.rank
        FastMLXModel.get_peft_model(
            model, r=job.rank, lora_alpha=alpha, use_gradient_checkpointing=False
        )
        model.load_weights(job.adapters, strict=False)
    meter = _Meter()
    with tempfile.TemporaryDirectory() as folder:
        config = MLXDPOConfig(
            beta=job.beta,
            learning_rate=job.learning_rate,
            lr_scheduler_type="constant",
            warmup_steps=0,
            weight_decay=0.0,
            max_grad_leaf_norm=0.0,
            per_device_train_batch_size=job.batch_size,
            gradient_accumulation_steps=1,
            max_steps=steps,
            max_seq_length=job.max_seq_len,
            max_length=job.max_seq_len,
            max_prompt_length=job.max_seq_len,
            append_eos=False,
            precompute_ref_log_probs=True,
            gradient_checkpointing=job.mode == "checkpointing",
            # On a CPU `mx.compile` calls a C++ compiler for every shape it meets.
            compile=False,
            compile_mode="eager",
            logging_steps=1,
            output_dir=folder,
        )
        rows = [{key: pair[key] for key in ("prompt", "chosen", "rejected")} for pair in pairs]
        MLXDPOTrainer(model, tokenizer, rows, args=config, callbacks=[meter]).train()
    return meter


if __name__ == "__main__":
    answer(sys.argv[1], sys.argv[2], run)

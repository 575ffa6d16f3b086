"""mlx-vlm's `train_dpo` on a language model, LoRA.

Its reference is a second model asked at every step. Here that model is never called: the scores it
would give are computed beforehand and returned in its place, because the reference pass is left out
on every side.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx_vlm.trainer.common.model import prepare_model_for_training
from mlx_vlm.trainer.vlm.dpo.trainer import (
    DPOTrainingArgs,
    iterate_vlm_preference_batches,
    train_dpo,
)
from mlx_vlm.trainer.vlm.preference import loss
from mlx_vlm.utils import load_model

from benchmarks.contenders.job import Job, Outcome, answer, forget
from benchmarks.measure import now

Row = dict[str, Any]


class _Meter:
    """Callback: the last step's end, and losses."""

    def __init__(self) -> None:
        self.start = self.end = 0.0
        self.losses: list[float] = []

    def on_train_loss_report(self, info: dict[str, float]) -> None:
        self.end = now()
        self.losses.append(info["train_loss"])


def run(job: Job) -> Outcome:
    """Train with `train_dpo`."""
    check = _train(job, job.check_pairs, job.check_steps)
    forget()
    meter = _train(job, job.pairs, len(job.pairs) // job.batch_size)
    seconds = meter.end - meter.start
    return Outcome(check.losses, len(job.pairs), seconds, mx.get_peak_memory())


def _train(job: Job, pairs: list[Row], steps: int) -> _Meter:
    model = _model(job)
    rows = [{side: _prepared(pair, side) for side in ("chosen", "rejected")} for pair in pairs]
    reference, score = nn.Module(), loss.sequence_logps
    known = {}
    for batch in iterate_vlm_preference_batches(rows, job.batch_size, job.max_seq_len):
        for side in batch.values():
            known[_key(side)] = score(model, side)[:2]
            mx.eval(known[_key(side)])

    def scores(asked: nn.Module, batch: Row, **options: Any) -> tuple[mx.array | None, ...]:
        return (*known[_key(batch)], None) if asked is reference else score(asked, batch, **options)

    optimizer = optim.AdamW(learning_rate=job.learning_rate, weight_decay=0.0, bias_correction=True)
    meter = _Meter()
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(loss, "sequence_logps", scores),
    ):
        arguments = DPOTrainingArgs(
            batch_size=job.batch_size,
            iters=steps,
            steps_per_report=1,
            steps_per_eval=None,
            steps_per_save=10**9,
            adapter_file=str(Path(folder) / "adapters.safetensors"),
            grad_checkpoint=job.mode == "checkpointing",
            max_seq_length=job.max_seq_len,
            beta=job.beta,
        )
        mx.reset_peak_memory()
        meter.start = now()
        train_dpo(model, reference, optimizer, rows, args=arguments, training_callback=meter)
    return meter


def _model(job: Job) -> Any:
    model = load_model(Path(job.model))
    alpha = job.scale * job.rank
    prepare_model_for_training(model, lora_rank=job.rank, lora_alpha=alpha, verbose=False)
    model.language_model.load_weights(job.adapters, strict=False)
    return model


def _prepared(pair: Row, side: str) -> Row:
    prompt, response = pair["prompt_ids"], pair[f"{side}_ids"]
    completion = [0] * len(prompt) + [1] * len(response)
    return {"input_ids": mx.array(prompt + response), "completion_mask": mx.array(completion)}


def _key(batch: Row) -> bytes:
    return bytes(memoryview(batch["input_ids"]))


if __name__ == "__main__":
    answer(sys.argv[1], sys.argv[2], run)

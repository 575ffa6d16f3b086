"""mlx-dpo: prompts computed once, head only on responses, cached reference.

Modes: "" forms batches by length, as a run does; "shuffled" takes them as they come, as others do;
"checkpointing" computes the layers' activations again.
"""

import sys
from typing import cast

import mlx.core as mx
import mlx.nn as nn
from mlx_lm import load

from benchmarks.contenders.job import Job, Outcome, answer, forget
from benchmarks.measure import now
from mlx_dpo.models.adapters import Part, attach
from mlx_dpo.preferences.store import lengths
from mlx_dpo.records import PreferenceExample
from mlx_dpo.training.paths import FastPath
from mlx_dpo.training.reference import cached_reference, score_in_batches
from mlx_dpo.training.trainer import DPOTrainer


def run(job: Job) -> Outcome:
    """Train with `DPOTrainer`."""
    trainer = _trainer(job, job.check_pairs)
    losses = [trainer.train_step()["loss"] for _ in range(job.check_steps)]
    del trainer
    forget()
    trainer = _trainer(job, job.pairs)
    mx.reset_peak_memory()
    start = now()
    for _ in range(trainer.order.batches_per_epoch):
        trainer.train_step()
    return Outcome(losses, len(job.pairs), now() - start, mx.get_peak_memory())


def _trainer(job: Job, pairs: list[dict[str, list[int]]]) -> DPOTrainer:
    model = load(job.model)[0]
    examples = [
        PreferenceExample(p["prompt_ids"], p["chosen_ids"], p["rejected_ids"]) for p in pairs
    ]
    path = FastPath(job.max_seq_len, pad_id=0, checkpoint=job.mode == "checkpointing")
    reference = score_in_batches(
        lambda batch: path(model, batch), examples, batch_size=job.batch_size
    )
    if job.method == "lora":
        attach(model, _adapter(model, job))
    return DPOTrainer(
        model,
        ref_model=None,
        reference=cached_reference(examples, reference),
        examples=examples,
        max_seq_len=job.max_seq_len,
        pad_id=0,
        beta=job.beta,
        batch_size=job.batch_size,
        max_steps=1000,
        max_lr=job.learning_rate,
        min_lr=job.learning_rate,
        path=path,
        lengths=None if job.mode == "shuffled" else lengths(examples),
        fused_update=True,  # nobody clips here
    )


def _adapter(model: nn.Module, job: Job) -> dict[str, Part]:
    modules = dict(model.named_modules())
    adapter = {}
    arrays = cast("dict[str, mx.array]", mx.load(job.adapters))
    for name, a in arrays.items():
        path = name.removesuffix(".lora_a")
        adapter[path] = Part(a, mx.zeros((job.rank, len(modules[path].weight))), job.scale)
    return adapter


if __name__ == "__main__":
    answer(sys.argv[1], sys.argv[2], run)

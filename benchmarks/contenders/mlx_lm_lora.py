"""mlx-lm-lora's `train_dpo`, full fine-tuning or LoRA.

Its reference is a second model asked at every step. Here none is given, and the log-probs it would
return, computed beforehand, reach the loss through the `loss_fn` argument: the reference pass is
left out on every side. It draws batches with replacement; here it is handed, at each step, the
next of the batches it forms, so that it too sees every pair once. On a machine without Metal it is
told a working-set size to set its limits from.
"""

import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import mlx.core as mx
import mlx.optimizers as optim
from mlx_lm import load
from mlx_lm.tuner.utils import linear_to_lora_layers
from mlx_lm_lora.trainer.dpo_trainer import (
    DPOTrainingArgs,
    compute_score,
    dpo_loss,
    get_token_scores,
    iterate_dpo_batches,
    train_dpo,
)

from benchmarks.contenders.job import Job, Outcome, answer, forget
from benchmarks.measure import now

Row = dict[str, Any]


class _Turns:
    """The data set: at each step the four rows of one of its batches; and the callback."""

    def __init__(self, batches: list[list[Row]]) -> None:
        self.batches = batches
        self.step = 0
        self.start = self.end = 0.0
        self.losses: list[float] = []

    def __len__(self) -> int:
        return len(self.batches[self.step])

    def __getitem__(self, index: int) -> Row:
        return self.batches[self.step][index]

    def on_train_loss_report(self, info: dict[str, float]) -> None:
        self.end = now()
        self.losses.append(info["train_loss"])
        self.step = min(self.step + 1, len(self.batches) - 1)


def run(job: Job) -> Outcome:
    """Train with `train_dpo`."""
    check = _train(job, [[_row(pair) for pair in job.check_pairs]] * job.check_steps)
    forget()
    # As `iterate_dpo_batches` forms them.
    rows = sorted(map(_row, job.pairs), key=lambda row: len(row["chosen"]))
    batches = [rows[i : i + job.batch_size] for i in range(0, len(rows), job.batch_size)]
    turns = _train(job, batches)
    return Outcome(check.losses, len(rows), turns.end - turns.start, mx.get_peak_memory())


def _row(pair: Row) -> Row:
    length = len(pair["prompt_ids"])
    return {
        "chosen": pair["prompt_ids"] + pair["chosen_ids"],
        "rejected": pair["prompt_ids"] + pair["rejected_ids"],
        "chosen_prompt_length": length,
        "rejected_prompt_length": length,
    }


def _train(job: Job, batches: list[list[Row]]) -> _Turns:
    model = _model(job)
    reference = [_reference(model, batch, job.max_seq_len) for batch in batches]
    turns = _Turns(batches)

    def loss_fn(**scores: Any) -> Any:
        chosen, rejected = reference[turns.step]
        given = {"reference_chosen_score": chosen, "reference_rejected_score": rejected}
        return dpo_loss(**{**scores, **given})

    optimizer = optim.AdamW(
        learning_rate=job.learning_rate,
        betas=[0.9, 0.999],
        eps=1e-8,
        weight_decay=0.0,
        bias_correction=True,
    )
    # A compiled step would keep the first batch's reference.
    mx.disable_compile()
    device = {"max_recommended_working_set_size": 2**34, **mx.device_info()}
    layer = type(model.layers[0])
    with (
        tempfile.TemporaryDirectory() as folder,
        # Checkpointing replaces the call of the class, and does not put it back.
        mock.patch.object(layer, "__call__", layer.__call__),
        mock.patch.object(mx, "device_info", return_value=device),
        mock.patch.object(mx, "set_wired_limit"),
    ):
        arguments = DPOTrainingArgs(
            batch_size=job.batch_size,
            iters=len(batches),
            steps_per_report=1,
            steps_per_save=10**9,
            max_seq_length=job.max_seq_len,
            grad_checkpoint=job.mode == "checkpointing",
            adapter_file=str(Path(folder) / "adapters.safetensors"),
            beta=job.beta,
        )
        mx.reset_peak_memory()
        turns.start = now()
        train = partial(train_dpo, model, None, optimizer, turns, args=arguments)
        train(loss_fn=loss_fn, training_callback=turns)
    return turns


def _model(job: Job) -> Any:
    model = load(job.model)[0]
    if job.method == "lora":  # as its `from_pretrained` does
        model.freeze()
        settings = {"rank": job.rank, "scale": job.scale, "dropout": 0.0}
        linear_to_lora_layers(model, len(model.layers), settings)
        model.load_weights(job.adapters, strict=False)
    return model


def _reference(model: Any, batch: list[Row], max_seq_len: int) -> tuple[mx.array, mx.array]:
    chosen, rejected, chosen_mask, rejected_mask = next(
        iterate_dpo_batches(batch, len(batch), max_seq_len)
    )
    scores = (
        compute_score(get_token_scores(model, chosen, chosen_mask), chosen_mask, "sigmoid"),
        compute_score(get_token_scores(model, rejected, rejected_mask), rejected_mask, "sigmoid"),
    )
    mx.eval(scores)
    return scores


if __name__ == "__main__":
    answer(sys.argv[1], sys.argv[2], run)

"""Whether bfloat16 weights learn: `python -m benchmarks.rounding --model FOLDER --data PAIRS`.

The same model, pairs and order in float32, in bfloat16 rounded to the nearest, and in bfloat16
rounded stochastically. Weights, gradients and AdamW's moments are of the type named; products are
computed in float32 in all three, because on a CPU MLX multiplies bfloat16 matrices without a BLAS,
thirty times slower. So only what is stored differs. Of each pair the last tokens of the prompt and
the first of each answer are taken, for the same reason.

Each run is kept in `--results` as it ends. A second call makes those that are missing, and writes
the section of docs/training.md and its pictures once every run is there.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from benchmarks.report import PAGE, publish, table
from benchmarks.workload import machine
from mlx_dpo.convert.sources import find_mlx, load_folder, load_tokenizer
from mlx_dpo.insight.charts import Series, line_chart, standalone
from mlx_dpo.models.parameters import named_arrays
from mlx_dpo.preferences.chat import chat_format, pad_id_of
from mlx_dpo.records import PreferenceExample
from mlx_dpo.runs.config import RunConfig
from mlx_dpo.runs.data import load_data
from mlx_dpo.training.optimizers import StochasticRounding, make_optimizer
from mlx_dpo.training.paths import FastPath
from mlx_dpo.training.reference import cached_reference, score_in_batches
from mlx_dpo.training.self_check import in_float32
from mlx_dpo.training.trainer import DPOTrainer

PROMPT, RESPONSE = 32, 40  # tokens kept of a pair: what a CPU gets through in minutes
STEPS, BATCH, WARMUP, EVAL_EVERY, HELD_OUT = 60, 2, 6, 15, 40
MEAN_OF = 10  # steps, of the curve of losses
RATE = 1e-5  # after warm-up; the default of `train`

Run = dict[str, Any]


@dataclass(frozen=True)
class Arm:
    """One run.

    Attributes:
        name: As in the table.
        dtype: Of what is stored.
        stochastic: Whether rounding is stochastic.
    """

    name: str
    dtype: str
    stochastic: bool


ARMS = (
    Arm("float32", "float32", stochastic=False),
    Arm("bf16, nearest", "bfloat16", stochastic=False),
    Arm("bf16, stochastic", "bfloat16", stochastic=True),
)


class StoredPath(FastPath):
    """The usual path, computing in float32 whatever the weights are stored as."""

    def __call__(
        self, model: nn.Module, examples: Sequence[PreferenceExample], *, gradient: bool = False
    ) -> mx.array:
        """Log-probs float32 (2, B)."""
        return super().__call__(in_float32(model), examples, gradient=gradient)


def main() -> None:
    """Make the runs that are missing, then the section and the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="a model folder, its weights bfloat16")
    parser.add_argument("--data", required=True, help="preference pairs")
    parser.add_argument("--results", type=Path, default=Path("runs/rounding"))
    parser.add_argument("--at-most", type=int, default=len(ARMS), help="runs made by this call")
    options = parser.parse_args()
    options.results.mkdir(parents=True, exist_ok=True)
    left = options.at_most
    for number, arm in enumerate(ARMS):
        file = options.results / f"{number}.json"
        if not file.exists() and left:
            left -= 1
            run = {"arm": asdict(arm), **measure(arm, options.model, options.data)}
            file.write_text(json.dumps(run), encoding="utf-8")
    files = [options.results / f"{number}.json" for number in range(len(ARMS))]
    runs = [json.loads(file.read_text("utf-8")) for file in files if file.exists()]
    print(_table(runs))
    if len(runs) == len(ARMS):
        for name, drawing in pictures(runs).items():
            PAGE.with_name(name).write_text(drawing, encoding="utf-8")
        publish("rounding", f"{machine()}\n\n{_table(runs)}", PAGE.with_name("training.md"))


def measure(arm: Arm, model: str, data: str) -> Run:
    """Loss of each step, held-out loss and margin on the way, and what became of the weights."""
    folder = find_mlx(model)
    chat = chat_format(load_tokenizer(folder))
    pairs = load_data(RunConfig(model=model, data=data, drop_bad=True), chat, keep=False)
    train = _short(pairs.train.examples)[: STEPS * BATCH]
    held_out = _short(pairs.held_out.examples)[:HELD_OUT]
    policy, _ = load_folder(folder, arm.dtype)
    before = {name: mx.array(a) for name, a in named_arrays(policy.parameters()).items()}
    path = StoredPath(PROMPT + RESPONSE, pad_id_of(chat.tokenizer))
    optimizer = make_optimizer("adamw", learning_rate=RATE, weight_decay=0.0)
    everything = [*train, *held_out]
    reference = score_in_batches(lambda b: path(policy, b), everything, batch_size=BATCH)
    trainer = DPOTrainer(
        policy,
        ref_model=None,
        reference=cached_reference(everything, reference),
        examples=train,
        max_seq_len=PROMPT + RESPONSE,
        pad_id=path.pad_id,
        beta=0.1,
        batch_size=BATCH,
        max_steps=STEPS,
        max_lr=RATE,
        warmup_steps=WARMUP,
        optimizer=StochasticRounding(optimizer, seed=0) if arm.stochastic else optimizer,
        grad_clip=1.0,
        path=path,
        eval_every=EVAL_EVERY,
        log_every=1,
    )
    history = trainer.train(
        held_out,
        after_step=lambda step, m: print(arm.name, step, m["loss"], file=sys.stderr),
    )
    kinds = {str(a.dtype) for a in named_arrays(policy.parameters()).values()}
    assert kinds == {f"mlx.core.{arm.dtype}"}, kinds
    return {"pairs": [len(train), len(held_out)], **history, **_change(before, policy)}


def _short(examples: Sequence[PreferenceExample]) -> list[PreferenceExample]:
    cut = [
        PreferenceExample(
            e.prompt_ids[-PROMPT:], e.chosen_ids[:RESPONSE], e.rejected_ids[:RESPONSE]
        )
        for e in examples
    ]
    return [e for e in cut if e.chosen_ids != e.rejected_ids]


def _change(before: dict[str, mx.array], policy: nn.Module) -> dict[str, float]:
    """Share of the weights that moved, and the length of the whole move."""
    moved, squares, size = 0, 0.0, 0
    for name, value in named_arrays(policy.parameters()).items():
        difference = value.astype(mx.float32) - before[name].astype(mx.float32)
        moved += int((difference != 0).sum())
        squares += float(mx.square(difference).sum())
        size += value.size
    return {"moved": moved / size, "distance": squares**0.5}


def pictures(found: Sequence[Run]) -> dict[str, str]:
    """How the held-out margin grows and the training loss falls, as SVG by file name."""
    margins, losses = [], []
    for arm, run in zip(ARMS, found, strict=True):
        steps = [step + 1 for step in run["val_step"]]
        margin = [(0, 0.0), *zip(steps, run["val_reward_margin"], strict=True)]
        margins.append(Series(arm.name, margin, has_dots=True))
        means = np.reshape(run["train_loss"], (-1, MEAN_OF)).mean(axis=1)
        losses.append(
            Series(arm.name, [(MEAN_OF * (i + 1), float(m)) for i, m in enumerate(means)])
        )
    return {
        "rounding-margin.svg": standalone(
            line_chart("Held-out margin, beta x nats", margins, x_label="step", y_label="")
        ),
        "rounding-loss.svg": standalone(
            line_chart(
                f"Training loss, mean of {MEAN_OF} steps", losses, x_label="step", y_label=""
            )
        ),
    }


def _table(found: Sequence[Run]) -> str:
    rows = [
        [
            arm.name,
            f"{np.mean(run['train_loss'][-20:]):.4f}",
            f"{run['val_loss'][-1]:.4f}",
            f"{run['val_reward_margin'][-1]:+.4f}",
            f"{run['moved']:.1%}",
            f"{run['distance']:.3f}",
        ]
        for arm, run in zip(ARMS, found, strict=False)
    ]
    header = [
        "stored as",
        "loss, last 20 steps",
        "held-out loss",
        "held-out margin",
    ]
    return table([*header, "weights moved", "distance moved"], rows)


if __name__ == "__main__":
    main()

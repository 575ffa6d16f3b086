"""soup-cli's `MLXDPOTrainerWrapper`, which trains LoRA only; it computes the reference beforehand.

Two of its settings are made those of the others: AdamW corrects its moments' bias, and the
gradient norm is clipped where no gradient reaches.
"""

import sys
import tempfile
from typing import Any
from unittest import mock

import mlx.core as mx
import mlx.optimizers as optim
from soup_cli.config.schema import SoupConfig
from soup_cli.trainer import mlx_optim
from soup_cli.trainer.mlx_dpo import MLXDPOTrainerWrapper

from benchmarks.contenders.job import Job, Outcome, answer, forget
from benchmarks.measure import now

ATTENTION = tuple(f"self_attn.{name}_proj" for name in "qkvo")
MLP = tuple(f"mlp.{name}_proj" for name in ("gate", "up", "down"))


class _Trainer(MLXDPOTrainerWrapper):  # type: ignore[misc]
    """Its trainer, with the job's A."""

    def __init__(self, config: Any, adapters: str) -> None:
        super().__init__(config)
        self.adapters = adapters

    def _apply_lora(self, model: Any) -> None:
        super()._apply_lora(model)
        model.load_weights(self.adapters, strict=False)


class _Meter:
    """Display: time from before the first step, after the reference, to the last one's end."""

    def __init__(self) -> None:
        self.start_time = self.end = 0.0

    def start(self, total_steps: int) -> None:
        mx.reset_peak_memory()
        self.start_time = now()

    def update(self, **_: Any) -> None:
        self.end = now()

    def stop(self) -> None:
        pass


def run(job: Job) -> Outcome:
    """Train with `MLXDPOTrainerWrapper`."""
    check, _ = _train(job, job.check_pairs, job.check_steps)
    forget()
    _, meter = _train(job, job.pairs, 1)
    return Outcome(check, len(job.pairs), meter.end - meter.start_time, mx.get_peak_memory())


def _train(job: Job, pairs: list[dict[str, Any]], epochs: int) -> tuple[list[float], _Meter]:
    meter = _Meter()
    with tempfile.TemporaryDirectory() as folder:
        trainer = _Trainer(SoupConfig.model_validate(_config(job, epochs, folder)), job.adapters)
        rows = [{key: pair[key] for key in ("prompt", "chosen", "rejected")} for pair in pairs]
        trainer.setup({"train": rows})
        layer = type(trainer.model.layers[0])
        with (
            # mlx-lm's checkpointing replaces the call of the class, and does not put it back.
            mock.patch.object(layer, "__call__", layer.__call__),
            mock.patch.object(mlx_optim, "build_optimizer", _adamw),
        ):
            result = trainer.train(display=meter)
    return result["losses"], meter


def _config(job: Job, epochs: int, folder: str) -> dict[str, Any]:
    return {
        "base": job.model,
        "task": "dpo",
        "backend": "mlx",
        "output": folder,
        # It cuts prompts to the half of this.
        "data": {"train": "given.jsonl", "val_split": 0.0, "max_length": 2 * job.max_seq_len},
        "training": {
            "epochs": epochs,
            "batch_size": job.batch_size,
            "lr": job.learning_rate,
            "scheduler": "constant",
            "warmup_ratio": 0.0,
            "weight_decay": 0.0,
            "max_grad_norm": 1e9,
            "gradient_accumulation_steps": 1,
            "gradient_checkpointing": job.mode == "checkpointing",
            "quantization": "none",
            "dpo_beta": job.beta,
            "logging_steps": 1,
            "save_steps": 10**9,
            "lora": {
                "r": job.rank,
                "alpha": round(job.scale * job.rank),
                "dropout": 0.0,
                "target_modules": [*ATTENTION, *MLP],
            },
        },
    }


def _adamw(plan: Any) -> optim.Optimizer:
    return optim.AdamW(learning_rate=plan.peak_lr, weight_decay=0.0, bias_correction=True)


if __name__ == "__main__":
    answer(sys.argv[1], sys.argv[2], run)

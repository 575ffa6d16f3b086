"""A run put together by hand, so that it can be put together wrongly; `mlx_dpo train` refuses."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_dpo import load
from mlx_dpo.models.export import export_folder, read_files
from mlx_dpo.preferences.chat import ChatFormat, chat_format, pad_id_of
from mlx_dpo.preferences.encoding import encode_preferences
from mlx_dpo.preferences.reader import read_preferences
from mlx_dpo.preferences.split import held_out
from mlx_dpo.preferences.store import lengths
from mlx_dpo.records import PreferenceExample
from mlx_dpo.runs.config import RunConfig, resolve
from mlx_dpo.training.paths import FastPath, PlainPath
from mlx_dpo.training.reference import Reference
from mlx_dpo.training.trainer import DPOTrainer
from tools.experiments.commands import EMBEDDED, MODEL, PAIRS, PLACE, figures, split, write

Pairs = list[PreferenceExample]


@dataclass
class Run:
    """What a run by hand works with; the embedded settings and training pairs.

    Attributes:
        config: Settings.
        policy: Trains.
        sft: The same model a second time, the right reference.
        chat: Conversation format.
        pairs: Training pairs.
    """

    config: RunConfig
    policy: nn.Module
    sft: nn.Module
    chat: ChatFormat
    pairs: Pairs

    def path(self) -> FastPath:
        """The way the embedded run scores pairs."""
        return FastPath(self.config.max_length, pad_id_of(self.chat.tokenizer))

    def trainer(self, **changed: Any) -> DPOTrainer:
        """The trainer of the embedded run, or what is changed about it."""
        config, pairs = self.config, changed.get("examples", self.pairs)
        steps = config.epochs * -(-len(pairs) // config.batch_size)
        right = {
            "ref_model": None if "reference" in changed else self.sft,
            "examples": pairs,
            "max_seq_len": config.max_length,
            "pad_id": pad_id_of(self.chat.tokenizer),
            "beta": config.beta,
            "batch_size": config.batch_size,
            "max_steps": config.steps or steps,
            "max_lr": config.learning_rate,
            "warmup_steps": config.warmup_steps,
            "grad_clip": config.grad_clip,
            "seed": config.seed,
            "lengths": lengths(self.pairs),  # of the right pairs: mistakes share one order
            "path": self.path(),
        }
        return DPOTrainer(self.policy, **{**right, **changed})

    def judge(self, name: str, num_prompts: int = 50) -> dict[str, Any]:
        """Save the policy, and let `mlx_dpo eval` judge it against the SFT model."""
        out = PLACE / name / "model"
        shutil.rmtree(out, ignore_errors=True)
        out.parent.mkdir(parents=True, exist_ok=True)
        record = {"trained_from": {"model": MODEL}, "settings": asdict(self.config)}
        export_folder(self.policy, read_files(Path(MODEL)), out, record)
        data = write("held-out.jsonl", split()[1])
        return figures("eval", "--model", out, "--data", data, "--num-prompts", str(num_prompts))


def new_run(steps: int | None = None) -> Run:
    """A run on the embedded model, fresh from disk."""
    config = resolve(Path(EMBEDDED[0]), {})
    config = replace(config, steps=steps)
    policy, tokenizer = load(MODEL)
    sft, _ = load(MODEL)
    chat = chat_format(tokenizer)
    rows = read_preferences(PAIRS)
    out = held_out(rows, config.eval_fraction)
    training = [row for row, is_out in zip(rows, out, strict=True) if not is_out]
    pairs = encode_preferences(training, chat, max_length=config.max_length).examples
    return Run(config, policy, sft, chat, list(pairs))


def moving_reference(run: Run) -> Reference:
    """The mistake of asking the policy as it is now, instead of as it was."""
    path = run.path()
    return lambda pairs: mx.stop_gradient(path(run.policy, pairs))


@dataclass(frozen=True)
class Altered:
    """A scoring path with altered log-probs.

    Attributes:
        path: The right one.
        alter: Takes log-probs (2, B) and the pairs, returns (2, B).
    """

    path: FastPath | PlainPath
    alter: Callable[[mx.array, Sequence[PreferenceExample]], mx.array]

    @property
    def name(self) -> str:
        """As it is shown."""
        return f"altered {self.path.name}"

    def __call__(self, model: nn.Module, examples: Sequence[PreferenceExample]) -> mx.array:
        """Log-probs float32 (2, B)."""
        return self.alter(self.path(model, examples), examples)

    def work(self, examples: Sequence[PreferenceExample]) -> Any:
        """Tokens it computes for a batch."""
        return self.path.work(examples)

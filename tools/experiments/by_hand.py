"""A run put together by hand, so that it can be put together wrongly; `mlx_dpo train` refuses."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_dpo import load
from mlx_dpo.models.export import export_folder, read_files
from mlx_dpo.models.generate import Completion, answer_all
from mlx_dpo.preferences.chat import ChatFormat, chat_format, pad_id_of
from mlx_dpo.preferences.encoding import encode_preferences
from mlx_dpo.preferences.reader import read_preferences
from mlx_dpo.preferences.split import held_out
from mlx_dpo.preferences.store import lengths
from mlx_dpo.records import Message, Preference, PreferenceExample
from mlx_dpo.runs.config import RunConfig, resolve
from mlx_dpo.training.loss import Metrics
from mlx_dpo.training.paths import FastPath, PlainPath
from mlx_dpo.training.reference import Reference
from mlx_dpo.training.trainer import DPOTrainer
from tools.experiments.commands import EMBEDDED, MODEL, PAIRS, PLACE, figures, split, write

Pairs = list[PreferenceExample]


@dataclass
class Run:
    """What a run by hand works with; the embedded settings and pairs.

    Attributes:
        config: Settings.
        policy: Trains.
        sft: The same model a second time, the right reference.
        chat: Conversation format.
        pairs: Training pairs.
        held_out: Pairs that are not trained on.
    """

    config: RunConfig
    policy: nn.Module
    sft: nn.Module
    chat: ChatFormat
    pairs: Pairs
    held_out: Pairs

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
            "eval_every": config.eval_every,
            "seed": config.seed,
            "lengths": lengths(self.pairs),  # of the right pairs: mistakes share one order
            "path": self.path(),
        }
        return DPOTrainer(self.policy, **{**right, **changed})

    def train(self, **changed: Any) -> list[Metrics]:
        """Train the policy; what each step shows."""
        shown: list[Metrics] = []
        self.trainer(**changed).train(after_step=lambda step, metrics: shown.append(metrics))
        return shown

    def encode(self, rows: Sequence[Mapping[str, Any]]) -> Pairs:
        """Other pairs, read and encoded as those of a file.

        Raises:
            DataError: If a row can't be used.
        """
        return _encoded(read_preferences(write("rows.jsonl", rows)), self.chat, self.config)

    def margins(self, pairs: Pairs) -> list[float]:
        """Chosen minus rejected reward of each pair, of the policy as it is now."""
        path, margins = self.path(), []
        for start in range(0, len(pairs), 16):
            batch = pairs[start : start + 16]
            chosen, rejected = np.array(path(self.policy, batch) - path(self.sft, batch))
            margins.append(self.config.beta * (chosen - rejected))
        return [float(margin) for margin in np.concatenate(margins)]

    def answer(self, prompts: Sequence[str], max_tokens: int = 64) -> list[Completion]:
        """Greedy answers of the policy as it is now."""
        ids = [self.chat.prompt_ids([Message("user", prompt)]) for prompt in prompts]
        return answer_all(
            self.policy, self.chat, ids, max_tokens=max_tokens, temperature=0.0, seed=0
        )

    def judge(self, name: str, num_prompts: int = 50) -> dict[str, Any]:
        """Save the policy, and let `mlx_dpo eval` judge it against the SFT model."""
        out = PLACE / name / "model"
        shutil.rmtree(out, ignore_errors=True)
        out.parent.mkdir(parents=True, exist_ok=True)
        record = {"trained_from": {"model": MODEL}, "settings": asdict(self.config)}
        export_folder(self.policy, read_files(Path(MODEL)), out, record)
        data = write("held-out.jsonl", split()[1])
        return figures("eval", "--model", out, "--data", data, "--num-prompts", str(num_prompts))


def new_run(
    steps: int | None = None, *, model: str = MODEL, every: int = 1, **settings: Any
) -> Run:
    """A run with the embedded settings, or what is changed about them, fresh from disk.

    Args:
        steps: Optimizer steps; None for all epochs.
        model: Folder to start from.
        every: 4 trains on every fourth of the training pairs.
        settings: Of `RunConfig`, by name.
    """
    config = replace(resolve(Path(EMBEDDED[0]), {"data": str(PAIRS)}), steps=steps, **settings)
    policy, tokenizer = load(model)
    sft, _ = load(model)
    chat = chat_format(tokenizer)
    rows = read_preferences(PAIRS)
    sides: tuple[list[Preference], list[Preference]] = ([], [])
    for row, is_out in zip(rows, held_out(rows, config.eval_fraction), strict=True):
        sides[is_out].append(row)
    training, unseen = (_encoded(side, chat, config) for side in (sides[0][::every], sides[1]))
    return Run(config, policy, sft, chat, training, unseen)


def _encoded(rows: Sequence[Preference], chat: ChatFormat, config: RunConfig) -> Pairs:
    return list(encode_preferences(rows, chat, max_length=config.max_length).examples)


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

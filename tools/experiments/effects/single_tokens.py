"""DPO on one pair of one-token answers: which token rises (section 3 of arXiv:2410.08847).

First the model is taught, by a short SFT, to answer statements with one word of a few. Then it is
trained on a single prompt and a pair of such words, once for each of some prompts.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np

from mlx_dpo.models.adapters import attach_adapters
from mlx_dpo.models.fuse import fused
from mlx_dpo.models.parameters import named_arrays
from mlx_dpo.records import Message, PreferenceExample
from tools.experiments.effects.cells import Row, cell
from tools.experiments.effects.tuning import Model, Recipe, open_model, trainer_of

YES = ("Yes", "Yeah", "Sure", "Certainly", "Absolutely")
NO = ("No", "Never", "Maybe", "Perhaps")
PAIRS = (("No", "Never"), ("Yes", "No"), ("Yes", "Sure"))
NUM_PROMPTS = 10
NUM_SFT, SFT_BATCH, SFT_RATE = 96, 8, 3e-4
STEPS, RATE = 10, 1e-4
RANK = 16
MOST = 5  # tokens named


@dataclass(frozen=True)
class Taught:
    """A model that answers in one word, with a new adapter on it, and that adapter as it was."""

    model: Model
    adapter: dict[str, mx.array]


def measure(out: Path, folder: str, statements: Path | None) -> None:
    """The cells of all pairs of words; the SFT is made once, where one of them is missing."""
    if statements is None:
        return
    rows = [json.loads(line) for line in statements.read_text("utf-8").splitlines()]
    random.Random(0).shuffle(rows)
    taught: list[Taught] = []
    for chosen, rejected in PAIRS:
        settings = {
            "model": Path(folder).name,
            "chosen": chosen,
            "rejected": rejected,
            "prompts": NUM_PROMPTS,
            "sft": [NUM_SFT, SFT_BATCH, SFT_RATE],
            "dpo": [STEPS, RATE, RANK],
        }

        def found(chosen: str = chosen, rejected: str = rejected) -> Row:
            if not taught:
                taught.append(_taught(folder, rows[NUM_PROMPTS:][:NUM_SFT]))
            return _measured(taught[0], folder, rows[:NUM_PROMPTS], chosen, rejected)

        cell(out / "tokens" / f"{chosen}-{rejected}".lower(), settings, found)


def word_ids(model: Model) -> dict[str, int]:
    """The words that are one token of the model, with their ids; others can't be used."""
    ids = {
        word: model.chat.tokenizer.encode(word, add_special_tokens=False) for word in (*YES, *NO)
    }
    return {word: int(found[0]) for word, found in ids.items() if len(found) == 1}


def _prompt(model: Model, row: Row) -> list[int]:
    return list(model.chat.prompt_ids([Message("user", row["question"])]))


def _taught(folder: str, rows: Sequence[Row]) -> Taught:
    """A model that answers in one word, by a short SFT whose adapters are summed into it."""
    model = open_model(folder)
    attach_adapters(model.net, rank=RANK)
    rng, known = random.Random(0), word_ids(model)
    examples = []
    for row in rows:
        words = YES if "Yes" in row["answer_matching_behavior"] else NO
        word = rng.choice([word for word in words if word in known])
        examples.append((_prompt(model, row), known[word]))
    optimizer = optim.AdamW(SFT_RATE, weight_decay=0.0)
    step = nn.value_and_grad(model.net, _cross_entropy)
    for start in range(0, len(examples), SFT_BATCH):
        loss, gradient = step(model.net, examples[start : start + SFT_BATCH])
        optimizer.update(model.net, gradient)
        mx.eval(loss, model.net.trainable_parameters(), optimizer.state)
    weights = fused(model.net, mx.float32)
    mx.eval(weights)
    answering = open_model(folder)
    answering.net.load_weights(list(weights.items()))
    attach_adapters(answering.net, rank=RANK)
    return Taught(answering, named_arrays(answering.net.trainable_parameters()))


def _cross_entropy(net: nn.Module, batch: Sequence[tuple[list[int], int]]) -> mx.array:
    losses = [nn.losses.cross_entropy(_logits(net, p), mx.array(word)) for p, word in batch]
    return mx.stack(losses).mean()


def _logits(net: nn.Module, prompt: Sequence[int]) -> mx.array:
    """Of the next token, float32 (V,)."""
    logits: mx.array = net(mx.array([prompt]))[0, -1]
    return logits.astype(mx.float32)


def _probabilities(net: nn.Module, prompt: Sequence[int]) -> Any:
    return np.array(mx.softmax(_logits(net, prompt), axis=-1), dtype=np.float64)


def _measured(taught: Taught, folder: str, rows: Sequence[Row], chosen: str, rejected: str) -> Row:
    """For each prompt: probabilities before, at each step and after, and which tokens rose."""
    model, words = taught.model, word_ids(taught.model)
    found = []
    for row in rows:
        model.net.load_weights(list(taught.adapter.items()), strict=False)
        prompt = _prompt(model, row)
        pair = PreferenceExample(prompt, [words[chosen]], [words[rejected]])
        before = _probabilities(model.net, prompt)
        logprobs = np.log(before[[words[chosen], words[rejected]]])[:, None].astype(np.float32)
        recipe = Recipe(folder, "lora", RATE, batch_size=1, epochs=STEPS)
        trainer = trainer_of(model, recipe, [pair], logprobs)
        track: list[list[float]] = []
        for _ in range(STEPS):
            trainer.train_step()
            now = _probabilities(model.net, prompt)
            track.append([round(float(now[token]), 6) for token in words.values()])
        rise = now - before
        found.append(
            {
                "before": [round(float(before[token]), 6) for token in words.values()],
                "track": track,
                "rose": _named(model, rise, np.argsort(-rise)[:MOST]),
                "fell": _named(model, rise, np.argsort(rise)[:MOST]),
            }
        )
    return {"words": list(words), "rows": found}


def _named(model: Model, change: Any, tokens: Any) -> list[tuple[str, float]]:
    return [(model.chat.tokenizer.decode([int(t)]), round(float(change[t]), 4)) for t in tokens]

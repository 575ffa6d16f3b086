"""Train the tiny base model and the tiny SFT model from generated text.

    python -m tools.tiny_sft.train

Writes `checkpoints/tiny-base` and `checkpoints/tiny-sft`. Everything follows from the seed: the
text, the tokenizer, the first weights, the order of batches.
"""

import argparse
import random
import time
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
from mlx import nn, optimizers
from mlx_lm.models.llama import Model, ModelArgs
from tokenizers import Tokenizer

from tools.tiny_sft.export import MODEL_CONFIG, save_folder
from tools.tiny_sft.text import NUM_DOCUMENTS, NUM_EXAMPLES, SEED, base_documents, sft_examples
from tools.tiny_sft.tokenizer import END, PAD, prompt_text, token_id, train_tokenizer

CHECKPOINTS = Path(__file__).resolve().parents[2] / "checkpoints"
BATCH_SIZE = 32
BASE_RATE, SFT_RATE = 3e-3, 2.5e-3
WARMUP_STEPS = 50
SORTED_BATCHES = 50
MAX_NORM = 1.0

Row = tuple[list[int], int]
"""Token ids, and the index of the first one that is learned."""

Batch = tuple[mx.array, mx.array, mx.array]
"""Inputs (B, T), flat positions (N) in them, tokens (N) to predict there."""


def document_rows(tokenizer: Tokenizer, documents: list[str]) -> list[Row]:
    """Documents as rows, closed by the end-of-text token and learned from the second token on."""
    close = token_id(tokenizer, "<|endoftext|>")
    return [([close, *tokenizer.encode(text).ids, close], 1) for text in documents]


def dialogue_rows(tokenizer: Tokenizer, dialogues: list[tuple[str, str]]) -> list[Row]:
    """Questions and answers as rows of which the answer and its end token are learned."""
    rows = []
    for question, answer in dialogues:
        prompt = tokenizer.encode(prompt_text(question)).ids
        rows.append((prompt + tokenizer.encode(answer + END).ids, len(prompt)))
    return rows


def batches(rows: list[Row], pad: int, rng: random.Random) -> Iterator[Batch]:
    """One epoch: rows shuffled, then sorted by length in large groups to save padding."""
    shuffled = rng.sample(rows, len(rows))
    group = BATCH_SIZE * SORTED_BATCHES
    for start in range(0, len(shuffled), group):
        near = sorted(shuffled[start : start + group], key=lambda row: len(row[0]))
        starts = list(range(0, len(near), BATCH_SIZE))
        rng.shuffle(starts)
        for first in starts:
            yield collated(near[first : first + BATCH_SIZE], pad)


def collated(rows: list[Row], pad: int) -> Batch:
    """Rows as padded inputs, the flat positions to learn at, and the tokens to predict there."""
    width = max(len(ids) for ids, _ in rows) - 1
    inputs = [ids[:-1] + [pad] * (width - len(ids) + 1) for ids, _ in rows]
    places, targets = [], []
    for number, (ids, first) in enumerate(rows):
        places += [number * width + i - 1 for i in range(first, len(ids))]
        targets += ids[first:]
    return mx.array(inputs), mx.array(places), mx.array(targets)


def mean_loss(model: nn.Module, inputs: mx.array, places: mx.array, targets: mx.array) -> mx.array:
    """Mean negative log-probability of the learned tokens, in nats; only they see the head."""
    hidden = model.model(inputs)
    learned = hidden.reshape(-1, hidden.shape[-1])[places]
    logits = model.model.embed_tokens.as_linear(learned)
    return nn.losses.cross_entropy(logits, targets, reduction="mean")


def fit(model: nn.Module, rows: list[Row], *, pad: int, rate: float, seed: int, name: str) -> None:
    """One epoch of AdamW with warm-up and cosine decay."""
    total = -(-len(rows) // BATCH_SIZE)
    schedule = optimizers.join_schedules(
        [
            optimizers.linear_schedule(0.0, rate, WARMUP_STEPS),
            optimizers.cosine_decay(rate, max(1, total - WARMUP_STEPS), rate / 50),
        ],
        [WARMUP_STEPS],
    )
    optimizer = optimizers.AdamW(schedule, weight_decay=0.01, bias_correction=True)
    loss_and_grad = nn.value_and_grad(model, mean_loss)
    began, running = time.perf_counter(), 0.0
    for step, batch in enumerate(batches(rows, pad, random.Random(seed)), 1):
        loss, grads = loss_and_grad(model, *batch)
        grads, _ = optimizers.clip_grad_norm(grads, MAX_NORM)
        optimizer.update(model, grads)
        mx.eval(model.state, optimizer.state)
        running = loss.item() if step == 1 else 0.98 * running + 0.02 * loss.item()
        if step % 200 == 0 or step == total:
            passed = time.perf_counter() - began
            print(f"{name}: step {step}/{total}, loss {running:.3f}, {passed:.0f} s", flush=True)


def main() -> None:
    """Generate the text, train tokenizer, base and SFT model, and write both folders."""
    parser = argparse.ArgumentParser(description="Train the tiny base and SFT models.")
    parser.add_argument("--documents", type=int, default=NUM_DOCUMENTS)
    parser.add_argument("--examples", type=int, default=NUM_EXAMPLES)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--out", type=Path, default=CHECKPOINTS)
    options = parser.parse_args()

    began = time.perf_counter()
    rng = random.Random(options.seed)
    documents = list(base_documents(rng, options.documents))
    dialogues = [(e.prompt, e.answer) for e in sft_examples(rng, options.examples)]
    tokenizer = train_tokenizer(documents + [f"{q}\n{a}" for q, a in dialogues])
    pad = token_id(tokenizer, PAD)

    mx.random.seed(options.seed)
    model = Model(ModelArgs.from_dict(MODEL_CONFIG))
    rows = document_rows(tokenizer, documents)
    fit(model, rows, pad=pad, rate=BASE_RATE, seed=options.seed, name="base")
    save_folder(options.out / "tiny-base", model, tokenizer)
    rows = dialogue_rows(tokenizer, dialogues)
    fit(model, rows, pad=pad, rate=SFT_RATE, seed=options.seed, name="sft")
    save_folder(options.out / "tiny-sft", model, tokenizer)
    print(f"seed {options.seed}, {time.perf_counter() - began:.0f} s in all")


if __name__ == "__main__":
    main()

"""Make the reference numbers of LoRA: trajectories of TRL's DPOTrainer on models of peft.

    pip install torch==2.13.0 transformers==5.24.0 trl==1.16.0 peft==0.21.2
    python -m tools.lora_oracle  # writes tests/oracle/lora, or the folder that is named

No line of `mlx_dpo` takes part. TRL tokenises (the words of a word-level tokenizer), collates,
makes the adapter, switches it off for the reference, computes loss and gradient, accumulates and
steps. It takes its rows in order, and so the data set it is given *is* the order.

TRL computes log-probs in float32 whatever the model's dtype, and so do transformers' norms inside.
For numbers in float64, `exact` replaces these two by PyTorch's own functions; rotary angles stay
float32. Each run is also made as TRL is released, and its losses are kept beside the exact ones.
"""

import json
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer

OUT = Path(__file__).resolve().parents[1] / "tests" / "oracle" / "lora"
VOCAB, PAD_ID, EOS_ID, ROPE_THETA = 96, 0, 1, 20_000.0
PAIRS, STEPS, BATCH, ACCUMULATION = 12, 16, 2, 2
RATES = {"sgd": 0.4, "adamw": 5e-3}
METRICS = {
    **{"loss": "loss", "grad_norm": "grad_norm", "accuracy": "rewards/accuracies"},
    **{"chosen_reward": "rewards/chosen", "rejected_reward": "rewards/rejected"},
    "reward_margin": "rewards/margins",
}
_SIZES: dict[str, Any] = {
    **{"vocab_size": VOCAB, "pad_token_id": PAD_ID, "eos_token_id": EOS_ID, "bos_token_id": None},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128},
    **{"rms_norm_eps": 1e-5, "initializer_range": 0.2},
    "rope_parameters": {"rope_type": "default", "rope_theta": ROPE_THETA},
}
# Layers, hidden size, that of the MLP, tied embeddings.
MODELS = {"llama": (2, 48, 80, False), "qwen2": (3, 32, 56, True)}


def write_base(name: str, folder: Path) -> None:
    """Write a model of random weights, float32, in Hugging Face layout."""
    torch.manual_seed(0)
    keys = ("num_hidden_layers", "hidden_size", "intermediate_size", "tie_word_embeddings")
    sizes = _SIZES | dict(zip(keys, MODELS[name], strict=True))
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **sizes))
    for parameter in model.parameters():
        if parameter.ndim == 1:  # norms and biases, which would begin as ones and zeros
            parameter.data += 0.3 * torch.randn(parameter.shape)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink()
    file = folder / "config.json"
    config = json.loads(file.read_text()) | {"rope_theta": ROPE_THETA}  # the older spelling, too
    file.write_text(json.dumps(config, indent=1) + "\n")


def make_pairs() -> tuple[list[dict[str, list[int]]], list[list[int]]]:
    """Ragged pairs as token ids, and the rows of each step."""
    rng = np.random.RandomState(0)

    def ids(least: int, most: int) -> list[int]:
        return list(map(int, rng.randint(EOS_ID + 1, VOCAB, rng.randint(least, most + 1))))

    pairs = []
    for _ in range(PAIRS):
        prompt, chosen, rejected = ids(1, 14), [*ids(1, 12), EOS_ID], [*ids(0, 12), EOS_ID]
        pairs.append({"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected})
    pairs[3]["rejected_ids"] = [EOS_ID]
    pairs[5]["prompt_ids"] = pairs[4]["prompt_ids"]  # one prompt, two pairs
    order = [rng.permutation(PAIRS)[: BATCH * ACCUMULATION].tolist() for _ in range(STEPS)]
    return pairs, order


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One word a token: ``w5`` is 5."""
    words = {"<pad>": PAD_ID, "</s>": EOS_ID} | {f"w{i}": i for i in range(EOS_ID + 1, VOCAB)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, padding_side="left", **special)


def as_text(pair: dict[str, list[int]]) -> dict[str, str]:
    """A pair as TRL takes it; it appends the EOS itself."""
    text = {key: "".join(f"w{i} " for i in ids if i != EOS_ID) for key, ids in pair.items()}
    return {key.removesuffix("_ids"): words for key, words in text.items()}


def token_logprobs(hidden: Any, weight: Any, bias: Any, labels: Any, *_: Any) -> tuple[Any, ...]:
    """In place of TRL's kernel, in the model's dtype: log-probs, and nothing for its metrics."""
    logits = torch.nn.functional.linear(hidden, weight, bias)
    found = logits.log_softmax(-1).gather(-1, labels[:, None])[:, 0]
    return found, *[torch.zeros_like(found)] * 3, torch.zeros_like(found, dtype=torch.bool)


def load(folder: Path, exact: bool) -> Any:
    """The base model in float64."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    norms = [(n, m) for n, m in model.named_modules() if exact and "RMSNorm" in type(m).__name__]
    for name, old in norms:
        norm = torch.nn.RMSNorm(len(old.weight), old.variance_epsilon, dtype=torch.float64)
        norm.weight = old.weight
        model.set_submodule(name, norm)
    return model


def pair_logprobs(model: Any, pairs: list[dict[str, list[int]]]) -> list[list[float]]:
    """Log-probs of the chosen and the rejected of every pair: one row a forward, no padding."""

    def logprob(prompt: list[int], response: list[int]) -> float:
        logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
        found = logits.log_softmax(-1)[torch.arange(len(response)), torch.tensor(response)]
        return float(found.sum())

    sides = ("chosen_ids", "rejected_ids")
    with torch.no_grad():
        return [[logprob(pair["prompt_ids"], pair[side]) for pair in pairs] for side in sides]


def adapter_of(model: Any) -> dict[str, Any]:
    """A and B under peft's names, float32."""
    return {name: value.float() for name, value in get_peft_model_state_dict(model).items()}


def make_trainer(folder: Path, optimizer: str, rows: list[Any], out: str, exact: bool) -> Any:
    """TRL's trainer with a new adapter whose A is representable in float32."""
    args = DPOConfig(
        output_dir=out, beta=0.1, max_length=None, learning_rate=RATES[optimizer],
        optim={"sgd": "sgd", "adamw": "adamw_torch"}[optimizer], lr_scheduler_type="constant",
        adam_beta1=0.9, adam_beta2=0.999, adam_epsilon=1e-8, weight_decay=0.0, max_grad_norm=0.0,
        per_device_train_batch_size=BATCH, gradient_accumulation_steps=ACCUMULATION,
        num_train_epochs=1, train_sampling_strategy="sequential", seed=0, bf16=False, use_cpu=True,
        gradient_checkpointing=False, logging_steps=1, save_strategy="no", report_to="none",
        disable_tqdm=True,
    )  # fmt: skip
    lora = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, target_modules="all-linear")
    data, tokenizer = Dataset.from_list([as_text(row) for row in rows]), make_tokenizer()
    settings = {"train_dataset": data, "processing_class": tokenizer, "peft_config": lora}
    trainer = DPOTrainer(load(folder, exact), args=args, **settings)
    for name, value in trainer.model.named_parameters():
        if value.requires_grad:
            assert ("lora_" in name, value.dtype) == (True, torch.float64), name
            value.data.copy_(value.data.float())
    return trainer


def run(name: str, optimizer: str, out: Path, *, exact: bool = True) -> dict[str, Any]:
    """One trajectory; writes the adapter of its start and its end where it is exact."""
    pairs, order = make_pairs()
    rows = [pairs[i] for step in order for i in step]
    ours: Any = SimpleNamespace(apply=token_logprobs)
    kernel = mock.patch("trl.trainer.utils._ChunkedLogProbFunction", ours)
    with kernel if exact else nullcontext(), tempfile.TemporaryDirectory() as place:
        trainer = make_trainer(out / "model", optimizer, rows, place, exact)
        assert [{key: row[key] for key in pairs[0]} for row in trainer.train_dataset] == rows
        start, before = adapter_of(model := trainer.model), pair_logprobs(model, pairs)
        trainer.train()
        with model.disable_adapter():
            assert pair_logprobs(model, pairs) == before  # B began at 0, and the base stands still
    *steps, _ = trainer.state.log_history  # the last one sums up
    assert len(steps) == STEPS
    if exact:
        save_file(start, out / "start.safetensors")
        save_file(adapter_of(model), out / f"{optimizer}.safetensors")
    return {
        "learning_rate": RATES[optimizer],
        "reference": before,
        "policy_end": pair_logprobs(model, pairs),
        "steps": [{key: log[name] for key, name in METRICS.items()} for log in steps],
    }


def main(out: Path) -> None:
    """Write the folder of each model."""
    pairs, order = make_pairs()
    for name in MODELS:
        folder = out / name
        write_base(name, folder / "model")
        found: dict[str, Any] = {"scale": 2.0, "beta": 0.1, "pairs": pairs, "order": order}
        for optimizer in RATES:
            found[optimizer] = run(name, optimizer, folder)
            released = run(name, optimizer, folder, exact=False)["steps"]
            found[optimizer]["loss_as_released"] = [step["loss"] for step in released]
        lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in found.items()]
        (folder / "trajectory.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else OUT)

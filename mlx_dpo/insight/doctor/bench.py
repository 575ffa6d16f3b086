"""What a check works with, and what it returns.

A bench holds one small model and makes of it what a run would: the path, reference log-probs, a
trainer, a gradient. The models are a random llama of shapes for which GPUs have fused kernels, a
small one that is quantised and trains adapters, and in a clone the embedded one; or one of the
user's.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_dpo.convert.adapters import read_adapter
from mlx_dpo.convert.sources import check_base, load_folder, load_model, locate
from mlx_dpo.insight import words
from mlx_dpo.models.adapters import attach, attach_adapters
from mlx_dpo.models.config import is_quantised, read_config
from mlx_dpo.models.dialects import model_classes
from mlx_dpo.models.folder import num_positions
from mlx_dpo.models.packed import multiply_dense, num_parameters, packed_bits
from mlx_dpo.models.parameters import is_float32, named_arrays
from mlx_dpo.preferences.chat import pad_id_of
from mlx_dpo.preferences.store import lengths
from mlx_dpo.records import PreferenceExample
from mlx_dpo.runs.config import EMBEDDED_CONFIG, resolve
from mlx_dpo.runs.job import prepare
from mlx_dpo.training.gradient import Gradient
from mlx_dpo.training.optimizers import make_optimizer
from mlx_dpo.training.paths import FastPath, PlainPath, ScoringPath
from mlx_dpo.training.peers import Alone
from mlx_dpo.training.reference import (
    Reference,
    cached_reference,
    reference_path,
    score_in_batches,
)
from mlx_dpo.training.self_check import Choice, choose_path
from mlx_dpo.training.step import Step
from mlx_dpo.training.trainer import DPOTrainer

OK, LOOK, FAIL = "ok", "look", "fail"
VERDICTS = (OK, LOOK, FAIL)  # from good to bad

BETA, LEARNING_RATE, GRAD_CLIP = 0.1, 1e-4, 1.0
_HEAD_SIZE = 64  # of those that Metal's fused attention takes: 64, 80, 96, 128
_REPEATED_IDS = 16  # the prompts of the random model are drawn from so many ids
# Lengths of prompt, chosen and rejected: ragged, and both below and above a width of 8.
_LENGTHS = ((21, 12, 7), (30, 9, 24), (40, 16, 20), (55, 30, 12))
_EMBEDDED_PAIRS = 8
_ADAPTER_RANK = 8
_LONGEST = 128  # prompt + response of random pairs

Batch = Sequence[PreferenceExample]


@dataclass(frozen=True)
class Outcome:
    """The result of a check.

    Attributes:
        verdict: One of `VERDICTS`; ``look`` where nothing is broken, but somebody should know.
        value: The figures that count, on one line.
        meaning: What that means for a run, on one line.
        figures: All figures, as plain data.
    """

    verdict: str
    value: str
    meaning: str
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Specimen:
    """A model and pairs.

    Attributes:
        name: As it is shown.
        about: Its size, for a person.
        make: Makes it in a dtype, ``float32`` or ``bfloat16``, with the same weights each time. Its
            arrays may be unevaluated.
        examples: Pairs; the first `batch_size` are the batch that is looked at.
        max_length: Longest prompt + response in tokens.
        pad_id: Token id to pad with.
        batch_size: Pairs of a step.
        adapt: Puts the adapters on that train; None where all weights do.
    """

    name: str
    about: str
    make: Callable[[str], nn.Module]
    examples: Batch
    max_length: int
    pad_id: int = 0
    batch_size: int = 4
    adapt: Callable[[nn.Module], None] | None = None


def random_llama(
    *,
    kv_heads: int = 3,
    layers: int = 4,
    vocabulary: int = 49_152,
    batch_size: int = 4,
    seed: int = 0,
) -> Specimen:
    """A llama with random weights: head size 64, three query heads a key-value head.

    Args:
        kv_heads: Key-value heads; the width is 192 times as much.
        layers: Number of layers.
        vocabulary: Token ids.
        batch_size: Pairs of a step, of four.
        seed: Of weights and pairs.
    """
    heads = 3 * kv_heads
    width = heads * _HEAD_SIZE
    config = {
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": 8 * width // 3,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": _HEAD_SIZE,
        "vocab_size": vocabulary,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
    }

    def make(dtype: str) -> nn.Module:
        model_class, arguments = model_classes(config)
        mx.random.seed(seed)
        model: nn.Module = model_class(arguments.from_dict(config))
        model.set_dtype(mx.bfloat16 if dtype == "bfloat16" else mx.float32)
        model.eval()
        return model

    about = (
        f"llama of random weights, {layers} layers, width {width}, {heads} heads of {_HEAD_SIZE}, "
        f"{kv_heads} for keys, vocabulary {vocabulary:,}"
    )
    pairs = _random_pairs(vocabulary, seed)
    return Specimen("random", about, make, pairs, max_length=_LONGEST, batch_size=batch_size)


def packed_llama() -> Specimen:
    """A small llama in 4 bits, which trains adapters."""
    dense = random_llama(kv_heads=1, layers=2, vocabulary=4096, batch_size=2)

    def make(dtype: str) -> nn.Module:
        model = dense.make(dtype)
        nn.quantize(model, group_size=64, bits=4)
        multiply_dense(model)
        return model

    about = f"{dense.about}, in 4 bits; LoRA"
    return replace(dense, name="packed", about=about, make=make, adapt=_new_adapters)


def model_of_folder(name: str) -> Specimen:
    """A model of the user's, with random pairs; a quantised one, or an adapter, trains adapters.

    What is shown of it does not tell its name.

    Raises:
        UsageError: If it is not there or can't be loaded.
    """
    source = locate(name)
    config = read_config(source.folder)
    text = config.get("text_config")
    vocabulary = (text if isinstance(text, dict) else {}) | config
    model = load_model(source.folder)
    positions, bits = num_positions(model), packed_bits(model)
    about = f"{config.get('model_type')}, {words.parameters(num_parameters(model))} parameters"
    adapt: Callable[[nn.Module], None] | None = None
    if source.adapter is not None:
        check_base(source.adapter, source.folder)
        adapter = read_adapter(source.adapter, model)
        adapt = partial(attach, adapter=adapter)
    elif is_quantised(config):
        adapt = _new_adapters
    about += f" in {' and '.join(map(str, bits))} bits" if bits else ""
    return Specimen(
        "model",
        about + ("; LoRA" if adapt else ""),
        partial(load_model, source.folder),
        _random_pairs(int(vocabulary.get("vocab_size") or _REPEATED_IDS), 0),
        max_length=min(_LONGEST, positions or _LONGEST),
        batch_size=2,
        adapt=adapt,
    )


def embedded_model() -> Specimen | None:
    """The model that ships with the repository, with a few of its pairs; None outside a clone."""
    if not EMBEDDED_CONFIG.is_file():
        return None
    config = resolve(None, {})
    job = prepare(config, keep=False)
    count = sum(array.size for array in named_arrays(job.policy.parameters()).values())
    return Specimen(
        job.name,
        f"the embedded model, {count / 1e6:.1f} M parameters",
        lambda dtype: load_folder(job.source, dtype)[0],
        [job.train.examples[i] for i in range(_EMBEDDED_PAIRS)],
        max_length=config.max_length,
        pad_id=pad_id_of(job.chat.tokenizer),
        batch_size=config.batch_size,
    )


class Bench:
    """One specimen, and what several checks need of it.

    Attributes:
        specimen: The model and its pairs.
        plain: The definition of its log-probs.
        batch: The pairs that are looked at.
    """

    def __init__(self, specimen: Specimen) -> None:
        self.specimen = specimen
        self.plain = PlainPath(specimen.max_length, specimen.pad_id)
        self.batch = specimen.examples[: specimen.batch_size]

    @cached_property
    def model(self) -> nn.Module:
        """The float32 model, which no check may change."""
        return self.loaded()

    @cached_property
    def choice(self) -> Choice:
        """The path a run takes."""
        return self.choose(self.model)

    @property
    def fast(self) -> ScoringPath:
        """The path a run takes; where that is the plain one, the fast path that asks least."""
        if self.choice.path.name != PlainPath.name:
            return self.choice.path
        return FastPath(self.specimen.max_length, self.specimen.pad_id, share_prompts=False)

    @cached_property
    def reference(self) -> Reference:
        """Log-probs of every pair by the untrained model."""
        return self.score(self.model, self.specimen.examples)

    def loaded(self, dtype: str = "float32") -> nn.Module:
        """Another model, evaluated, with the adapters that train."""
        model = self.specimen.make(dtype)
        mx.eval(model.parameters())
        if self.specimen.adapt is not None:
            self.specimen.adapt(model)
        return model

    def choose(self, model: nn.Module) -> Choice:
        """The self-check of a run."""
        work = self.specimen
        return choose_path(model, work.examples, max_seq_len=work.max_length, pad_id=work.pad_id)

    def score(self, model: nn.Module, examples: Batch) -> Reference:
        """Reference log-probs, computed now by a model and looked up later."""
        path = self.choice.path
        score = partial(reference_path(path, float32=is_float32(model)), model)
        size = self.specimen.batch_size
        return cached_reference(examples, score_in_batches(score, examples, batch_size=size))

    def trainer(
        self,
        model: nn.Module,
        *,
        examples: Batch | None = None,
        reference: Reference | None = None,
        copy: nn.Module | None = None,
        path: ScoringPath | None = None,
        learning_rate: float = LEARNING_RATE,
    ) -> DPOTrainer:
        """The trainer of a run, its reference by default looked up, or a frozen copy."""
        examples = examples or self.specimen.examples
        if copy is None:
            reference = reference or self.reference
        return DPOTrainer(
            model,
            ref_model=copy,
            reference=reference,
            examples=examples,
            max_seq_len=self.specimen.max_length,
            pad_id=self.specimen.pad_id,
            beta=BETA,
            batch_size=self.specimen.batch_size,
            max_steps=1000,
            max_lr=learning_rate,
            grad_clip=GRAD_CLIP,
            lengths=lengths(examples),
            path=path or self.choice.path,
        )

    def gradient(self, path: ScoringPath, batch: Batch) -> Gradient:
        """Gradient of a batch's loss before the first update, evaluated, as a step makes it."""
        keeping = _Keeping()
        optimizer = make_optimizer("adamw", learning_rate=LEARNING_RATE, weight_decay=0.0)
        size = len(batch)
        step = Step(
            self.model, optimizer, path, self.reference, beta=BETA, batch_size=size, peers=keeping
        )
        step.measure(batch)
        return keeping.gradient


class _Keeping(Alone):
    """Keeps the gradient of a step."""

    def sums(self, model: nn.Module, gradient: Gradient) -> Gradient:
        self.gradient = dict(gradient)
        return gradient


def without_paths(text: str) -> str:
    """A message without what looks like a path, which may name a person."""
    return re.sub(r"(?<![\w.])(?:~|\.{0,2}/)[^\s:;,'\")]+", "(path)", text)


def _new_adapters(model: nn.Module) -> None:
    attach_adapters(model, rank=_ADAPTER_RANK)


def _random_pairs(vocabulary: int, seed: int) -> list[PreferenceExample]:
    """Prompts of few ids, so that each stands in a batch many times, and responses of any."""
    draw = np.random.default_rng(seed)
    few = draw.integers(0, vocabulary, _REPEATED_IDS)
    return [
        PreferenceExample(
            draw.choice(few, prompt).tolist(),
            draw.integers(0, vocabulary, chosen).tolist(),
            draw.integers(0, vocabulary, rejected).tolist(),
        )
        for prompt, chosen, rejected in _LENGTHS
    ]

"""DPO by adapters: on every kind of base the same method, the same invariants."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlx_dpo.models.adaptable import choose_modules
from mlx_dpo.models.adapters import (
    Part,
    attach,
    attach_adapters,
    base_parameters,
    new_adapter,
    parts_of,
    without_adapter,
)
from mlx_dpo.models.corrections import corrections_of
from mlx_dpo.models.packed import dense, is_packed, multiply_dense
from mlx_dpo.models.parameters import fingerprint, is_float32, named_arrays
from mlx_dpo.training import head
from mlx_dpo.training.paths import FastPath, PlainPath, ScoringPath
from mlx_dpo.training.reference import (
    adapter_off,
    cached_reference,
    reference_path,
    score_in_batches,
)
from mlx_dpo.training.self_check import choose_path
from mlx_dpo.training.trainer import DPOTrainer
from tests.models.test_packed import PACKINGS
from tests.training import architectures
from tests.training.test_paths import BATCHES, logprobs_and_gradient

LENGTH = 64
PAIRS = BATCHES["five ragged pairs"]
WIDE = {"hidden_size": 128, "intermediate_size": 256}  # a group of 128 fits into a row


def base(name: str) -> nn.Module:
    """A frozen model of some kind, by name."""
    kind, _, change = name.partition(", ")
    model = architectures.make(kind, **WIDE)
    for correct in corrections_of(kind, {}):
        correct(model)
    if change == "bfloat16":
        model.set_dtype(mx.bfloat16)
    elif change == "layers packed":
        nn.quantize(model, 64, 4, class_predicate=lambda path, m: "layers" in path and _packs(m))
    elif change == "mixed bits":
        bits = {"self_attn.q_proj": 8, "mlp.down_proj": 3}
        nn.quantize(
            model,
            64,
            4,
            class_predicate=lambda path, m: (
                _packs(m) and {"group_size": 64, "bits": bits.get(path.split(".", 3)[-1], 4)}
            ),
        )
    elif change.startswith("packed"):
        nn.quantize(model, 64, 4)
    if change == "packed, bfloat16":
        model.set_dtype(mx.bfloat16)
    mx.eval(model.parameters())
    multiply_dense(model)
    return model


def _packs(module: nn.Module) -> bool:
    return hasattr(module, "to_quantized")


BASES = (
    *("llama, float32", "qwen2, float32", "llama, bfloat16", "llama, packed", "qwen2, packed"),
    *("llama, packed, bfloat16", "llama, layers packed", "llama, mixed bits", "mixtral, float32"),
    *("mixtral, packed", "gemma3n, bfloat16"),
)


def adapted(name: str) -> nn.Module:
    model = base(name)
    attach_adapters(model, rank=4)
    return model


def trainer_of(
    model: nn.Module, path: ScoringPath, *, off: bool = False, fused: bool = False
) -> DPOTrainer:
    """Trains on `PAIRS`; the reference is what the policy is now, or its base."""
    score = reference_path(path, float32=is_float32(model))
    order = None if is_float32(model) else [[row] for row in range(len(PAIRS))]
    reference = adapter_off(model, score)
    if not off:
        values = score_in_batches(partial(score, model), PAIRS, batch_size=1, batches=order)
        reference = cached_reference(PAIRS, values)
    return DPOTrainer(
        model,
        ref_model=None,
        reference=reference,
        examples=PAIRS,
        max_seq_len=LENGTH,
        pad_id=0,
        beta=0.1,
        batch_size=1,
        max_steps=100,
        max_lr=3e-3,
        path=path,
        fused_update=fused,
        grad_clip=None if fused else 1.0,
    )


@pytest.mark.parametrize("name", BASES)
def test_the_fast_path_is_taken_and_its_gradient_is_the_plain_one_s(name: str) -> None:
    choice = choose_path(adapted(name), PAIRS, max_seq_len=LENGTH, pad_id=0)
    assert choice.path.name == "shared-prompt", choice.refused


@pytest.mark.parametrize("name", BASES)
def test_it_starts_at_log_2_learns_and_the_base_keeps_every_byte(name: str) -> None:
    model = adapted(name)
    before = fingerprint(base_parameters(model))
    trainer = trainer_of(model, FastPath(LENGTH, 0))
    first = trainer.train_step(PAIRS)
    assert first["loss"] == pytest.approx(math.log(2), abs=2e-6)
    assert abs(first["chosen_reward"]) <= 2e-6
    losses = [trainer.train_step(PAIRS)["loss"] for _ in range(5)]
    assert losses[-1] < losses[0] < first["loss"] + 1e-3
    assert fingerprint(base_parameters(model)) == before


@pytest.mark.parametrize("name", ["llama, float32", "llama, packed", "llama, packed, bfloat16"])
@pytest.mark.parametrize("again", [False, True], ids=["kept", "computed again"])
@pytest.mark.parametrize("fused", [False, True], ids=["whole", "fused"])
def test_each_kind_of_step_takes_the_same_steps(name: str, again: bool, fused: bool) -> None:
    losses = []
    for path, is_fused in ((PlainPath(LENGTH, 0), False), (FastPath(LENGTH, 0, again), fused)):
        trainer = trainer_of(adapted(name), path, fused=is_fused)
        trainer.stages.grad_clip = None
        losses.append([trainer.train_step([pair])["loss"] for pair in PAIRS])
    rounding = 0.02 if "bfloat16" in name else 1e-5
    np.testing.assert_allclose(losses[1], losses[0], atol=rounding)


@pytest.mark.parametrize(("bits", "group", "mode"), PACKINGS)
def test_the_first_loss_of_every_packing_is_log_2(bits: int, group: int, mode: str) -> None:
    model = architectures.make("llama", **WIDE)
    nn.quantize(model, group, bits, mode=mode)
    multiply_dense(model)
    attach_adapters(model, rank=4)
    metrics = trainer_of(model, FastPath(LENGTH, 0), off=True).train_step(PAIRS)
    assert metrics["loss"] == pytest.approx(math.log(2), abs=1e-7)
    assert metrics["chosen_reward"] == metrics["rejected_reward"] == 0


@pytest.mark.parametrize(("bits", "mode"), [(4, "affine"), (3, "affine"), (4, "mxfp4")])
def test_a_packed_base_trains_as_the_dense_one_it_stands_for(bits: int, mode: str) -> None:
    packed = architectures.make("llama", **WIDE)
    nn.quantize(packed, 32, bits, mode=mode)
    plain = architectures.make("llama", **WIDE)
    weights = [(f"{path}.weight", dense(m)) for path, m in packed.named_modules() if is_packed(m)]
    plain.load_weights(weights, strict=False)
    multiply_dense(packed)
    losses = []
    for model in (packed, plain):
        attach_adapters(model, rank=4)
        trainer = trainer_of(model, FastPath(LENGTH, 0))
        losses.append([trainer.train_step(PAIRS)["loss"] for _ in range(4)])
    np.testing.assert_allclose(losses[0], losses[1], atol=1e-5)


@pytest.mark.parametrize("name", ["llama, float32", "llama, packed", "llama, packed, bfloat16"])
def test_after_training_the_adapter_off_gives_the_reference_again(name: str) -> None:
    model = adapted(name)
    path = FastPath(LENGTH, 0)
    trainer = trainer_of(model, path, off=True)
    before = np.array(trainer.reference(PAIRS))
    for _ in range(4):
        trainer.train_step(PAIRS)
    policy, reference = (
        np.array(score(PAIRS)) for score in (partial(path, model), trainer.reference)
    )
    assert np.array_equal(reference, before), "0.0 nats from the base"
    assert np.abs(policy - reference).max() > 0.1


@pytest.mark.parametrize("layers", [1, 2])
def test_in_half_precision_the_adapter_off_rounds_as_a_step_does(layers: int) -> None:
    """Below the first adapter nothing has a gradient, and MLX takes other kernels there."""
    model = base("llama, packed, bfloat16")
    attach_adapters(model, rank=4, layers=layers)
    trainer = trainer_of(model, FastPath(LENGTH, 0), off=True)
    for pair in PAIRS:
        loss, _ = trainer.stages.measure([pair])
        assert loss == pytest.approx(math.log(2), abs=1e-7)


def test_continuing_from_an_adapter_the_reference_is_the_policy_at_the_start() -> None:
    model = adapted("llama, float32")
    first = trainer_of(model, FastPath(LENGTH, 0))
    for _ in range(4):
        first.train_step(PAIRS)
    again = trainer_of(model, FastPath(LENGTH, 0))
    assert again.train_step(PAIRS)["loss"] == pytest.approx(math.log(2), abs=1e-6)
    by_base = trainer_of(model, FastPath(LENGTH, 0), off=True)
    assert by_base.train_step(PAIRS)["loss"] < math.log(2) - 1e-3


@contextmanager
def chunks_of(monkeypatch: pytest.MonkeyPatch, tokens: int) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr(head, "FROZEN_CHUNK_BYTES", 0)
        patch.setattr(head, "_CHUNK_TOKENS", tokens)
        yield


@pytest.mark.parametrize(
    "name", ["llama", "qwen2", "gemma2", "granite", "cohere", "gpt2", architectures.COURSE]
)
def test_a_frozen_head_gives_its_gradient_at_once_whatever_it_does_to_the_logits(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tied or not, scaled, capped, with a bias: chunk by chunk the gradient of the whole."""
    model = architectures.make(name)
    attach(model, new_adapter(model, choose_modules(model), rank=2))
    for number, module in enumerate(m for m in model.modules() if "lora_b" in m):
        module.lora_b = 0.05 * mx.random.normal(module.lora_b.shape, key=mx.random.key(number))
    path = FastPath(LENGTH, 0, one_length=name == "gemma2")
    expected, expected_gradient = logprobs_and_gradient(path, model, PAIRS)
    for tokens in (1, 3, 1000):
        with chunks_of(monkeypatch, tokens):
            announced = partial(path, gradient=True)
            found, gradient = logprobs_and_gradient(announced, model, PAIRS)  # type: ignore[arg-type]
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=2e-6)
        for key, value in expected_gradient.items():
            largest = float(mx.abs(value).max())
            assert float(mx.abs(gradient[key] - value).max()) <= 2e-5 * largest + 1e-7, key


def test_a_head_that_trains_is_not_taken_for_a_frozen_one() -> None:
    model = architectures.make("qwen2")
    part = new_adapter(model, ["lm_head", *choose_modules(model)], rank=2)
    noise = mx.random.key(0)
    attach(
        model,
        {
            path: Part(each.a, 0.1 * mx.random.normal(each.b.shape, key=noise), each.scale)
            for path, each in part.items()
        },
    )
    path = FastPath(LENGTH, 0)
    _, expected = logprobs_and_gradient(PlainPath(LENGTH, 0), model, PAIRS)
    _, found = logprobs_and_gradient(path, model, PAIRS)
    assert float(mx.abs(expected["lm_head.lora_a"]).max()) > 0
    for key, value in expected.items():
        largest = float(mx.abs(value).max())
        assert float(mx.abs(found[key] - value).max()) <= 2e-5 * largest + 1e-7, key


def test_the_self_check_finds_a_gradient_of_a_that_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """With B zero the gradient of A is zero, and losing it would go unnoticed."""
    right = FastPath.__call__

    def lossy(
        self: FastPath, model: nn.Module, examples: object, *, gradient: bool = False
    ) -> mx.array:
        view = without_adapter(model)  # only for its tree: its scales are set back below
        for (_, module), (_, own) in zip(
            sorted(view.named_modules()), sorted(model.named_modules()), strict=True
        ):
            if "lora_a" in module:
                module.scale = own.scale
                module.lora_a = mx.stop_gradient(module.lora_a)
        return right(self, view, examples, gradient=gradient)  # type: ignore[arg-type]

    model = adapted("llama, float32")
    monkeypatch.setattr(FastPath, "__call__", lossy)
    choice = choose_path(model, PAIRS, max_seq_len=LENGTH, pad_id=0)
    assert choice.path.name == "plain"
    assert all("lora_a" in reason for _, reason in choice.refused)


def test_layers_computed_again_and_whole_ones_have_one_gradient() -> None:
    model = adapted("llama, packed")
    for module in model.modules():
        if "lora_b" in module:
            module.lora_b = 0.05 * mx.ones(module.lora_b.shape)
    path = FastPath(LENGTH, 0)
    _, expected = logprobs_and_gradient(path, model, PAIRS)
    _, found = logprobs_and_gradient(replace(path, checkpoint=True), model, PAIRS)
    assert found.keys() == expected.keys() == named_arrays(model.trainable_parameters()).keys()
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, rtol=1e-4, atol=1e-6)
    assert len(parts_of(model)) == 14

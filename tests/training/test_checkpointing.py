"""Layers that compute again: the same numbers, less memory, and nobody else's layers changed."""

from dataclasses import replace
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlx_dpo.models.parameters import fingerprint, named_arrays
from mlx_dpo.training.checkpointing import checkpointed
from mlx_dpo.training.paths import FastPath, PlainPath, ScoringPath
from mlx_dpo.training.reference import frozen_reference
from tests.training import architectures
from tests.training.test_paths import BATCHES, FASTEST, LENGTH, logprobs_and_gradient

NAMES = sorted(name for name, path in FASTEST.items() if getattr(path, "share_prompts", False))


def again(path: ScoringPath) -> ScoringPath:
    """The same path, layers computed again."""
    assert isinstance(path, FastPath | PlainPath)
    return replace(path, checkpoint=True)


@pytest.mark.parametrize("name", NAMES)
def test_checkpointing_changes_neither_log_probs_nor_gradients(name: str) -> None:
    model = architectures.make(name)
    for path in (FASTEST[name], PlainPath(LENGTH, 0)):
        pairs = BATCHES["prompts that begin alike"]  # ragged too
        expected, expected_grads = logprobs_and_gradient(path, model, pairs)
        found, grads = logprobs_and_gradient(again(path), model, pairs)
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-5)
        assert grads.keys() == expected_grads.keys()
        # A key's bias has no gradient at all: what is there is rounding of the others.
        rounding = 1e-8 * max(float(mx.abs(g).max()) for g in expected_grads.values())
        for key, gradient in expected_grads.items():
            largest = float(mx.abs(gradient).max())
            difference = float(mx.abs(grads[key] - gradient).max())
            assert difference <= 1e-6 * largest + rounding, key


@pytest.mark.parametrize("kind", [PlainPath, partial(FastPath, share_prompts=False), FastPath])
def test_layers_that_compute_again_keep_little_for_the_gradient(kind: Any) -> None:
    """Between forward and backward, a layer's input is all that is there of it, on every path."""
    model = architectures.make("llama")
    kept = []
    for checkpoint in (False, True):
        path = kind(LENGTH, 0, checkpoint=checkpoint)

        def loss(path: ScoringPath = path) -> mx.array:
            return path(model, BATCHES["every odd case"]).sum()

        mx.synchronize()
        before = mx.get_active_memory()
        value, grads = nn.value_and_grad(model, loss)()
        mx.eval(value)
        kept.append(mx.get_active_memory() - before)
        del grads
    assert kept[1] < 0.4 * kept[0]


def test_neither_the_model_nor_its_class_nor_the_reference_is_touched() -> None:
    policy, reference = architectures.make("llama"), architectures.make("llama")
    layer = policy.layers[0]
    call, attributes = type(layer).__call__, dict(policy.model)
    before = fingerprint(reference)
    path = FastPath(LENGTH, 0, checkpoint=True)
    score = frozen_reference(reference, lambda model, batch: path(model, batch))
    logprobs_and_gradient(path, policy, BATCHES["five ragged pairs"])
    mx.eval(score(BATCHES["five ragged pairs"]))
    assert type(layer).__call__ is call
    assert policy.layers[0] is layer
    assert dict(policy.model) == attributes
    assert fingerprint(reference) == before


def test_a_checkpointed_copy_computes_with_the_models_own_arrays() -> None:
    model = architectures.make("llama")
    copy = checkpointed(model)
    ids = mx.array([[5, 6, 7]])
    assert mx.allclose(copy(ids), model(ids), atol=1e-6)
    changed: Any = nn.utils.tree_map(lambda a: a * 1.5, model.parameters())
    model.update(changed)
    assert mx.allclose(copy(ids), model(ids), atol=1e-6)
    assert named_arrays(model.parameters()).keys()

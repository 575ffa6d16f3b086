"""The same models asked live in PyTorch: nothing stored, nothing of ours but the token ids."""

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_dpo.models.parameters import named_arrays
from mlx_dpo.training.logprobs import pair_logprobs
from mlx_dpo.training.trainer import DPOTrainer
from tests import oracle
from tests.training.test_oracle import Recorder

pytestmark = [pytest.mark.torch, pytest.mark.parametrize("name", oracle.MODELS)]

NUM_PAIRS = 8


def torch_model(name: str) -> Any:
    torch = pytest.importorskip("torch", reason="`make test-torch` runs it")
    from transformers import AutoModelForCausalLM

    folder = oracle.FOLDER / name / "model"
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def torch_logprobs(model: Any, name: str) -> Any:
    """Log-probs (2, B) with gradient, one unpadded row at a time, the way one writes it by hand."""
    torch = pytest.importorskip("torch", reason="`make test-torch` runs it")
    sides = []
    for side in (1, 2):
        rows = []
        for example in oracle.pairs(name)[:NUM_PAIRS]:
            ids = torch.tensor([[*example.prompt_ids, *example[side]]])
            logprobs = model(ids).logits[0, :-1].log_softmax(-1)
            tokens = logprobs.gather(-1, ids[0, 1:, None])[:, 0]
            rows.append(tokens[len(example.prompt_ids) - 1 :].sum())
        sides.append(torch.stack(rows))
    return torch.stack(sides)


def test_log_probs_equal_those_of_live_torch(name: str) -> None:
    expected = torch_logprobs(torch_model(name), name).detach().numpy()
    found = pair_logprobs(
        oracle.load_model(name),
        oracle.pairs(name)[:NUM_PAIRS],
        max_seq_len=oracle.MAX_SEQ_LEN,
        pad_id=oracle.PAD_ID,
    )
    # Both are float32, so both sides may err.
    np.testing.assert_allclose(np.array(found), expected, rtol=1e-6, atol=2e-4)


def test_first_gradient_equals_that_of_live_torch(name: str) -> None:
    torch = pytest.importorskip("torch", reason="`make test-torch` runs it")
    model = torch_model(name)
    chosen, rejected = torch_logprobs(model, name)
    # At step 0 the reference is the policy: the same values without their gradient.
    margin = oracle.BETA * (chosen - chosen.detach() - (rejected - rejected.detach()))
    (-torch.nn.functional.logsigmoid(margin)).mean().backward()

    recorder = Recorder(learning_rate=0.0)
    policy = oracle.load_model(name)
    DPOTrainer(
        policy,
        ref_model=oracle.load_model(name),
        examples=oracle.pairs(name)[:NUM_PAIRS],
        max_seq_len=oracle.MAX_SEQ_LEN,
        pad_id=oracle.PAD_ID,
        beta=oracle.BETA,
        batch_size=NUM_PAIRS,
        max_steps=1,
        max_lr=0.0,
        optimizer=recorder,
    ).train_step()

    expected = policy.sanitize(
        {
            key.removeprefix("transformer."): mx.array(value.grad.numpy())
            for key, value in model.named_parameters()
        }
    )
    assert recorder.gradients.keys() == expected.keys() == named_arrays(policy.parameters()).keys()
    for tensor, truth in expected.items():
        error = oracle.largest(recorder.gradients[tensor] - truth)
        assert error <= 1e-5 * oracle.largest(truth) + 1e-7, tensor

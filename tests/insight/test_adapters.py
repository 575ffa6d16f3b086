"""An adapter as a policy: its reference, and that no second model is held for it."""

import json
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_dpo.errors import UsageError
from mlx_dpo.insight import scoring
from mlx_dpo.insight.comparison import ComparisonPrompt, compare
from mlx_dpo.insight.rewards import reward_pairs
from mlx_dpo.insight.scoring import Named, open_model, reference_of, score_pairs
from mlx_dpo.models.adapters import base_parameters
from mlx_dpo.models.parameters import named_arrays
from tests.insight.test_rewards import random_pairs
from tests.runs.conftest import ORACLE

PAIRS = random_pairs(6)
IDS = mx.array([[5, 6, 7, 8, 9]])


def scores(name: str, adapter: str | None = None) -> Any:
    return score_pairs(open_model(name, adapter), PAIRS, max_length=64).logprobs


def test_the_base_of_an_adapter_scores_as_the_model_itself_and_shares_its_arrays(
    adapter_folder: Path,
) -> None:
    policy = open_model(str(adapter_folder))
    base = policy.without_adapter()
    assert base.name == str(ORACLE)
    assert mx.array_equal(base.model(IDS), open_model(str(ORACLE)).model(IDS))
    assert not mx.array_equal(base.model(IDS), policy.model(IDS))
    ours, theirs = (named_arrays(each.model.parameters()) for each in (policy, base))
    assert all(theirs[name] is array for name, array in ours.items())
    found = score_pairs(base, PAIRS, max_length=64).logprobs
    assert np.array_equal(found, scores(str(ORACLE)))


def test_an_adapter_without_a_record_goes_onto_a_model_that_is_named(
    adapter_folder: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(adapter_folder, bare, ignore=shutil.ignore_patterns("d*.json"))
    expected = scores(str(adapter_folder))
    assert np.array_equal(scores(str(ORACLE), str(bare)), expected)
    assert np.array_equal(scores(str(ORACLE), str(adapter_folder)), expected)
    assert reference_of(Named(str(ORACLE), str(bare))) is None
    with pytest.raises(UsageError, match=r"no dpo\.json in it names its model"):
        open_model(str(bare))


def test_an_adapter_on_other_weights_is_refused(adapter_folder: Path, policy_folder: Path) -> None:
    with pytest.raises(UsageError, match="with other weights than those of"):
        open_model(str(policy_folder), str(adapter_folder))
    questions = [ComparisonPrompt("", "Hello")]
    models = Named(str(ORACLE)), Named(str(policy_folder), str(adapter_folder))
    with pytest.raises(UsageError, match="with other weights than those of"):
        compare(models, questions, max_tokens=2, temperature=1.0, seed=0)


def test_a_run_that_started_from_an_adapter_is_measured_from_it(
    adapter_folder: Path, continued_adapter: Path
) -> None:
    origin = reference_of(Named(str(continued_adapter)))
    assert origin == Named(str(ORACLE), str(adapter_folder))
    policy, reference = open_model(str(continued_adapter)), open_model(*origin)
    assert policy.comes_from(reference)
    assert not policy.comes_from(policy.without_adapter())
    assert not policy.comes_from(policy)
    assert not open_model(str(adapter_folder)).comes_from(reference)
    assert open_model(str(adapter_folder)).comes_from(reference.without_adapter())


def test_an_adapter_to_start_from_that_is_gone_is_named(
    continued_adapter: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(continued_adapter, moved)
    record = json.loads((moved / "dpo.json").read_text())
    record["settings"]["adapter"] = "gone/adapter"
    (moved / "dpo.json").write_text(json.dumps(record))
    (moved / "digests.json").unlink()
    with pytest.raises(UsageError, match=r"gone/adapter, which is not there any more; pass --ref"):
        reference_of(Named(str(moved)))


def test_rewards_of_an_adapter_load_one_model(
    adapter_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, opened = Named(str(adapter_folder)), []
    real = scoring.open_model

    def counted(name: str, adapter: str | None = None) -> scoring.LoadedModel:
        opened.append(name)
        return real(name, adapter)

    monkeypatch.setattr(scoring, "open_model", counted)
    chat = real(str(ORACLE)).chat
    alone = reward_pairs((policy, reference_of(policy)), chat, PAIRS, beta=0.1, max_length=64)
    assert opened == [str(adapter_folder)]
    both = reward_pairs((policy, Named(str(ORACLE))), chat, PAIRS, beta=0.1, max_length=64)
    assert alone == both
    assert any(chosen.reward != 0 for chosen, _ in alone)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_a_model_was_trained_from_is_known_by_the_dtype_it_trained_in(
    policy_folder: Path, tmp_path: Path, dtype: str
) -> None:
    """A run in bfloat16 has recorded the fingerprint of the weights in bfloat16."""
    from mlx_dpo.convert.sources import load_model
    from mlx_dpo.models.parameters import fingerprint

    trained = tmp_path / "trained"
    shutil.copytree(policy_folder, trained)
    record = json.loads((trained / "dpo.json").read_text())
    record["settings"]["dtype"] = dtype
    record["trained_from"]["fingerprint"] = fingerprint(load_model(ORACLE, dtype))
    (trained / "dpo.json").write_text(json.dumps(record))
    (trained / "digests.json").unlink()
    policy = open_model(str(trained))
    assert policy.comes_from(open_model(str(ORACLE)))
    assert not policy.comes_from(policy)


def test_a_packed_model_and_one_packed_in_part_can_be_scored(
    packed_folder: Path, partly_packed_folder: Path
) -> None:
    for folder in (packed_folder, partly_packed_folder):
        found = scores(str(folder))
        assert np.isfinite(found).all()
    kinds = {type(m).__name__ for m in open_model(str(partly_packed_folder)).model.modules()}
    assert {"Linear", "QuantizedLinear"} <= kinds
    assert base_parameters(open_model(str(packed_folder)).model)
